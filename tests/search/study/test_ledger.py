"""Records, study and totals of a sweep, without Ray: what a kill between two writes leaves, and each trial once."""

from __future__ import annotations

import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from wsss.errors import WsssError
from wsss.search.choose.score import Score
from wsss.search.evaluate.trial import TrialOutcome
from wsss.search.propose.nested import ProposedTrial
from wsss.search.records import SearchedKey, StageUse, SweepRecord, load_sweep, load_trials
from wsss.search.study.importance import importances
from wsss.search.study.ledger import Ledger

METRIC = "m/miou_val"
PASSWORD = "hunter2"
KEYS = (
    SearchedKey("a", "float", 0.5, 1, default=0.1, level="outer", stage="s"),  # the recipe lies outside
    SearchedKey("kind", "categorical", choices=("p", "q"), default="r", level="inner", stage="s"),
    SearchedKey("t", "float", 0.1, 0.5, default=0.3, level="curve", stage="e"),
)


def sweep(**changes: Any) -> SweepRecord:
    values: dict[str, Any] = {
        "sweep_id": "s",
        "method": "toy",
        "recipe_name": "toy",
        "recipe": {},
        "dataset": "d",
        "store_url": "/x",
        "space_name": "toy",
        "space": KEYS,
        "metric": METRIC,
        "metric_stage": "e",
        "select": "held_out",
        "objectives": {METRIC: "max"},
        "sampler": "tpe",
        "seed": 0,
        "trials": 10,
        "inner_trials": 5,
        "batch": 4,
        "concurrency": 1,
        "seeds": (0,),
        **changes,
    }
    return SweepRecord(**values)


def ledger(folder: Path, **changes: Any) -> Ledger:
    return Ledger(sweep(**changes), folder, None, f"sqlite:///{folder / 'study.db'}")


def proposed(number: int, a: float = 0.7, kind: str = "p") -> ProposedTrial:
    return ProposedTrial(number, {"a": a}, {"kind": kind}, "k", 0)


def outcome(number: int, value: float, executed: bool = True) -> TrialOutcome:
    score = Score(value=value, quoted=value - 0.1, threshold=0.2, chosen=value, held_out=value - 0.1)
    return TrialOutcome(number, score=score, stages=(StageUse("s", "map", f"k{number}", executed, 2.0),))


def study(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="s", storage=f"sqlite:///{folder / 'study.db'}")


def test_trials_are_on_disk_and_in_the_study_once_however_often_the_sweep_is_opened(tmp_path: Path) -> None:
    first = ledger(tmp_path)
    first.begin([proposed(0, 0.1, "r"), proposed(1), proposed(2, kind="q"), proposed(3, kind="q")])
    assert [trial.status for trial in load_trials(tmp_path)] == ["running"] * 4
    first.finish(outcome(0, 0.4))
    first.finish(outcome(1, 0.6))
    first.finish(TrialOutcome(2, error="it broke"))
    first.finish(outcome(3, 0.0), pruned="stopped", stopped_at=(1, 0.2))
    first.update()
    first.close()
    for _ in range(2):
        again = ledger(tmp_path)
        again.close()
    found = {trial.user_attrs["trial"]: trial for trial in study(tmp_path).get_trials()}
    assert len(study(tmp_path).get_trials()) == 4
    assert {number: trial.state.name for number, trial in found.items()} == {
        0: "COMPLETE",
        1: "COMPLETE",
        2: "FAIL",
        3: "PRUNED",
    }
    assert found[0].params == {"a": 0.1, "kind": "r"}, "outside the ranges, and still told"
    assert found[1].value == 0.6 and found[1].user_attrs["held_out"] == pytest.approx(0.5)
    assert found[2].user_attrs["reason"] == "it broke"
    assert load_trials(tmp_path)[3].stopped_at == (1, 0.2)


def test_a_trial_that_reached_the_disk_but_not_the_study_is_added_later(tmp_path: Path) -> None:
    first = ledger(tmp_path)
    first.begin([proposed(0, 0.1, "r"), proposed(1)])
    first.finish(outcome(0, 0.4))
    first.close()
    replace(load_trials(tmp_path)[1], status="finished", values={METRIC: 0.9}).save(tmp_path)  # and then the kill
    ledger(tmp_path).close()
    assert study(tmp_path).best_value == 0.9 and len(study(tmp_path).get_trials()) == 2


def test_totals_and_the_best_so_far_are_kept_while_it_runs(tmp_path: Path) -> None:
    running = ledger(tmp_path)
    running.begin([proposed(0, 0.1, "r"), proposed(1), proposed(2, kind="q")])
    running.finish(outcome(0, 0.4))
    shared, stored = StageUse("s", "map", "k0", False, 2.0), StageUse("before", "train", "old", False, 100.0)
    running.finish(replace(outcome(1, 0.6), stages=(stored, shared)))
    running.update()
    seen = load_sweep(tmp_path)
    assert (seen.asked, seen.executed, seen.served) == (3, 1, 2)
    assert seen.executed_seconds == 2.0
    assert seen.independent_seconds == 4.0, "what was there before the sweep counts for neither"
    assert seen.best is not None and seen.best.trial == 1 and seen.best.settings == {"a": 0.7, "kind": "p", "t": 0.2}
    assert seen.best.reported == pytest.approx(0.5) and seen.status == "running"
    running.close()


def test_an_undefined_metric_is_a_failure(tmp_path: Path) -> None:
    running = ledger(tmp_path)
    running.begin([proposed(0, 0.1, "r")])
    trial = running.finish(outcome(0, float("nan")))
    running.close()
    assert trial.status == "failed" and "undefined" in trial.reason


def test_objectives_keep_their_order_on_disk(tmp_path: Path) -> None:
    objectives = {METRIC: "max", "cost_seconds": "min"}
    running = ledger(tmp_path, objectives=objectives)
    running.begin([proposed(0, 0.1, "r")])
    running.finish(outcome(0, 0.4))
    running.update()
    running.close()
    assert list(load_sweep(tmp_path).objectives) == list(objectives)
    assert list(load_trials(tmp_path)[0].values.items()) == [(METRIC, 0.4), ("cost_seconds", 2.0)]
    assert study(tmp_path).get_trials()[0].values == [0.4, 2.0]


def test_a_database_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(WsssError, match="--study"):
        Ledger(sweep(), tmp_path, None, f"sqlite:///{tmp_path}/no/such/folder/study.db")


@pytest.mark.parametrize("scheme", ["postgresql+psycopg2", "no such driver"])
def test_a_password_in_the_address_is_not_repeated(scheme: str, tmp_path: Path) -> None:
    with pytest.raises(WsssError, match="--study") as caught:
        Ledger(sweep(), tmp_path, None, f"{scheme}://wsss:{PASSWORD}@127.0.0.1:1/studies")
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))


def test_importance_tells_the_key_that_matters_from_the_one_that_does_not(tmp_path: Path) -> None:
    running = ledger(tmp_path)
    settings = [(0.5 + 0.02 * number, "pq"[number % 2]) for number in range(24)]
    running.begin([proposed(number, a, kind) for number, (a, kind) in enumerate(settings)])
    for number, (a, _) in enumerate(settings):
        running.finish(outcome(number, a))
    running.close()
    for shares in importances(running.record, list(running.trials.values())).values():
        assert shares["a"] > 0.8 and shares["kind"] < 0.2
    assert importances(running.record, list(running.trials.values())[:4]) == {}
