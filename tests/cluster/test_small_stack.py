"""The stack of one command: a training on two nodes, data and results on S3, a sweep with its study in PostgreSQL where
that is installed, all of it side by side in MLflow."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import optuna
import pytest
from tests.cluster.stack_user import (
    DATA,
    END_SECONDS,
    ROOT,
    SMALL,
    first_run,
    has_database,
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
from wsss.search.records import find_sweeps

# Of a training that there is already.
SPACE = "method: ssc\nkeys:\n  cam_inference.scales: {categorical: [[1.0], [1.0, 0.5]]}\n"
SWEEP = ("--method", "ssc", "--metric", "cam/miou_train", "--trials", "2", "--no-training")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the stack needs Linux")
def test_a_training_and_a_sweep_on_two_nodes_of_the_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    above = Path(tempfile.mkdtemp(prefix="wsss-stack-test-"))
    above.chmod(0o755)  # as root, PostgreSQL runs as another user
    folder, with_postgres = above / "stack", has_database(above)
    stack = start(folder, *(() if with_postgres else ("--sqlite",)))
    try:
        assert ("WSSS_STUDY" in stack.variables) == with_postgres
        shapes = ShapesConfig(train=8, train_aug_extra=4, val=2, size=64)
        data = as_voc(load_dataset(DatasetConfig(shapes=shapes), above / "made"), above / "VOC2012")
        stack.run("-m", "wsss.commands.main", "data", "push", "voc2012", f"dataset.root={data}", DATA)
        stack.run("reproduce.py", "--method", "ssc", "--until", "cam_evaluation", f"dataset.root={DATA}", *SMALL)
        record = first_run(stack)
        (training,) = [stage for stage in record.stages if stage.kind == "train"]
        assert (training.status, training.workers) == ("executed", 2)
        assert nodes_of_training(stack) == (2, 2)
        (above / "space.yaml").write_text(SPACE)
        stack.run("tune.py", "--space", str(above / "space.yaml"), *SWEEP, f"dataset.root={DATA}", *SMALL)
        (sweep,) = find_sweeps(Path(stack.variables["WSSS_HOME"]))
        if with_postgres:
            monkeypatch.setenv("PGPASSFILE", stack.variables["PGPASSFILE"])
            study = optuna.load_study(study_name=sweep.sweep_id, storage=stack.variables["WSSS_STUDY"])
            assert sorted(trial.user_attrs["trial"] for trial in study.get_trials()) == [0, 1]
        found = tracked(stack, monkeypatch)
        assert any("cam/miou_train" in run.data.metrics for run in found)
        assert len([run for run in found if run.data.tags.get("trial")]) == 2
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
