"""The stack of one command, used as its README says: a training on two nodes, a sweep whose study is in PostgreSQL,
MLflow with its artifacts on S3, and nothing left at the end, also after SIGKILL."""

from __future__ import annotations

import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import optuna
import pytest
from mlflow.tracking import MlflowClient
from tests.cluster.stack_user import (
    DATA,
    END_SECONDS,
    ROOT,
    SMALL,
    Stack,
    contents_of,
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
from tests.store.conftest import use

from wsss.data.config import DatasetConfig
from wsss.data.dataset import load_dataset
from wsss.data.packed import read_index
from wsss.data.shapes import ShapesConfig
from wsss.execution.prepare import RunRequest, prepare_run
from wsss.recipe import load_recipe
from wsss.run_record import find_runs
from wsss.search.records import find_sweeps
from wsss.store.s3 import S3Files
from wsss_methods.ssc import METHOD

METRIC = "pseudo_label/miou_train"
SWEEP = ("--method", "ssc", "--space", "ssc_postprocessing", "--metric", METRIC, "--trials", "4", "--no-training")
WHOLE = ("reproduce.py", "--method", "ssc", "--until", "pseudo_label_evaluation", f"dataset.root={DATA}", *SMALL)
AWAY_SECONDS = 60

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    above = Path(tempfile.mkdtemp(prefix="wsss-stack-test-"))
    above.chmod(0o755)  # as root, PostgreSQL runs as another user
    if not has_database(above):
        above.rmdir()
        pytest.skip("PostgreSQL (apt install postgresql) or its driver (the extra tracking-server) cannot be used")
    yield above / "stack"
    assert processes_of(above) == []
    shutil.rmtree(above, ignore_errors=True)


@pytest.fixture(scope="module")
def stack(folder: Path) -> Iterator[Stack]:
    started = start(folder)
    yield started
    started.process.terminate()
    started.process.wait(timeout=END_SECONDS)


@pytest.fixture(scope="module")
def data(folder: Path) -> Path:
    """A folder of data that only this process knows."""
    shapes = ShapesConfig(train=12, train_aug_extra=4, val=4, size=64)
    return as_voc(load_dataset(DatasetConfig(shapes=shapes), folder.parent / "made"), folder.parent / "VOC2012")


@pytest.fixture(scope="module")
def reproduced(stack: Stack, data: Path) -> Stack:
    """A training of two workers has run, on data in the object store."""
    stack.run("-m", "wsss.commands.main", "data", "push", "voc2012", f"dataset.root={data}", DATA)
    stack.run("reproduce.py", "--method", "ssc", "--until", "cam_evaluation", f"dataset.root={DATA}", *SMALL)
    return stack


@pytest.fixture(scope="module")
def swept(reproduced: Stack) -> Stack:
    """A sweep over what follows that training has run."""
    said = reproduced.run("tune.py", *SWEEP, f"dataset.root={DATA}", *SMALL)
    assert password(reproduced) not in said
    reproduced.run("-m", "wsss.commands.main", "track", "sync")  # a slow server is not waited for at the end of a run
    return reproduced


def test_it_says_where_the_variables_are_and_no_secret(stack: Stack) -> None:
    assert {"RAY_ADDRESS", "WSSS_STORE", "MLFLOW_TRACKING_URI", "WSSS_STUDY"} <= set(stack.variables)
    assert all(name in stack.said for name in stack.variables)
    token = Path(stack.variables["RAY_AUTH_TOKEN_PATH"])
    assert token.stat().st_mode & 0o077 == Path(stack.variables["PGPASSFILE"]).stat().st_mode & 0o077 == 0
    for secret in (password(stack), token.read_text(), stack.variables["AWS_SECRET_ACCESS_KEY"]):
        assert secret not in stack.said and secret not in command_lines()


def test_a_second_one_in_the_same_folder_is_refused(stack: Stack) -> None:
    command = [sys.executable, str(ROOT / "cluster" / "stack.py"), "up", "--folder", str(stack.folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "a stack runs in" in done.stderr
    assert stack.process.poll() is None and (stack.folder / "environment.sh").is_file()


def test_the_two_workers_of_a_training_are_on_two_nodes(reproduced: Stack) -> None:
    record = first_run(reproduced)
    (training,) = [stage for stage in record.stages if stage.kind == "train"]
    assert (training.name, training.status, training.workers) == ("cam_train", "executed", 2)
    assert nodes_of_training(reproduced) == (2, 2)
    assert record.store_url == reproduced.variables["WSSS_STORE"]


def test_each_node_has_fetched_the_data_into_its_home_and_keys_are_those_of_the_folder(
    reproduced: Stack, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use({name: value for name, value in reproduced.variables.items() if name.startswith("AWS_")}, monkeypatch)
    digest = read_index(S3Files("wsss", "data/small", tmp_path)).digest
    for home in ("home", "worker_1", "worker_2"):
        fetched = reproduced.folder / home / "data" / "fetched" / digest / "files"
        for name in ("JPEGImages", "SegmentationClass"):
            wanted = {path.name: path.read_bytes() for path in (data / name).iterdir()}
            assert {path.name: path.read_bytes() for path in (fetched / name).iterdir()} == wanted
    record = first_run(reproduced)
    recipe = load_recipe(METHOD.recipe_type, METHOD.recipe_path("demo"), [f"dataset.root={data}", *SMALL])
    plan = prepare_run(RunRequest(METHOD, recipe, "demo", tmp_path, str(tmp_path / "store"), None, "cam_evaluation"))
    assert {planned.stage.name: planned.key for planned in plan.plan.stages} == record.keys


def test_a_job_is_submitted_with_the_line_of_the_readme(reproduced: Stack) -> None:
    (line,) = {
        line.strip()
        for line in (ROOT / "cluster" / "README.md").read_text().splitlines()
        if line.startswith("    ray job submit --working-dir . --runtime-env") and line.endswith("--method ssc")
    }
    words = [*shlex.split(line), "--until", "cam_evaluation", f"dataset.root={DATA}", *SMALL]
    said = reproduced.run("-m", "ray.scripts.scripts", *words[1:])
    assert "succeeded" in said
    record = max(find_runs(Path(reproduced.variables["WSSS_HOME"])), key=lambda record: record.started)
    assert record.provenance["ray_job_id"].startswith("raysubmit_")
    assert {stage.status for stage in record.stages} == {"cached"}, said


def test_the_study_of_a_sweep_is_in_postgresql(swept: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSFILE", swept.variables["PGPASSFILE"])
    home = Path(swept.variables["WSSS_HOME"])
    (record,) = find_sweeps(home)
    study = optuna.load_study(study_name=record.sweep_id, storage=swept.variables["WSSS_STUDY"])
    assert sorted(trial.user_attrs["trial"] for trial in study.get_trials()) == [0, 1, 2, 3]
    assert record.best is not None and study.best_value >= record.best.value
    written = b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())
    assert record.sweep_id.encode() in written and password(swept).encode() not in written
    assert not list(home.rglob("study.db*")), "SQLite was not used"


def test_mlflow_has_runs_metrics_and_artifacts_on_s3(swept: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    found = tracked(swept, monkeypatch)
    numbers = {name for run in found for name in run.data.metrics}
    assert {"cam/miou_train", METRIC} <= numbers
    assert len([run for run in found if run.data.tags.get("trial")]) >= 4
    client = MlflowClient(swept.variables["MLFLOW_TRACKING_URI"])
    with_report = [
        run for run in found if any(file.path == "report" for file in client.list_artifacts(run.info.run_id))
    ]
    assert with_report
    page = Path(client.download_artifacts(with_report[0].info.run_id, "report/index.html"))
    assert "<html" in page.read_text()
    objects = objects_of(swept)
    assert any(name.startswith("mlflow/") and name.endswith("report/index.html") for name in objects)
    assert any(name.startswith("store/cam_train/") for name in objects)
    # Ray Train's file system leaves an empty object that stands for the folder.
    assert [name for name in objects if name.startswith("store/checkpoints/")] in ([], ["store/checkpoints/"])


def test_services_that_are_killed_and_away_for_a_minute_cost_nothing(swept: Stack) -> None:
    """S3 in a training, a node and then MLflow in another; PostgreSQL in a sweep; all goes on by itself."""
    swept.run(*WHOLE)
    place = elsewhere(swept, "disturbed")
    command = swept.begin(*WHOLE, **place)
    command.wait_for("cam_train: started")
    swept.outage("object_store", AWAY_SECONDS)
    command.wait_for("affinity_train: started")
    swept.outage("ray_worker_1", 5)
    swept.outage("mlflow", AWAY_SECONDS)
    assert command.wait() == 0, command.said
    assert "the object store answers, after" in command.said and "error:" not in command.said
    check_same_contents(swept, "disturbed")
    executed = [stage.status for run in find_runs(Path(place["WSSS_HOME"])) for stage in run.stages]
    assert executed == ["executed"] * 9

    (before,) = find_sweeps(Path(swept.variables["WSSS_HOME"]))
    command = swept.begin("tune.py", *SWEEP, f"dataset.root={DATA}", *SMALL, "--new", **place)
    command.wait_for("metric pseudo_label/miou_train")
    swept.outage("postgres", AWAY_SECONDS)
    assert command.wait() == 0, command.said
    (after,) = find_sweeps(Path(place["WSSS_HOME"]))
    assert trials_of(swept, after.sweep_id) == trials_of(swept, before.sweep_id)


def test_a_head_that_dies_is_told_and_the_same_command_goes_on_with_a_new_one(swept: Stack) -> None:
    place = elsewhere(swept, "headless")
    command = swept.begin(*WHOLE, **place)
    command.wait_for("cam_train: started")
    swept.outage("ray_head", 5)
    assert command.wait() == 1
    assert command.said.count("error:") == 1 and "start the cluster again; the same command continues" in command.said
    swept.run(*WHOLE, **place)
    check_same_contents(swept, "headless")


def test_down_ends_all_of_it_and_the_next_start_finds_it_again(
    swept: Stack, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, objects = len(tracked(swept, monkeypatch)), objects_of(swept)
    command = [sys.executable, str(ROOT / "cluster" / "stack.py"), "down", "--folder", str(folder)]
    subprocess.run(command, check=True, timeout=END_SECONDS)
    assert swept.process.wait(timeout=5) == 0
    assert processes_of(folder) == [] and not (folder / "environment.sh").exists()
    assert sockets_of(swept) == []
    again = start(folder)
    try:
        assert len(tracked(again, monkeypatch)) == runs and objects_of(again) == objects
        assert len(processes_of(folder)) > 10
        again.process.send_signal(signal.SIGKILL)
        again.process.wait()
        deadline = time.monotonic() + END_SECONDS
        while processes_of(folder) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert processes_of(folder) == []
        assert sockets_of(again) == []
    finally:
        again.process.kill()


def elsewhere(stack: Stack, name: str) -> dict[str, str]:
    """Variables of a store and a home that hold nothing yet."""
    return {"WSSS_STORE": f"s3://wsss/{name}", "WSSS_HOME": str(stack.folder / f"home-{name}")}


def check_same_contents(stack: Stack, store: str) -> None:
    """Every artifact of a store has the files of the one that nothing disturbed."""
    found, undisturbed = contents_of(stack, store), contents_of(stack, "store")
    assert len(found) >= 9
    assert found == {place: files for place, files in undisturbed.items() if place in found}


def trials_of(stack: Stack, sweep_id: str) -> dict[int, float]:
    """Of a study in PostgreSQL: number of the trial -> its value."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGPASSFILE", stack.variables["PGPASSFILE"])
        study = optuna.load_study(study_name=sweep_id, storage=stack.variables["WSSS_STUDY"])
    return {trial.user_attrs["trial"]: trial.values[0] for trial in study.get_trials()}


def password(stack: Stack) -> str:
    return Path(stack.variables["PGPASSFILE"]).read_text().strip().rpartition(":")[2]


def command_lines() -> str:
    """Of all processes, as everybody on the machine may read them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has just ended
            found.append(path.read_bytes().decode(errors="replace"))
    return "\n".join(found)
