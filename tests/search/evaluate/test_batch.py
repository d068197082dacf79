"""Batches of settings in this process, without a cluster: what is computed once, what fails alone, early stop."""

from __future__ import annotations

import errno
import os
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import sqlalchemy
from tests.methods import in_process
from tests.search import planted_method
from tests.search.planted_method import METRIC, QUALITY

from wsss.errors import WsssError
from wsss.execution import map_stage, tasks
from wsss.execution.nodes import present_cluster
from wsss.recipe import flat_dict
from wsss.search import sweep as sweep_module
from wsss.search.evaluate import batch as batch_module
from wsss.search.evaluate import shortcuts
from wsss.search.evaluate.batch import BatchEvaluator
from wsss.search.evaluate.tune import BatchTrainable, SweepSearcher
from wsss.search.propose.nested import NestedSearch, told_values
from wsss.search.records import Race, Rung, TrialRecord, load_sweep, load_trials
from wsss.search.request import PreparedSweep, prepare_sweep
from wsss.search.study.ledger import Ledger
from wsss.search.sweep import SweepObserver, _declare, _open_record, sweep_context
from wsss.store import open_store


class Inline:
    """Stands for a remote function: runs it at once, here."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def options(self, **options: Any) -> Inline:
        return self

    def remote(self, *arguments: Any) -> Any:
        return self._function(*arguments)


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def run_tasks(pieces: Any, start: Any, *_: Any, wanted: Any = lambda item: True) -> Any:
        for items, shard in pieces:
            if left := [item for item in items if wanted(item)]:
                yield (left, shard), start(left, shard, {})

    for module in (map_stage, tasks):
        monkeypatch.setattr(module, "NodeWatch", lambda *arguments: None)
    monkeypatch.setattr(batch_module, "wait_for_first_node", lambda *arguments: None)
    for module, names in ((map_stage, ("_run_shard", "_run_reductions")), (tasks, ("_call",))):
        monkeypatch.setattr(module, "run_tasks", run_tasks)
        for name in names:
            monkeypatch.setattr(module, name, Inline(getattr(module, name)._function))
    monkeypatch.setattr(map_stage.ray, "put", lambda value: value)
    monkeypatch.setattr(map_stage.ray, "get", lambda value, timeout=None: value)
    for module in (batch_module, shortcuts):
        monkeypatch.setattr(module, "current_cluster", lambda: present_cluster([{"CPU": 2}]))
    monkeypatch.setattr(batch_module, "check_nodes", lambda *_: None)
    map_stage._built.clear()
    yield


def drive(
    prepared: PreparedSweep, stop_at_rungs: tuple[int, ...] = (), study_url: str | None = None
) -> list[TrialRecord]:
    """The loop that Tune would drive: suggest a batch, evaluate it on the one worker, tell."""
    record = _open_record(prepared)
    record.save(prepared.folder)
    ledger = Ledger(record, prepared.folder, None, study_url or f"sqlite:///{prepared.folder / 'study.db'}")
    search = NestedSearch(prepared.keys, flat_dict(prepared.request.recipe), prepared.plan)
    search.restore(list(ledger.trials.values()))
    told: list[TrialRecord] = []
    searcher = SweepSearcher(search, ledger, prepared.rungs, told.append)
    trainable = object.__new__(BatchTrainable)
    trainable._rungs = prepared.rungs
    trainable._evaluator = BatchEvaluator(sweep_context(prepared, record.sweep_id, record.provenance))
    count = 0
    while isinstance(config := searcher.suggest(f"tune-{count}"), dict):
        trainable.reset_config(config)
        result = trainable.step()
        while not result["done"] and count not in stop_at_rungs:
            result = trainable.step()
        searcher.on_trial_complete(f"tune-{count}", result)
        count += 1
    assert config == SweepSearcher.FINISHED
    _declare(prepared, ledger, SweepObserver())
    ledger.update(status="finished")
    ledger.close()
    assert ledger.record.best is not None
    return told


def test_what_the_ledger_or_the_screen_raises_is_kept_from_tune() -> None:
    """Tune would tell it in a traceback of its own, or not at all."""
    full, gone = OSError(errno.ENOSPC, "No space left on device"), BrokenPipeError()

    def refuse(error: Exception) -> Any:
        def raising(*_: Any) -> None:
            raise error

        return raising

    proposed = SimpleNamespace(number=0, outer_key="")
    search: Any = SimpleNamespace(ask=lambda: [proposed], finished=False, tell=lambda *_: None)
    ledger: Any = SimpleNamespace(begin=refuse(full), trials={}, finish=lambda *_: TrialRecord(0, {}, {}, "", 0))
    searcher = SweepSearcher(search, ledger, (), refuse(gone))
    with pytest.raises(OSError, match="No space left"):
        searcher.suggest("tune-0")
    assert searcher.failure is full
    searcher = SweepSearcher(search, ledger, (), refuse(gone))
    searcher._running["tune-0"] = [proposed]  # pyright: ignore[reportArgumentType]
    with pytest.raises(BrokenPipeError):
        searcher.on_trial_complete("tune-0", {"outcomes": ()})
    assert searcher.failure is gone


def test_a_sweep_computes_every_artifact_once_and_finds_better_trials(tmp_path: Path) -> None:
    trials = drive(prepare_sweep(planted_method.request(tmp_path, trials=10, batch=5)))
    assert [trial.status for trial in trials] == ["finished"] * 10
    executed = [(use.name, use.key) for trial in trials for use in trial.stages if use.executed]
    assert len(executed) == len(set(executed))
    assert max(trial.values[METRIC] for trial in trials) > trials[0].values[METRIC]
    for trial in trials:
        assert trial.held_out is not None and trial.low is not None and trial.high is not None
        assert trial.low <= trial.held_out <= trial.high and len(trial.curve) == 46
    record = load_sweep(next(tmp_path.glob("sweeps/*")))
    best = record.best
    assert best is not None and best.gain_low is not None and best.gain_high is not None
    assert best.gain_low <= best.reported - best.default_reported <= best.gain_high
    assert (tmp_path / "sweeps" / record.sweep_id / "best.yaml").is_file()
    assert drive(prepare_sweep(planted_method.request(tmp_path, trials=10, batch=5))) == [], "nothing is left to do"


def test_outer_trials_that_fall_behind_stop_before_the_next_stage(tmp_path: Path) -> None:
    from wsss.plan import CostHistory

    costs = CostHistory(tmp_path / "costs.json")
    for planned in prepare_sweep(planted_method.request(tmp_path)).run.plan.stages:
        if planned.stage.name in ("base", "detail"):
            costs.record(planned.stage, planned.images, 100.0)
    prepared = prepare_sweep(planted_method.request(tmp_path, trials=4, stage_cost_limit=50.0, early_stop=True))
    assert prepared.rungs == (Rung(QUALITY),) and all(key.level != "inner" for key in prepared.keys)
    trials = drive(prepared, stop_at_rungs=(2,))
    assert [trial.status for trial in trials] == ["finished", "finished", "pruned", "finished"]
    stopped = trials[2]
    assert stopped.stopped_at is not None and stopped.stopped_at[0] == 1 and QUALITY in stopped.reason
    assert stopped.metrics[QUALITY] == pytest.approx(stopped.stopped_at[1])
    assert Counter(use.name for use in stopped.stages if use.executed) == {"base": 1, "base_evaluation": 1}


def test_a_failing_trial_leaves_its_batch_alone(tmp_path: Path) -> None:
    faults = tmp_path / "faults"
    faults.mkdir()
    (faults / "error").touch()
    trials = drive(prepare_sweep(planted_method.request(tmp_path, [f"faults={faults}"], trials=6, batch=3)))
    failed = [trial for trial in trials if trial.status == "failed"]
    assert len(failed) == 1 and "stage detail: ValueError: the planned error" in failed[0].reason
    assert Counter(trial.status for trial in trials) == {"finished": 5, "failed": 1}


def test_a_value_that_the_recipe_refuses_is_a_failed_trial(tmp_path: Path) -> None:
    prepared = prepare_sweep(planted_method.request(tmp_path))
    evaluator = BatchEvaluator(sweep_context(prepared, "x", {}))
    settings = [evaluator.open(0, {"detail.scale": 7.0}), evaluator.open(1, {"detail.scale": 0.5})]
    evaluator.advance(settings, METRIC)
    bad, good = evaluator.outcomes(settings)
    assert "detail.scale = 7.0" in bad.error and bad.score is None
    assert good.error == "" and good.score is not None and good.metrics[METRIC] == good.score.default_value


def test_clearly_worse_trials_are_dropped_after_a_part_of_the_images(tmp_path: Path) -> None:
    """Against the same settings without a race: the best is the same, and what was dropped was worse."""
    options: dict[str, Any] = {"trials": 12, "batch": 6, "sampler": "random"}
    many_images = ["dataset.shapes.train=240"]
    whole = drive(prepare_sweep(planted_method.request(tmp_path / "whole", many_images, race=False, **options)))
    prepared = prepare_sweep(planted_method.request(tmp_path / "race", many_images, **options))
    raced = drive(prepared)
    assert [trial.settings for trial in raced] == [trial.settings for trial in whole]
    dropped = [trial for trial in raced if trial.status == "pruned"]
    assert len(dropped) >= 4 and raced[0].status == "finished"
    best = max(whole, key=lambda trial: trial.values[METRIC]).number
    for ours, theirs in zip(raced, whole, strict=True):
        if ours.status == "finished":
            assert (ours.values, ours.held_out, ours.curve) == (theirs.values, theirs.held_out, theirs.curve)
            continue
        race = ours.race
        assert ours.number != best and race is not None and race.estimate is not None and race.beaten_by is not None
        assert race.images < race.of < 240 and f"after {race.images} of {race.of} images" in ours.reason
        assert race.estimate == pytest.approx(theirs.values[METRIC], abs=0.05)
        assert whole[race.beaten_by].values[METRIC] > theirs.values[METRIC]
        (base,) = ours.stages
        assert base.name == "base" and ours.spent_seconds == pytest.approx(race.seconds + base.executed * base.seconds)
        assert ours.cost_seconds > ours.spent_seconds
        assert ours.reason == race.text
    stored = [path.parent.name for path in (tmp_path / "race" / "store" / "detail_score").glob("*/manifest.json")]
    assert len(stored) == 12 - len(dropped), "nothing of a dropped setting is kept"
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{prepared.folder / 'study.db'}")
    assert Counter(trial.state.name for trial in study.get_trials()) == {
        "COMPLETE": 12 - len(dropped),
        "PRUNED": len(dropped),
    }
    assert drive(prepare_sweep(planted_method.request(tmp_path / "race", many_images, **options))) == []


def test_maps_that_one_trial_alone_asks_for_are_not_stored_and_scores_are_those_of_its_own_run(
    tmp_path: Path,
) -> None:
    """Scored images are a part of those that the maps are for; each is computed once, whether it raced or not."""
    options: dict[str, Any] = {"trials": 8, "batch": 8, "sampler": "random"}
    prepared = prepare_sweep(planted_method.request(tmp_path, ["dataset.shapes.train=120", "seed=3"], **options))
    trials = drive(prepared)
    evaluator = BatchEvaluator(sweep_context(prepared, "x", {}))
    finished = [trial for trial in trials if trial.status == "finished"]
    assert len(finished) > 2
    for trial in finished:
        setting = evaluator.open(trial.number, trial.settings)
        keyed = setting.pipeline
        stored = {name for name in ("base", "detail", "detail_score") if evaluator.find(name, keyed.keys[name])}
        assert stored == ({"base", "detail", "detail_score"} if trial.number == 0 else {"base", "detail_score"})
        executed = {use.name for use in trial.stages if use.executed}
        assert {"base", "detail", "detail_score", "detail_evaluation"} <= executed
        key, whole = keyed.keys["detail_score"], tmp_path / "whole"
        found = evaluator.find("detail_score", key)
        artifacts = in_process.run_pipeline(
            keyed.pipeline, evaluator.dataset, open_store(str(whole)), ["detail_score"]
        ).artifacts
        alone = artifacts["detail_score"]
        assert set(alone.images()) < set(artifacts["detail"].images())
        assert found is not None and alone.key == key and alone.images() == found.images()
        for name in alone.images():
            ours, theirs = found.arrays(name), alone.arrays(name)
            assert {array: value.tobytes() for array, value in ours.items()} == {
                array: value.tobytes() for array, value in theirs.items()
            }


def test_what_another_batch_may_want_is_stored(tmp_path: Path) -> None:
    """Although a batch of one setting asks for it alone: what inner settings have in common, and what an inner key
    changes before another one does."""
    from wsss.plan import CostHistory

    costs = CostHistory(tmp_path / "costs.json")
    for planned in prepare_sweep(planted_method.request(tmp_path)).run.plan.stages:
        if planned.stage.name == "base":
            costs.record(planned.stage, planned.images, 100.0)
    prepared = prepare_sweep(
        planted_method.request(tmp_path, trials=6, inner_trials=3, batch=1, stage_cost_limit=50.0, race=False)
    )
    assert {key.level for key in prepared.keys} == {"outer", "inner", "curve"}
    trials = drive(prepared)
    assert Counter(use.name for trial in trials for use in trial.stages if use.executed) == {
        "base": 2,
        "detail": 6,
        "detail_score": 6,
        "detail_evaluation": 6,
    }


def test_the_search_learns_from_estimates_and_continues_with_them(tmp_path: Path) -> None:
    """Dropped settings tell the sampler their estimate, in the sweep itself and after it was read back."""
    trial = TrialRecord(1, {}, {"a": 1}, "k", 0, status="pruned", race=Race(50, 120, 1.0, estimate=0.25, beaten_by=0))
    assert told_values(trial) == (0.25,)
    assert told_values(replace(trial, race=None)) is None
    trial.save(tmp_path)
    assert load_trials(tmp_path) == [trial]


def test_a_trial_that_fails_in_a_race_fails_alone(tmp_path: Path) -> None:
    faults = tmp_path / "faults"
    faults.mkdir()
    (faults / "error").touch()
    overrides = [f"faults={faults}", "dataset.shapes.train=240"]
    trials = drive(prepare_sweep(planted_method.request(tmp_path, overrides, trials=6, batch=6, sampler="random")))
    assert not (faults / "error").exists()
    assert "failed" not in {trial.status for trial in trials}, "computed again on its own, where it no longer fails"


def test_a_criterion_is_computed_for_scores_that_an_earlier_attempt_left(tmp_path: Path) -> None:
    """It had the maps in memory and was killed before it could record its trials."""
    options: dict[str, Any] = {"trials": 3, "batch": 3, "sampler": "random", "criterion": "boundary_contrast"}
    prepared = prepare_sweep(planted_method.request(tmp_path, **options))
    first = drive(prepared)
    for path in (prepared.folder / "trials").glob("*.json"):
        path.unlink()
    (prepared.folder / "study.db").unlink()
    again = drive(prepare_sweep(planted_method.request(tmp_path, **options)))
    assert [trial.criterion for trial in again] == [trial.criterion for trial in first]
    assert all(trial.criterion for trial in again) and [trial.values for trial in again] == [t.values for t in first]


@pytest.mark.parametrize("criterion", ["boundary_contrast", "confidence_margin"])
def test_a_sweep_without_masks_chooses_by_its_criterion(tmp_path: Path, criterion: Any) -> None:
    prepared = prepare_sweep(
        planted_method.request(tmp_path, trials=6, batch=6, sampler="random", select="label_free", criterion=criterion)
    )
    trials = drive(prepared)
    record = load_sweep(prepared.folder)
    for trial in trials:
        top = max(point.value for point in trial.criterion)
        assert trial.values[METRIC] == top and trial.quoted == trial.label_free
        assert trial.threshold == next(point.threshold for point in trial.criterion if point.value == top)
        (at_choice,) = (point.value for point in trial.curve if point.threshold == trial.threshold)
        assert trial.label_free == pytest.approx(at_choice), "the criterion chooses, masks only tell what it is worth"
    best = max(trials, key=lambda trial: trial.values[METRIC])
    assert record.best is not None and record.best.trial == best.number
    assert record.best.reported == best.label_free
    ways = {way.rule: way for way in record.selected}
    assert set(ways) == {"default", "oracle", "cross_fitted", "held_out", "label_free"}
    assert ways["label_free"].trials == (best.number,) and not ways["label_free"].used_masks
    assert ways["label_free"].miou.value == pytest.approx(best.label_free)
    assert ways["oracle"].miou.value >= max(ways[rule].miou.value for rule in ("default", "cross_fitted", "label_free"))


def test_confirmation_evaluates_every_seed_of_a_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_module, "connect", lambda: present_cluster([{"CPU": 2}]))
    options: dict[str, Any] = {"trials": 6, "batch": 6, "sampler": "random"}
    prepared = prepare_sweep(
        planted_method.request(
            tmp_path / "sweep", confirm_top=2, confirm_seeds=(0, 1, 2), criterion="boundary_contrast", **options
        )
    )
    drive(prepared)
    record = load_sweep(prepared.folder)
    trials = load_trials(prepared.folder)
    assert len(record.confirmations) == 3 and record.best is not None and record.best.confirmed
    for each in record.confirmations:
        assert len(set(each.values)) == 3 and each.spread > 0, "seeds differ"
        if each.trial != 0:
            assert each.values[0] == pytest.approx(trials[each.trial].quoted), "seed 0 is the sweep's own"
    other = prepare_sweep(planted_method.request(tmp_path / "seed1", ["seed=1"], **options))
    drive(other)
    under_seed_1 = load_trials(other.folder)
    for each in record.confirmations[1:]:
        assert each.values[1] == pytest.approx(under_seed_1[each.trial].quoted)


def test_a_criterion_must_fit_the_metric(tmp_path: Path) -> None:
    with pytest.raises(WsssError, match="none is named"):
        prepare_sweep(planted_method.request(tmp_path, select="label_free"))
    with pytest.raises(WsssError, match=f"boundary_contrast cannot be computed for {QUALITY}"):
        prepare_sweep(planted_method.request(tmp_path, metric=QUALITY, criterion="boundary_contrast"))


def test_cmaes_searches_numbers_and_draws_choices(tmp_path: Path) -> None:
    pytest.importorskip("cmaes", reason="an extra: pip install 'wsss[search]'")
    trials = drive(prepare_sweep(planted_method.request(tmp_path, trials=24, batch=4, sampler="cmaes", race=False)))
    assert [trial.status for trial in trials] == ["finished"] * 24
    assert len({trial.settings["detail.kind"] for trial in trials}) == 3, "choices are drawn at random"
    first, last = (max(trial.values[METRIC] for trial in part) for part in (trials[:1], trials[12:]))
    assert last > first + 0.05


def test_the_study_may_live_in_postgresql(tmp_path: Path) -> None:
    """With WSSS_TEST_POSTGRES=postgresql+psycopg2://user:password@host/database."""
    url = os.environ.get("WSSS_TEST_POSTGRES")
    if not url:
        pytest.skip("WSSS_TEST_POSTGRES names no server")
    name = f"test-{uuid.uuid4().hex[:8]}"
    prepared = prepare_sweep(planted_method.request(tmp_path, trials=6, batch=3, study_url=url, name=name))
    trials = drive(prepared, study_url=url)
    assert len(trials) == 6
    study = optuna.load_study(study_name=name, storage=url)
    assert sorted(trial.user_attrs["trial"] for trial in study.get_trials()) == list(range(6))
    assert study.best_value == pytest.approx(max(trial.values[METRIC] for trial in trials))
    more = prepare_sweep(planted_method.request(tmp_path, trials=8, batch=2, study_url=url, name=name))
    assert len(drive(more, study_url=url)) == 2
    assert len(optuna.load_study(study_name=name, storage=url).get_trials()) == 8, "continued, each trial once"
    password = sqlalchemy.make_url(url).password
    written = "".join(path.read_text() for path in prepared.folder.rglob("*.json"))
    assert password is None or password not in written, "the address is kept without its password"
    optuna.delete_study(study_name=name, storage=url)
