"""The image that a dead worker was at is told."""

import multiprocessing
import os
import signal
from types import SimpleNamespace
from typing import Any, cast

import pytest

from wsss.execution.cluster import ClusterError
from wsss.execution.last_image import last_image, noted
from wsss.execution.map_stage import _with_image

NAMES = ("a", "b", "c")


def die_at_b(key: str) -> None:
    with noted(NAMES, key, 0) as each:
        for name in each:
            if name == "b":
                os.kill(os.getpid(), signal.SIGKILL)


def test_a_dead_process_leaves_the_image_that_it_was_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    child = multiprocessing.get_context("fork").Process(target=die_at_b, args=("key",))
    child.start()
    child.join(60)
    job = cast(Any, SimpleNamespace(key="key", stage=SimpleNamespace(name="crf")))
    died = ClusterError("a worker died", "", "lower execution.map_workers")
    told = _with_image(died, job, 0, NAMES)
    assert isinstance(told, ClusterError) and told.where == "stage crf, image b"
    assert "look at that image" in told.remedy and "lower execution.map_workers" in told.remedy
    told = _with_image(died, job, 0, NAMES)
    assert isinstance(told, ClusterError) and told.where == "stage crf, one of the images a to c"
    assert _with_image(0.5, job, 0, NAMES) == 0.5
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_lives_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with noted(NAMES, "key", 1) as each:
        assert list(each) == list(NAMES)
    with pytest.raises(ValueError, match="wrong"), noted(NAMES, "key", 1) as each:
        next(each)
        raise ValueError("wrong")
    assert last_image("key", 1) == "" and list(tmp_path.iterdir()) == []
