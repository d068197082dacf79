"""A run that is killed while it trains ends, by the same command, as an undisturbed one, bit by bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tests.methods.i2crc.test_stages import SMALL as I2CRC
from tests.methods.msa.test_stages import SMALL as MSA
from tests.methods.sbnet.test_stages import SMALL as SBNET

from wsss.execution.stage_job import HISTORY_FILE
from wsss.run_record import RunRecord, find_runs
from wsss.store import Artifact, open_store

ROOT = Path(__file__).parents[2]
TIMEOUT_SECONDS = 300


@dataclass(frozen=True)
class Case:
    """A method, its demo made small and long enough to be killed in the middle, and the trainings that are killed."""

    method: str
    overrides: Sequence[str]
    trainings: tuple[str, ...]


CASES = (
    Case("sbnet", (*SBNET, "cam.num_epochs=30", "affinity.num_epochs=30"), ("cam_train", "affinity_train")),
    Case(
        "i2crc",
        (*I2CRC, "cam.num_epochs=30", "segmentation.steps=60"),
        ("cam_train", "segmentation_round1_train", "segmentation_train"),
    ),
    Case(
        "msa",
        (*MSA, "superpixels.num_epochs=30", "train.num_epochs=30", "segmentation.steps=60"),
        ("superpixel_train", "cam_train", "segmentation_train"),
    ),
)


def start(case: Case, home: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "reproduce.py", "--method", case.method, "--until", case.trainings[-1], *case.overrides]
    environment = {**os.environ, "WSSS_HOME": str(home)}
    with (home.parent / f"{home.name}.log").open("ab") as log:
        return subprocess.Popen(
            [*command, "execution.checkpoint_steps=2"], cwd=ROOT, env=environment, stdout=log, stderr=log
        )


def finished(case: Case, home: Path) -> RunRecord:
    process = start(case, home)
    try:
        code = process.wait(TIMEOUT_SECONDS)
    finally:
        process.kill()
    assert code == 0, (home.parent / f"{home.name}.log").read_text()[-3000:]
    return find_runs(home)[-1]


def kill_in(case: Case, home: Path, training: str) -> None:
    """Start the command and kill its driver as soon as the training has saved a checkpoint."""
    process = start(case, home)
    try:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not list(home.glob(f"checkpoints/{training}-*/checkpoint_*/state.pt")):
            assert process.poll() is None, (home.parent / f"{home.name}.log").read_text()[-3000:]
            assert time.monotonic() < deadline, f"no checkpoint of {training} after {TIMEOUT_SECONDS} s"
            time.sleep(0.02)
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(10)


def trained(record: RunRecord, stage: str) -> Artifact:
    artifact = open_store(record.store_url).find(stage, record.keys[stage])
    assert artifact is not None
    return artifact


def weights_of(artifact: Artifact) -> dict[str, torch.Tensor]:
    (file,) = (name for name in artifact.files if name.endswith(".pt") and "/" not in name)
    return torch.load(artifact.path(file), weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.method)
def test_a_run_killed_in_every_training_ends_as_an_undisturbed_one(case: Case, tmp_path: Path) -> None:
    undisturbed = finished(case, tmp_path / "undisturbed")
    killed = tmp_path / "killed"
    for training in case.trainings:
        kill_in(case, killed, training)
    record = finished(case, killed)
    assert record.status == "finished" and len(find_runs(killed)) == 1
    facts = {stage.name: stage.facts for stage in record.stages}
    assert facts[case.trainings[-1]]["resumed_steps"] > 0
    for training in case.trainings:
        expected, after = trained(undisturbed, training), trained(record, training)
        assert after.json(HISTORY_FILE) == expected.json(HISTORY_FILE), training
        expected_weights, weights = weights_of(expected), weights_of(after)
        assert weights.keys() == expected_weights.keys()
        for name, value in expected_weights.items():
            assert torch.equal(weights[name], value), (training, name)
