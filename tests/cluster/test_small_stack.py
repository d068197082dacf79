"""The stack of one command without PostgreSQL: a training on two nodes, data and results on S3, MLflow."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from tests.cluster.stack_user import (
    DATA,
    END_SECONDS,
    ROOT,
    SMALL,
    first_run,
    nodes_of_training,
    objects_of,
    processes_of,
    sockets_of,
    start,
    tracked,
)
from tests.data.conftest import as_voc

from wsss.data.config import DatasetConfig
from wsss.data.dataset import load_dataset
from wsss.data.shapes import ShapesConfig


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the stack needs Linux")
def test_a_training_on_two_nodes_of_the_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    above = Path(tempfile.mkdtemp(prefix="wsss-stack-test-"))
    folder = above / "stack"
    stack = start(folder, "--sqlite")
    try:
        assert "WSSS_STUDY" not in stack.variables
        shapes = ShapesConfig(train=8, train_aug_extra=4, val=2, size=64)
        data = as_voc(load_dataset(DatasetConfig(shapes=shapes), above / "made"), above / "VOC2012")
        stack.run("-m", "wsss.commands.main", "data", "push", "voc2012", f"dataset.root={data}", DATA)
        stack.run("reproduce.py", "--method", "ssc", "--until", "cam_evaluation", f"dataset.root={DATA}", *SMALL)
        record = first_run(stack)
        (training,) = [stage for stage in record.stages if stage.kind == "train"]
        assert (training.status, training.workers) == ("executed", 2)
        assert nodes_of_training(stack) == (2, 2)
        assert any("cam/miou_train" in run.data.metrics for run in tracked(stack, monkeypatch))
        objects = objects_of(stack)
        assert any(name.startswith("store/cam_train/") for name in objects)
        assert any(name.startswith("mlflow/") and name.endswith("report/index.html") for name in objects)
        down = [sys.executable, str(ROOT / "cluster" / "stack.py"), "down", "--folder", str(folder)]
        subprocess.run(down, check=True, timeout=END_SECONDS)
        assert stack.process.wait(timeout=5) == 0
        assert processes_of(above) == [] and sockets_of(stack) == []
    finally:
        stack.process.terminate()
        stack.process.wait(timeout=END_SECONDS)
        shutil.rmtree(above, ignore_errors=True)
