"""Where the record of a run cannot be ended any more, people are told of what ended the run."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.execution.test_damage import Plain, plain

from wsss.errors import WsssError
from wsss.execution import run as run_module
from wsss.run_record import find_runs
from wsss.tracking.spool import TrackingError

__all__ = ["plain"]


@pytest.mark.parametrize("refusal", [TrackingError("no record", "here"), OSError(errno.ENOSPC, "No space left")])
def test_the_first_error_tells(
    plain: Plain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: Exception
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise refusal

    def fail() -> None:
        raise WsssError("the planned error")

    log = SimpleNamespace(metrics=lambda *_: None, series=lambda *_: None, finish=refuse)
    tracker = SimpleNamespace(run=lambda **_: log, close=refuse)
    monkeypatch.setattr(run_module, "open_tracker", lambda *_, **__: tracker)
    plain.before_mean = fail
    with pytest.raises(WsssError, match="the planned error"):
        plain.run()
    (record,) = find_runs(tmp_path)
    assert record.status == "failed" and record.error == "the planned error"
