"""Whole sweeps on a real local Ray: records, study, MLflow, reuse, faults, continuation. No stage here trains."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from mlflow.tracking import MlflowClient
from tests.search import planted_method
from tests.search.planted_method import METRIC, QUALITY, PlantedRecipe

from wsss.errors import WsssError
from wsss.plan import CostHistory
from wsss.recipe import flat_dict, load_recipe
from wsss.search.records import BEST_FILE, STUDY_FILE, Rung, SweepRecord, TrialRecord, load_sweep, load_trials
from wsss.search.request import prepare_sweep
from wsss.search.sweep import SweepObserver, run_sweep
from wsss.store import open_store
from wsss.tracking import default_uri
from wsss.tracking.names import sweep_experiment
from wsss.tracking.view import VIEW_TAG, view_of

ROOT = Path(__file__).parents[2]
PYTHON_PATH = os.pathsep.join(str(ROOT / folder) for folder in ("platform", "methods", ""))
STAGES = ("base", "detail", "detail_score", "detail_evaluation")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    from wsss.execution.cluster import connect, disconnect

    with pytest.MonkeyPatch.context() as patch:
        # Workers inherit it from the Ray that is started here and find the planted method through it.
        patch.setenv("PYTHONPATH", PYTHON_PATH)
        connect(cpus=2)
    yield
    disconnect()


def sweep(home: Path, *overrides: str, **options: Any) -> SweepRecord:
    """A sweep in this process."""
    return run_sweep(prepare_sweep(planted_method.request(home, overrides, **options)), SweepObserver())


def folder_of(home: Path, record: SweepRecord) -> Path:
    return home / "sweeps" / record.sweep_id


def study_of(home: Path, record: SweepRecord) -> optuna.Study:
    url = f"sqlite:///{folder_of(home, record) / STUDY_FILE}"
    assert optuna.get_all_study_names(url) == [record.sweep_id]
    return optuna.load_study(study_name=record.sweep_id, storage=url)


def numbers_in_study(study: optuna.Study) -> list[int]:
    return sorted(trial.user_attrs["trial"] for trial in study.get_trials())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def done(cluster: None, home: Path) -> SweepRecord:
    return sweep(home)


@pytest.fixture(scope="module")
def trials(home: Path, done: SweepRecord) -> list[TrialRecord]:
    return load_trials(folder_of(home, done))


def test_a_sweep_improves_on_the_recipe_and_records_every_trial(done: SweepRecord, trials: list[TrialRecord]) -> None:
    assert done.status == "finished" and [trial.number for trial in trials] == list(range(12))
    assert Counter(trial.status for trial in trials) == {"finished": 12}
    assert trials[0].settings == {"base.position": 0.1, "detail.scale": 0.9, "detail.kind": "blunt"}
    assert done.best is not None and done.best.value == max(trial.values[METRIC] for trial in trials)
    assert done.best.reported > done.best.default_reported + 0.05
    nearest = min(trials, key=lambda trial: planted_method.distance(trial.settings))
    assert done.best.trial == nearest.number, "less is exchanged the nearer a setting lies to the planted optimum"


def test_the_threshold_is_read_off_the_curve_and_held_out(trials: list[TrialRecord]) -> None:
    for trial in trials:
        assert trial.threshold is not None and 0.4 <= trial.threshold <= 0.5
        assert len(trial.curve) == 46 and trial.oracle == max(point.value for point in trial.curve)
        assert trial.default_value is not None and trial.oracle is not None
        assert trial.default_value < trial.oracle, "at 0.2 there is no background"
        assert trial.chosen == trial.values[METRIC] and trial.quoted == trial.held_out
        assert trial.low is not None and trial.high is not None and trial.held_out is not None
        assert trial.low <= trial.held_out <= trial.high
        assert "evaluation.threshold" not in trial.settings


def test_stages_asked_executed_and_served_add_up(home: Path, done: SweepRecord, trials: list[TrialRecord]) -> None:
    assert done.asked == 48 == done.executed + done.served
    executed = [(use.name, use.key) for trial in trials for use in trial.stages if use.executed]
    assert len(executed) == len(set(executed)) == done.executed, "no artifact is computed twice"
    published = {(ref.stage, ref.key) for ref in open_store(str(home / "store")).list()}
    whole = {(use.name, use.key) for use in trials[0].stages}
    assert published == {each for each in executed if each in whole or each[0] != "detail"}, "maps stay in memory"
    for trial in trials:
        assert tuple(use.name for use in trial.stages) == STAGES
        assert trial.artifacts == {use.name: use.key for use in trial.stages[2:]}
        # Maps are for 18 images and 16 are scored: what was computed in memory is extrapolated.
        share = {"detail_score": 1.0 if trial.number == 0 else 16 / 18}
        cost = sum(use.seconds / share.get(use.name, 1.0) for use in trial.stages)
        assert trial.cost_seconds == pytest.approx(cost)
    assert done.independent_seconds == pytest.approx(sum(trial.cost_seconds for trial in trials))


def test_the_study_holds_each_trial_once(home: Path, done: SweepRecord, trials: list[TrialRecord]) -> None:
    study = study_of(home, done)
    assert numbers_in_study(study) == list(range(12))
    assert study.best_value == pytest.approx(max(trial.values[METRIC] for trial in trials))
    assert set(study.best_params) >= {"base.position", "detail.scale", "detail.kind"}
    first = next(trial for trial in study.get_trials() if trial.user_attrs["trial"] == 0)
    assert first.params == trials[0].settings
    assert first.user_attrs["held_out"] == pytest.approx(trials[0].held_out)
    assert optuna.importance.get_param_importances(study)


def test_best_yaml_is_a_recipe(home: Path, done: SweepRecord) -> None:
    path = folder_of(home, done) / BEST_FILE
    best = flat_dict(load_recipe(PlantedRecipe, path))
    assert done.best is not None and "evaluation.threshold" in done.best.settings
    before = flat_dict(planted_method.request(home).recipe)
    assert {key: best[key] for key in done.best.settings} == pytest.approx(done.best.settings)
    unchanged = set(before) - set(done.best.settings)
    assert {key: best[key] for key in unchanged} == {key: before[key] for key in unchanged}
    assert "execution" not in yaml.safe_load(path.read_text())


def test_the_same_sweep_again_executes_nothing(home: Path, done: SweepRecord, trials: list[TrialRecord]) -> None:
    again = sweep(home)
    assert (again.sweep_id, again.executed, again.asked) == (done.sweep_id, done.executed, done.asked)
    assert load_trials(folder_of(home, again)) == trials
    assert numbers_in_study(study_of(home, again)) == list(range(12))


def test_the_page_of_a_sweep_shows_what_its_trials_differ_by(home: Path, done: SweepRecord) -> None:
    client = MlflowClient(default_uri(home))
    experiment = client.get_experiment_by_name(sweep_experiment(done.dataset, done.sweep_id))
    assert experiment is not None
    view = view_of(experiment.tags[VIEW_TAG])
    runs = client.search_runs([experiment.experiment_id], json.loads(experiment.tags[VIEW_TAG])["searchFilter"])
    assert len(runs) == len(load_trials(folder_of(home, done))) and view.params
    for run in runs:  # MLflow leaves one out of parallel coordinates that lacks a value
        assert set(view.params) <= set(run.data.params) and view.metrics[0] in run.data.metrics


def test_another_sweep_over_the_same_trials_is_served_from_the_store(home: Path, done: SweepRecord) -> None:
    other = sweep(home, name="other", select="oracle")
    assert (other.asked, other.served) == (48, 48 - other.executed)
    assert other.executed <= 4 * 12 - 4, "the recipe itself, at least, is there"
    first = load_trials(folder_of(home, other))[0]
    assert first.stages and not any(use.executed for use in first.stages)
    with pytest.raises(WsssError, match="another sweep has this name"):
        sweep(home, name="other", select="held_out")


def test_more_trials_continue_a_sweep(home: Path, done: SweepRecord, trials: list[TrialRecord]) -> None:
    more = sweep(home, trials=15)
    assert more.sweep_id == done.sweep_id
    found = load_trials(folder_of(home, more))
    assert len(found) == 15 and found[:12] == trials
    assert numbers_in_study(study_of(home, more)) == list(range(15))


def make_costly(home: Path, *stages: str) -> None:
    """As if earlier runs had measured 100 s for these stages."""
    costs = CostHistory(home / "costs.json")
    for planned in prepare_sweep(planted_method.request(home)).run.plan.stages:
        if planned.stage.name in stages:
            costs.record(planned.stage, planned.images, 100.0)


def test_an_outer_stage_is_computed_once_for_all_trials_under_it(cluster: None, tmp_path: Path) -> None:
    make_costly(tmp_path, "base")
    record = sweep(tmp_path, stage_cost_limit=50.0, inner_trials=4)
    trials = load_trials(folder_of(tmp_path, record))
    executed = Counter(use.name for trial in trials for use in trial.stages if use.executed)
    assert executed == {"base": 3, "detail": 12, "detail_score": 12, "detail_evaluation": 12}
    assert len({trial.outer_key for trial in trials}) == 3
    assert all(set(trial.outer) == {"base.position"} for trial in trials)


def test_outer_trials_that_fall_behind_are_stopped_early(cluster: None, tmp_path: Path) -> None:
    make_costly(tmp_path, "base", "detail")
    record = sweep(tmp_path, stage_cost_limit=50.0, early_stop=True, trials=10, sampler="random")
    assert record.rungs == (Rung(QUALITY),) and record.scheduler == "asha"
    trials = load_trials(folder_of(tmp_path, record))
    pruned = [trial for trial in trials if trial.status == "pruned"]
    assert pruned and all(QUALITY in trial.reason for trial in pruned)
    finished = [trial for trial in trials if trial.status == "finished"]
    assert finished[0].number == 0, "the first has nothing to fall behind"
    computed = [use.name for trial in pruned for use in trial.stages if use.executed]
    assert "detail" not in computed
    quality = [1 - abs(trial.settings["base.position"] - 0.7) for trial in trials]
    assert max(quality[trial.number] for trial in finished) == max(quality), "the best never falls behind"
    states = Counter(trial.state.name for trial in study_of(tmp_path, record).get_trials())
    assert states == {"COMPLETE": len(finished), "PRUNED": len(pruned)}


def test_a_killed_trial_is_started_again(cluster: None, tmp_path: Path) -> None:
    faults = tmp_path / "faults"
    faults.mkdir()
    (faults / "kill-trial").write_text(str(os.getpid()))
    record = sweep(tmp_path, f"faults={faults}", trials=4, batch=2)
    assert not (faults / "kill-trial").exists()
    trials = load_trials(folder_of(tmp_path, record))
    assert [trial.status for trial in trials] == ["finished"] * 4
    assert numbers_in_study(study_of(tmp_path, record)) == list(range(4))


def test_a_trial_whose_worker_fails_says_why(cluster: None, tmp_path: Path) -> None:
    faults = tmp_path / "faults"
    faults.mkdir()
    (faults / "break-trial-round").write_text(str(os.getpid()))
    record = sweep(tmp_path, f"faults={faults}", trials=4, sampler="random", batch=1)
    failed = [trial for trial in load_trials(folder_of(tmp_path, record)) if trial.status == "failed"]
    assert failed and {trial.settings["detail.kind"] for trial in failed} == {"round"}
    assert all("RuntimeError" in trial.reason and "the planned trouble" in trial.reason for trial in failed)


def test_failures_are_recorded_with_their_reason_and_stop_nothing(cluster: None, tmp_path: Path) -> None:
    faults = tmp_path / "faults"
    faults.mkdir()
    (faults / "error").touch()
    (faults / "kill-worker").touch()
    record = sweep(tmp_path, f"faults={faults}", trials=10, sampler="random", batch=4)
    assert not (faults / "kill-worker").exists() and not (faults / "error").exists()
    trials = load_trials(folder_of(tmp_path, record))
    failed = [trial for trial in trials if trial.status == "failed"]
    assert len(failed) == 1 and "the planned error" in failed[0].reason and "stage detail" in failed[0].reason
    assert Counter(trial.status for trial in trials) == {"finished": 9, "failed": 1}
    states = Counter(trial.state.name for trial in study_of(tmp_path, record).get_trials())
    assert states == {"COMPLETE": 9, "FAIL": 1}


@pytest.mark.slow
def test_a_trial_that_kills_its_worker_fails_alone(cluster: None, tmp_path: Path) -> None:
    faults = tmp_path / "faults"
    faults.mkdir()
    (faults / "always-kill").touch()
    record = sweep(tmp_path, f"faults={faults}", trials=6, sampler="random", batch=6)
    trials = load_trials(folder_of(tmp_path, record))
    kinds = {trial.settings["detail.kind"] for trial in trials if trial.status == "failed"}
    assert kinds == {"round"}, [(trial.settings, trial.reason) for trial in trials]
    assert all("a worker died" in trial.reason for trial in trials if trial.status == "failed")
    assert all(trial.settings["detail.kind"] != "round" for trial in trials if trial.status == "finished")


def test_cost_as_second_objective(cluster: None, home: Path) -> None:
    record = sweep(home, trials=8, against_cost=True, name="costs")
    trials = load_trials(folder_of(home, record))
    assert all(set(trial.values) == {METRIC, "cost_seconds"} for trial in trials)
    assert len(study_of(home, record).directions) == 2
    assert study_of(home, record).best_trials


def test_one_process_at_a_time(cluster: None, home: Path, done: SweepRecord) -> None:
    import fcntl

    with (folder_of(home, done) / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(WsssError, match="another process runs this sweep"):
            sweep(home)


def test_the_report_is_written_before_another_process_may_begin(cluster: None, home: Path, done: SweepRecord) -> None:
    import fcntl

    ended: list[str] = []

    class Reporting(SweepObserver):
        def ended(self, record: SweepRecord) -> None:
            ended.append(record.status)
            with (folder_of(home, record) / ".lock").open("w") as lock, pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    run_sweep(prepare_sweep(planted_method.request(home)), Reporting())
    assert ended == ["finished"]


def start(home: Path, options: dict[str, Any], *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "tests/search/planted_method.py"), str(home), *overrides]
    return subprocess.Popen(
        [*command, "--options", json.dumps(options)],
        env={**os.environ, "PYTHONPATH": PYTHON_PATH},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )


def read_until(process: subprocess.Popen[str], word: str) -> str:
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line.startswith(word):
            return line
    raise AssertionError("".join(seen))


@pytest.mark.slow
def test_a_killed_driver_continues_and_every_trial_counts_once(tmp_path: Path) -> None:
    """SIGKILL twice, at different moments; then to the end, against a sweep that nobody killed."""
    options = {"trials": 14, "batch": 3}
    for stop in ("TRIAL 2", "TRIAL 8"):
        process = start(tmp_path, options, "pause=0.02")
        read_until(process, stop)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
        (killed,) = (load_sweep(path.parent) for path in tmp_path.glob("sweeps/*/sweep.json"))
        assert killed.status == "running"
    before = {trial.number: trial for trial in load_trials(folder_of(tmp_path, killed)) if trial.status == "finished"}
    assert before
    process = start(tmp_path, options, "pause=0.02")
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    record = load_sweep(folder_of(tmp_path, killed))
    trials = load_trials(folder_of(tmp_path, record))
    assert record.status == "finished" and [trial.number for trial in trials] == list(range(14))
    assert {number: trials[number] for number in before} == before, "finished trials are kept as they were"
    assert numbers_in_study(study_of(tmp_path, record)) == list(range(14))
    executed = [(use.name, use.key) for trial in trials for use in trial.stages if use.executed]
    assert len(executed) == len(set(executed))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_sweep_ends_in_order_and_continues(tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path, {"trials": 12, "batch": 3}, "pause=0.05")
    read_until(process, "TRIAL 1")
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1 and "KeyboardInterrupt" in output, output
    (record,) = (load_sweep(path.parent) for path in tmp_path.glob("sweeps/*/sweep.json"))
    assert record.status == "stopped" and record.error == "stopped"
    process = start(tmp_path, {"trials": 12, "batch": 3}, "pause=0.05")
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    assert len(load_trials(folder_of(tmp_path, record))) == 12


def test_records_that_ran_ahead_of_the_study_are_added_to_it(home: Path, done: SweepRecord, cluster: None) -> None:
    """As after a kill between the two writes."""
    record = sweep(home, trials=3, name="ahead", batch=3)
    folder = folder_of(home, record)
    (folder / STUDY_FILE).unlink()
    running = replace(load_trials(folder)[2], status="running", values={}, stages=())
    running.save(folder)
    again = sweep(home, trials=3, name="ahead", batch=3)
    assert numbers_in_study(study_of(home, again)) == [0, 1, 2]
    assert again.status == "finished" and load_trials(folder)[2].status == "finished"
