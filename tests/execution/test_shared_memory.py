"""Batches of loading processes that do not fit into shared memory are refused before the first step."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.execution import toy_training

from wsss.execution.shared_memory import SharedMemoryError, check_shared_memory
from wsss.execution.train_loop import LoopSettings, run_training

SAMPLE = {"image": torch.zeros(3, 10, 10), "label": torch.zeros(20, dtype=torch.uint8)}  # 1220 bytes


def free(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=size))


def test_what_is_free_is_held_against_the_batches_in_flight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 1220 * 16 * 5  # two processes make two batches each, and one is in use
    free(monkeypatch, needed)
    check_shared_memory(SAMPLE, 16, 2, tmp_path)
    free(monkeypatch, needed - 1)
    with pytest.raises(SharedMemoryError, match=r"processes need 97\.6 kB .*16 samples.* 97\.6 kB are free"):
        check_shared_memory(SAMPLE, 16, 2, tmp_path)
    check_shared_memory(SAMPLE, 16, 2, tmp_path / "absent")


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="processes share tensors elsewhere here")
def test_a_training_is_refused_before_its_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 10)
    task = toy_training.task()
    with pytest.raises(SharedMemoryError, match=r"execution\.loader_workers=0"):
        run_training(task, 3, LoopSettings(loader_workers=1), toy_training.events(), None)
    history = run_training(task, 3, LoopSettings(), toy_training.events(), None)
    assert len(history["loss"]) == 12, "without such processes nothing is shared"
