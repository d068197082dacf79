"""Runs on a real local Ray: counts of executed stages, faults, resume. One toy method, one cluster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.execution import toy_method
from tests.store.children import check_content

from wsss.data.view import LabelFirewallError
from wsss.errors import WsssError
from wsss.execution.nodes import NodeType, growing_cluster, present_cluster
from wsss.execution.prepare import prepare_run
from wsss.execution.scheduling import SchedulingError, check_schedulable
from wsss.execution.stage_job import HISTORY_FILE
from wsss.run_record import find_runs
from wsss.store import open_store

SMALL = [
    "dataset.shapes.train=24",
    "dataset.shapes.train_aug_extra=2",
    "dataset.shapes.val=2",
    "dataset.shapes.size=48",
]


ROOT = Path(__file__).parents[2]
# Workers inherit it from the Ray that is started here and find the toy method through it.
PYTHON_PATH = os.pathsep.join(str(ROOT / folder) for folder in ("platform", "methods", ""))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    from wsss.execution.cluster import connect, disconnect

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PYTHON_PATH)
        connect(cpus=2)
    yield
    disconnect()


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def undisturbed(cluster: None, shared_home: Path) -> Any:
    return toy_method.run(shared_home, SMALL)


def statuses(result: Any) -> dict[str, str]:
    return {stage.name: stage.status for stage in result.record.stages}


def mean_of(result: Any) -> np.ndarray:
    store = open_store(result.record.store_url)
    artifact = store.find("toy_mean", result.record.keys["toy_mean"])
    assert artifact is not None
    with np.load(artifact.path("arrays.npz"), allow_pickle=False) as arrays:
        return arrays["mean"]


def history_of(result: Any) -> dict[str, list[float]]:
    artifact = open_store(result.record.store_url).find("toy_train", result.record.keys["toy_train"])
    assert artifact is not None
    return artifact.json(HISTORY_FILE)


def planned_faults(folder: Path, *faults: str) -> Path:
    folder.mkdir()
    for fault in faults:
        (folder / fault).touch()
    return folder


def test_first_run_executes_all_and_second_run_nothing(undisturbed: Any, shared_home: Path) -> None:
    assert statuses(undisturbed) == {"toy_train": "executed", "toy_score": "executed", "toy_mean": "executed"}
    losses = history_of(undisturbed)["loss"]
    assert len(losses) == 12 and losses[-1] < losses[0]
    again = toy_method.run(shared_home, SMALL)
    assert again.record.executed == 0
    assert again.record.metrics == undisturbed.record.metrics
    assert again.record.run_id != undisturbed.record.run_id


def test_only_the_stages_behind_a_change_execute(undisturbed: Any, shared_home: Path) -> None:
    changed = toy_method.run(shared_home, [*SMALL, "score.power=2.0"])
    assert statuses(changed) == {"toy_train": "cached", "toy_score": "executed", "toy_mean": "executed"}
    assert changed.record.metrics["toy/miou_train"] < undisturbed.record.metrics["toy/miou_train"]


def test_two_workers_give_the_same_losses_and_keys(undisturbed: Any, cluster: None, tmp_path: Path) -> None:
    two = toy_method.run(
        tmp_path, [*SMALL, "execution.train_workers=2", "execution.threads=1", "execution.mode=parity"]
    )
    assert two.record.keys == undisturbed.record.keys
    np.testing.assert_allclose(history_of(two)["loss"], history_of(undisturbed)["loss"], rtol=1e-4)
    np.testing.assert_allclose(mean_of(two), mean_of(undisturbed), rtol=1e-4)
    assert [stage.workers for stage in two.record.stages if stage.name == "toy_train"] == [2]
    assert {stage.mode for stage in two.record.stages} == {"parity"}
    assert {stage.mode for stage in undisturbed.record.stages} == {"fast"}


def test_killed_workers_do_not_fail_the_run(undisturbed: Any, cluster: None, tmp_path: Path) -> None:
    faults = planned_faults(tmp_path / "faults", "kill-train-worker", "kill-map-worker")
    result = toy_method.run(tmp_path, [*SMALL, f"faults={faults}"])
    assert not list(faults.iterdir()), "both workers were killed"
    assert history_of(result) == history_of(undisturbed)
    np.testing.assert_array_equal(mean_of(result), mean_of(undisturbed))


def test_an_error_is_told_once_and_what_was_finished_stays(undisturbed: Any, cluster: None, tmp_path: Path) -> None:
    faults = planned_faults(tmp_path / "faults", "map-error")
    with pytest.raises(WsssError, match="the planned map error"):
        toy_method.run(tmp_path, [*SMALL, f"faults={faults}"])
    (failed,) = find_runs(tmp_path)
    assert failed.status == "failed" and "planned map error" in failed.error
    result = toy_method.run(tmp_path, [*SMALL, f"faults={faults}"])
    assert result.record.run_id == failed.run_id, "the same command continues the same run"
    assert statuses(result) == {"toy_train": "cached", "toy_score": "executed", "toy_mean": "executed"}
    facts = {stage.name: stage.facts for stage in result.record.stages}
    assert facts["toy_score"]["resumed_images"] == 16, "finished shards were kept"
    np.testing.assert_array_equal(mean_of(result), mean_of(undisturbed))


def test_an_error_in_training_carries_its_own_words(cluster: None, tmp_path: Path) -> None:
    faults = planned_faults(tmp_path / "faults", "train-error")
    with pytest.raises(WsssError, match="the planned error"):
        toy_method.run(tmp_path, [*SMALL, f"faults={faults}", "execution.max_failures=0"])


def test_training_can_not_open_masks(cluster: None, shared_home: Path, undisturbed: Any, tmp_path: Path) -> None:
    faults = planned_faults(tmp_path / "faults", "read-a-mask")
    (masks,) = shared_home.glob("data/shapes-*/SegmentationClass")
    (faults / "mask-folder").symlink_to(masks)
    with pytest.raises(LabelFirewallError):
        # The same home: the masks that the training worker reaches for are those of its own data set.
        toy_method.run(shared_home, [*SMALL, f"faults={faults}", "seed=7", "execution.max_failures=0"])


def test_what_can_never_be_scheduled_is_refused_at_once(tmp_path: Path) -> None:
    from wsss.execution.prepare import RunRequest
    from wsss.recipe import load_recipe

    def prepared(*overrides: str) -> Any:
        recipe = load_recipe(toy_method.ToyRecipe, None, ["dataset.name=shapes", *SMALL, *overrides])
        return prepare_run(RunRequest(toy_method.METHOD, recipe, "toy", tmp_path, str(tmp_path / "store")))

    many = prepared("execution.train_workers=4", "execution.threads=2")
    with pytest.raises(SchedulingError, match="4 workers with 2 CPU each are asked for; 2 fit at a time"):
        check_schedulable(many.plan, many.execution, present_cluster([{"CPU": 4}]))
    check_schedulable(many.plan, many.execution, present_cluster([{"CPU": 8}]))
    small = (NodeType(name="small", cpus=2, most=3),)
    with pytest.raises(SchedulingError, match="3 fit at a time on small \\(2 CPU, 0 of at most 3 here\\)"):
        check_schedulable(many.plan, many.execution, growing_cluster(small, None, [{"CPU": 0}]))
    check_schedulable(many.plan, many.execution, growing_cluster(small, None, [{"CPU": 2}, {"CPU": 3}]))


def test_what_is_refused_leaves_no_failed_run(cluster: None, tmp_path: Path) -> None:
    with pytest.raises(SchedulingError):
        toy_method.run(tmp_path, [*SMALL, "execution.train_workers=3"])
    assert find_runs(tmp_path) == [] and not (tmp_path / "mlflow.db").exists()


def start(home: Path, *overrides: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.execution.toy_method", str(home), *SMALL, *overrides],
        env={**os.environ, "TOY_VERBOSE": "1", "PYTHONPATH": PYTHON_PATH},
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def wait_for(process: subprocess.Popen[str], stage: str, done: int, timeout: float = 240) -> None:
    """Return when the process has said that so much of the stage is done."""
    assert process.stdout is not None
    deadline = time.monotonic() + timeout
    for line in process.stdout:
        words = line.split()
        if words[:2] == ["UPDATE", stage] and int(words[2]) >= done:
            return
        assert time.monotonic() < deadline, f"{stage} was not at {done} after {timeout} s"
    raise AssertionError(f"ended before {stage} was at {done}")


def kill_at(process: subprocess.Popen[str], stage: str, done: int) -> None:
    wait_for(process, stage, done)
    assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)


def test_a_killed_driver_continues_with_the_same_command(undisturbed: Any, tmp_path: Path) -> None:
    # Held stages cannot end before the kill, however slow the machine is.
    faults = planned_faults(tmp_path / "faults", "hold-toy_train", "hold-toy_score")
    command = ("pause=0.1", f"faults={faults}")
    kill_at(start(tmp_path, *command), "toy_train", 4)
    (faults / "hold-toy_train").unlink()
    kill_at(start(tmp_path, *command), "toy_score", 16)
    (faults / "hold-toy_score").unlink()
    process = start(tmp_path, *command)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    updates = [line for line in output.splitlines() if line.startswith("UPDATE toy_train")]
    assert not updates, "the training was finished by the second attempt"
    result = json.loads(next(line for line in output.splitlines() if line.startswith("METRICS"))[8:])
    assert result == undisturbed.record.metrics
    (record,) = find_runs(tmp_path)
    assert record.status == "finished"
    artifact = open_store(record.store_url).find("toy_train", record.keys["toy_train"])
    assert artifact is not None
    assert artifact.json(HISTORY_FILE) == history_of(undisturbed)
    check_content(artifact)


def test_a_stopped_driver_ends_in_order(cluster: None, tmp_path: Path) -> None:
    faults = planned_faults(tmp_path / "faults", "hold-toy_train")
    process = start(tmp_path, f"faults={faults}")
    wait_for(process, "toy_train", 1)
    process.terminate()  # what `ray job stop` sends
    process.communicate(timeout=180)
    assert process.returncode == 1, "KeyboardInterrupt, not a signal's death"
    (record,) = find_runs(tmp_path)
    assert record.status == "failed" and record.error == "KeyboardInterrupt"
