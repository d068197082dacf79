"""How a training ends when something beside it fails. Ray Train is pretended: it waits until it is interrupted."""

from __future__ import annotations

import errno
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from ray.train import TrainingFailedError
from ray.train.torch import TorchTrainer

from wsss.execution import train_stage
from wsss.execution.train_loop import LoopSettings, TrainingError
from wsss.execution.train_stage import TrainPlan, run_train_stage
from wsss.tracking.spool import TrackingError

JOB: Any = SimpleNamespace(stage=SimpleNamespace(name="cam_train"), key="k")
LONGEST_SECONDS = 60


def interrupted() -> None:
    time.sleep(LONGEST_SECONDS)
    raise AssertionError("the training went on although its record cannot be written")


def train(
    fit: Callable[[], Any],
    on_progress: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    failure: Exception | None = None,
) -> Any:
    """`run_train_stage` with a training that reports one step; `failure` is raised to whoever asks for its reason."""

    def reason() -> None:
        if failure is not None:
            raise failure

    board = SimpleNamespace(
        news=SimpleNamespace(remote=lambda: (12, [(3, {"loss": 0.5})], [], [])), failure=SimpleNamespace(remote=reason)
    )
    pretended = SimpleNamespace(
        get_runtime_context=lambda: SimpleNamespace(get_node_id=lambda: "node"),
        remote=lambda **_: lambda _: SimpleNamespace(remote=lambda: board),
        get=lambda value, timeout=None: value,
        kill=lambda _: None,
        train=SimpleNamespace(TrainingFailedError=TrainingFailedError),
    )
    monkeypatch.setattr(train_stage, "ray", pretended)
    monkeypatch.setattr(train_stage, "_Trainer", lambda *_, **__: SimpleNamespace(fit=fit))
    monkeypatch.setattr(train_stage, "NodeWatch", lambda *_: SimpleNamespace(look=lambda *_: None, waited=0.0))
    monkeypatch.setattr(train_stage, "waits_for_group", lambda *_: False)
    monkeypatch.setattr(train_stage, "training_name", lambda *_: "name")
    plan = TrainPlan(1, False, 1, LoopSettings(), 3, str(tmp_path))
    return run_train_stage(JOB, plan, on_progress, lambda text: None)


@pytest.mark.parametrize("refusal", [TrackingError("no space", "here"), OSError(errno.ENOSPC, "No space left")])
def test_a_record_or_a_screen_that_cannot_be_written_ends_the_training(
    refusal: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(total: int, steps: Any) -> None:
        raise refusal

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as `connect` does
    try:
        with pytest.raises(type(refusal)) as caught:
            train(interrupted, refuse, monkeypatch, tmp_path)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught.value is refusal
    assert "Traceback" not in capfd.readouterr().err


def test_it_is_told_also_when_the_training_has_just_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(total: int, steps: Any) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        train(lambda: SimpleNamespace(return_value={"steps": 3}), refuse, monkeypatch, tmp_path)


def test_ctrl_c_stays_ctrl_c(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def stopped() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(stopped, lambda total, steps: None, monkeypatch, tmp_path)


def test_a_lost_board_costs_the_reason_and_not_the_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def failed() -> None:
        raise TrainingFailedError("the worker was lost")

    with pytest.raises(TrainingError, match="training failed: the worker was lost"):
        train(failed, lambda total, steps: None, monkeypatch, tmp_path, ActorDiedError())


def test_ray_takes_over_no_ctrl_c() -> None:
    """Ray's handler outlives the training: in a later stage it ends the process with exit code 0 and says nothing."""
    before = signal.getsignal(signal.SIGINT)
    try:
        object.__new__(train_stage._Trainer)._register_sigint_handler(None)
        assert signal.getsignal(signal.SIGINT) is before
        object.__new__(TorchTrainer)._register_sigint_handler(None)  # pyright: ignore[reportArgumentType]
        assert signal.getsignal(signal.SIGINT) is not before, "Ray has another way now: look at `_Trainer` again"
    finally:
        signal.signal(signal.SIGINT, before)
