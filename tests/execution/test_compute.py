"""What the computing of a stage raises reaches people as one message, whoever raised it."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, GetTimeoutError, RayTaskError

from wsss.errors import WsssError
from wsss.execution import compute
from wsss.execution.cluster import ClusterError
from wsss.execution.compute import StageError, compute_stage
from wsss.store import DamagedArtifact

PLANNED: Any = SimpleNamespace(stage=SimpleNamespace(name="cam", files={}))
NOBODY: Any = SimpleNamespace(execution=None, message=print)
LOST = RayTaskError(
    "_run_shard", "Traceback (most recent call last)\nOSError: [Errno 5] Input/output error", OSError(5)
)


def compute_and_fail(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(compute, "fetch_missing", fail)
    compute_stage(NOBODY, PLANNED, {}, NOBODY, NOBODY, "", {})


@pytest.mark.parametrize(
    "error", [WsssError("full"), DamagedArtifact("other content"), OSError(errno.ENOSPC, "No space left on device")]
)
def test_what_has_a_remedy_stays_as_it_is(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(type(error)) as caught:
        compute_and_fail(error, monkeypatch)
    assert caught.value is error


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (ActorDiedError(), ClusterError, "Ray failed: "),
        (GetTimeoutError("no answer"), ClusterError, "Ray failed: no answer"),
        (LOST.as_instanceof_cause(), ClusterError, "Ray failed: OSError: [Errno 5] Input/output error"),
        (ZeroDivisionError("division by zero"), StageError, "ZeroDivisionError: division by zero"),
    ],
)
def test_what_has_none_gets_one(
    error: Exception, kind: type[WsssError], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(kind) as caught:
        compute_and_fail(error, monkeypatch)
    assert caught.value.what.startswith(said) and "\n" not in caught.value.what
    assert caught.value.where == "stage cam" and "finished shards and checkpoints are kept" in caught.value.remedy
    assert "Traceback" not in str(caught.value)
