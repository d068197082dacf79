"""The declared best: ranking, the recipe at its own threshold, confirmation over seeds, the file."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from tests.search.study.test_ledger import KEYS, METRIC, sweep

from wsss.method import ExecutionSettings
from wsss.recipe import load_recipe, setting
from wsss.search.choose.best import best_of, confirm, confirmed_best, ranked, recipe_numbers, write_best
from wsss.search.records import Best, CriterionPoint, CurvePoint, TrialRecord


def trial(number: int, value: float, cost: float = 1.0, threshold: float | None = 0.2) -> TrialRecord:
    curve = (CurvePoint(0.2, value + 0.01, value, value - 0.1), CurvePoint(0.3, value - 0.1, value - 0.2, value - 0.3))
    return TrialRecord(
        number=number,
        outer={"a": 0.1 if number == 0 else 0.5 + number / 100},
        inner={"kind": "r" if number == 0 else "p"},
        outer_key="k",
        batch=0,
        status="finished",
        values={METRIC: value},
        threshold=threshold,
        quoted=value - 0.1,
        chosen=value,
        held_out=value - 0.1,
        cost_seconds=cost,
        curve=curve if threshold is not None else (),
    )


def test_trials_are_ranked_by_value_then_by_cost() -> None:
    trials = [trial(0, 0.4), trial(1, 0.6, cost=9), trial(2, 0.6, cost=2), replace(trial(3, 0.9), status="failed")]
    assert [each.number for each in ranked(trials, METRIC)] == [2, 1, 0]


def test_the_recipe_is_compared_at_its_own_threshold() -> None:
    best = best_of([trial(0, 0.4), trial(1, 0.6)], METRIC, KEYS, "held_out")
    assert best is not None and best.settings == {"a": 0.51, "kind": "p", "t": 0.2}
    assert (best.value, best.reported) == pytest.approx((0.6, 0.5))
    assert (best.default_value, best.default_reported) == pytest.approx((0.2, 0.1)), "at 0.3, not at the best 0.2"
    oracle = replace(trial(0, 0.4), quoted=0.4, held_out=None, chosen=None)
    assert recipe_numbers(oracle, 0.4, KEYS, "oracle") == pytest.approx((0.3, 0.3))
    assert recipe_numbers(trial(0, 0.4, threshold=None), 0.4, KEYS, "held_out") == pytest.approx((0.4, 0.3))
    blind = replace(oracle, criterion=(CriterionPoint(0.2, 1.4), CriterionPoint(0.3, 1.1)))
    assert recipe_numbers(blind, 1.4, KEYS, "label_free") == pytest.approx((1.1, 0.3)), "criterion, then mIoU"


def test_another_threshold_alone_may_be_best() -> None:
    best = best_of([trial(0, 0.6), trial(1, 0.4)], METRIC, KEYS, "held_out")
    assert best is not None and best.trial == 0 and best.settings == {"t": 0.2}


def test_there_is_no_best_without_the_recipe() -> None:
    assert best_of([trial(1, 0.6)], METRIC, KEYS, "held_out") is None


@pytest.mark.parametrize(("seeds", "quantile"), [(2, 12.7062), (3, 4.3027), (11, 2.2281), (12, 2.2010), (31, 2.0423)])
def test_the_interval_over_seeds_is_students_however_many_there_are(seeds: int, quantile: float) -> None:
    values = [0.5 + 0.01 * (number % 3) for number in range(seeds)]
    found = confirm(1, tuple(range(seeds)), values)
    assert found.high - found.mean == pytest.approx(quantile * found.spread / seeds**0.5, rel=1e-4)
    assert found.mean - found.low == pytest.approx(found.high - found.mean)


def test_confirmation_has_a_t_interval_and_may_change_the_choice() -> None:
    first = confirm(1, (0, 1, 2), (0.5, 0.6, 0.7))
    assert (first.mean, first.spread) == pytest.approx((0.6, 0.1))
    assert (first.low, first.high) == pytest.approx((0.6 - 4.30265273 * 0.1 / 3**0.5, 0.6 + 4.30265273 * 0.1 / 3**0.5))
    assert confirm(1, (0,), (0.5,)).low == 0.5
    trials = {0: trial(0, 0.4), 1: trial(1, 0.9), 2: trial(2, 0.8)}
    confirmations = [confirm(0, (0, 1), (0.3, 0.3)), confirm(1, (0, 1), (0.9, 0.1)), confirm(2, (0, 1), (0.7, 0.8))]
    best = confirmed_best(trials, confirmations, METRIC, KEYS, "held_out")
    assert (best.trial, best.reported, best.default_reported, best.confirmed) == (2, pytest.approx(0.75), 0.3, True)
    tie = confirmed_best(trials, [confirm(0, (0,), (0.5,)), confirm(1, (0,), (0.5,))], METRIC, KEYS, "held_out")
    assert tie.trial == 0 and tie.settings == {}, "what does not beat the recipe does not replace it"


@dataclass(frozen=True)
class Recipe:
    execution: ExecutionSettings = field(default_factory=ExecutionSettings)
    rate: float = setting(0.1, above=0)
    scales: tuple[float, ...] = setting((1.0, 0.5), above=0)


def test_the_best_recipe_is_read_back_as_written(tmp_path: Path) -> None:
    best = Best(3, {"rate": 1e-5, "scales": [1.0, 2.0]}, 0.6, 0.5, 0.4, 0.3)
    write_best(tmp_path / "best.yaml", Recipe(), sweep(), best)
    recipe = load_recipe(Recipe, tmp_path / "best.yaml")
    assert (recipe.rate, recipe.scales) == (1e-5, (1.0, 2.0))
    text = (tmp_path / "best.yaml").read_text()
    assert "m/miou_val 50.00 %, recipe toy 30.00 %" in text and "# changed: rate = 1e-05" in text
    assert [path.name for path in tmp_path.iterdir()] == ["best.yaml"]
