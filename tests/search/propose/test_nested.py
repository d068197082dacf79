"""The search itself, without Ray: a planted optimum is found, cheaper than by a flat search; restore; edge cases."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from wsss.search.propose.nested import NestedSearch, SearchPlan, default_inner_trials
from wsss.search.records import SearchedKey, TrialRecord

COSTLY, CHEAP = 100.0, 1.0
KEYS = (
    SearchedKey("a", "float", 0, 1, default=0.1, level="outer"),
    SearchedKey("b", "float", 0, 1, default=0.9, level="outer"),
    SearchedKey("x", "float", 0, 1, default=0.8, level="inner"),
    SearchedKey("y", "int", 0, 20, step=1, default=2, level="inner"),
    SearchedKey("kind", "categorical", choices=("p", "q", "r"), default="p", level="inner"),
    SearchedKey("z", "float", 0, 1, default=0.5, level="inner", conditions={"kind": ["r"]}),
)
RECIPE = {key.key: key.default for key in KEYS}


def value_of(settings: Mapping[str, Any]) -> float:
    """1 at a = 0.7, b = 0.3, x = 0.25 + 0.1 a, y = 13, kind = q; inner and outer settings interact through x."""
    a, b, x = settings["a"], settings["b"], settings["x"]
    inner = (x - 0.25 - 0.1 * a) ** 2 + ((settings["y"] - 13) / 20) ** 2 + (0.0 if settings["kind"] == "q" else 0.1)
    return 1 - (a - 0.7) ** 2 - (b - 0.3) ** 2 - 0.7 * inner


@dataclass
class Evaluated:
    """Runs a search against `value_of`, at the price of a pipeline whose outer part is costly and stored."""

    search: NestedSearch
    settings: list[dict[str, Any]] = field(default_factory=list)
    records: list[TrialRecord] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    cost: float = 0.0
    best: list[tuple[float, float]] = field(default_factory=list)

    def run(self, batches: int = 10_000) -> Evaluated:
        for _ in range(batches):
            batch = self.search.ask()
            if batch is None:
                break
            for each in batch:
                self.cost += CHEAP + (COSTLY if each.outer_key not in self.seen else 0.0)
                self.seen.add(each.outer_key)
                value = value_of(each.settings)
                self.settings.append(each.settings)
                self.best.append((self.cost, max(value, self.best[-1][1] if self.best else -9.0)))
                self.records.append(record_of(each, value))
                self.search.tell(each.number, (value,))
        return self

    def cost_to_reach(self, value: float) -> float:
        return next((cost for cost, best in self.best if best >= value), float("inf"))


def record_of(proposed: Any, value: float | None, status: str = "finished") -> TrialRecord:
    return TrialRecord(
        number=proposed.number,
        outer=proposed.outer,
        inner=proposed.inner,
        outer_key=proposed.outer_key,
        batch=proposed.batch,
        status=status,  # pyright: ignore[reportArgumentType]
        values={} if value is None else {"m": value},
    )


def plan(**changes: Any) -> SearchPlan:
    values: dict[str, Any] = {"sampler": "tpe", "seed": 0, "trials": 160, "inner_trials": 12, "batch": 4, **changes}
    return SearchPlan(**values)


def test_nested_search_finds_the_planted_optimum_cheaper_than_a_flat_one() -> None:
    """Over 10 seeds: the same number of settings costs a tenth; the same quality costs less than half."""
    nested = [Evaluated(NestedSearch(KEYS, RECIPE, plan(seed=seed))).run() for seed in range(10)]
    flat = [
        Evaluated(NestedSearch(KEYS, RECIPE, plan(seed=seed, inner_trials=1, flat=True))).run() for seed in range(10)
    ]
    assert all(run.search.handed_out == 160 and run.search.finished for run in nested + flat)
    assert value_of(RECIPE) < 0.2
    assert statistics.median(run.best[-1][1] for run in nested) > 0.97
    assert min(run.best[-1][1] for run in nested) > 0.93
    assert all(run.cost == 14 * COSTLY + 160 * CHEAP for run in nested)
    assert statistics.median(run.cost for run in flat) > 9 * nested[0].cost
    reach_nested = statistics.median(run.cost_to_reach(0.95) for run in nested)
    reach_flat = statistics.median(run.cost_to_reach(0.95) for run in flat)
    print(f"cost to reach 0.95: nested {reach_nested:.0f}, flat {reach_flat:.0f}")
    assert reach_nested < 0.5 * reach_flat


def test_the_same_seed_proposes_the_same() -> None:
    runs = [Evaluated(NestedSearch(KEYS, RECIPE, plan(trials=60, seed=3))).run().settings for _ in range(2)]
    assert runs[0] == runs[1]
    assert Evaluated(NestedSearch(KEYS, RECIPE, plan(trials=60, seed=4))).run().settings != runs[0]


def test_the_first_trial_is_the_recipe_and_every_outer_trial_begins_with_its_inner_part() -> None:
    run = Evaluated(NestedSearch(KEYS, RECIPE, plan(trials=60))).run()
    active = {key: value for key, value in RECIPE.items() if key != "z"}
    assert run.settings[0] == active
    firsts = {record.outer_key: record.inner for record in reversed(run.records)}
    assert len(firsts) == 5
    assert all(inner == {"x": 0.8, "y": 2, "kind": "p"} for inner in firsts.values())


def test_a_conditional_key_is_there_only_under_its_condition() -> None:
    for settings in Evaluated(NestedSearch(KEYS, RECIPE, plan(trials=80))).run().settings:
        assert ("z" in settings) == (settings["kind"] == "r")


def test_no_trial_is_proposed_twice_and_a_small_inner_space_is_searched_in_full() -> None:
    keys = (KEYS[0], KEYS[4], SearchedKey("n", "int", 1, 3, step=1, default=1, level="inner"))
    inner = default_inner_trials(keys, 100)
    assert inner == 8  # four a key
    recipe = {"a": 0.1, "kind": "p", "n": 1}
    search = NestedSearch(keys, recipe, plan(trials=27, inner_trials=9))
    seen: dict[str, set[tuple[Any, ...]]] = {}
    while batch := search.ask():
        for each in batch:
            assert tuple(each.inner.values()) not in seen.setdefault(each.outer_key, set())
            seen[each.outer_key].add(tuple(each.inner.values()))
            search.tell(each.number, (0.5,))
    assert [len(inner) for inner in seen.values()] == [9, 9, 9]
    assert search.finished


def test_a_finite_space_ends_when_it_is_exhausted() -> None:
    keys = (SearchedKey("n", "int", 1, 3, step=1, default=1, level="inner"),)
    search = NestedSearch(keys, {"n": 1}, plan(trials=50, inner_trials=50))
    run: list[int] = []
    while batch := search.ask():
        for each in batch:
            run.append(each.settings["n"])
            search.tell(each.number, (1.0,))
    assert sorted(run) == [1, 2, 3]
    assert search.finished


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("stop", [1, 4, 9])
def test_a_killed_search_continues_where_its_records_leave_off(stop: int, flat: bool, sampler: str) -> None:
    planned = plan(trials=60, flat=flat, inner_trials=1 if flat else 12, sampler=sampler)
    first = Evaluated(NestedSearch(KEYS, RECIPE, planned))
    first.run(batches=stop)
    lost = first.search.ask()
    assert lost is not None
    running = [record_of(each, None, "running") for each in lost]
    again = NestedSearch(KEYS, RECIPE, planned)
    again.restore([*first.records, *running])
    batch = again.ask()
    assert batch is not None and batch == lost, "what was under way is handed out again, under its numbers"
    rest = Evaluated(again, records=list(first.records))
    for each in batch:
        again.tell(each.number, (value_of(each.settings),))
    rest.run()
    numbers = sorted([*(record.number for record in rest.records), *(each.number for each in batch)])
    assert numbers == list(range(60)) and again.finished
    undisturbed = Evaluated(NestedSearch(KEYS, RECIPE, planned))
    assert [*first.settings, *(each.settings for each in batch), *rest.settings] == undisturbed.run().settings


def test_a_failing_outer_trial_is_left_and_failures_count_against_the_budget() -> None:
    search = NestedSearch(KEYS, RECIPE, plan(trials=24))
    outers: list[str] = []
    while batch := search.ask():
        outers.append(batch[0].outer_key)
        failing = len(outers) == 2
        for each in batch:
            search.tell(each.number, None if failing else (value_of(each.settings),))
    assert search.finished and search.handed_out == 24
    assert outers[0] != outers[3] and outers.count(outers[3]) == 1 if len(set(outers)) > 2 else True
    failed = outers[1]
    assert outers.count(failed) == (3 if failed == outers[0] else 1)


def test_trials_that_do_not_fit_together_are_not_proposed() -> None:
    search = NestedSearch(KEYS, RECIPE, plan(trials=60), is_valid=lambda settings: settings["x"] + settings["a"] < 1)
    run = Evaluated(search).run()
    assert len(run.settings) == 60
    assert all(settings["x"] + settings["a"] < 1 for settings in run.settings)


def test_a_default_outside_its_range_is_evaluated_first_all_the_same() -> None:
    keys = (SearchedKey("x", "float", 0.5, 1, default=0.2, level="inner"),)
    run = NestedSearch(keys, {"x": 0.2}, plan(trials=8, inner_trials=8, batch=8)).ask()
    assert run is not None and run[0].settings == {"x": 0.2}
    assert all(0.5 <= each.settings["x"] <= 1 for each in run[1:])


def test_batches_under_one_outer_trial_wait_for_each_other_but_other_outer_trials_do_not() -> None:
    search = NestedSearch(KEYS, RECIPE, plan(trials=60))
    first, second = search.ask(), search.ask()
    assert first is not None and second is not None
    assert first[0].outer_key != second[0].outer_key
    for each in first:
        search.tell(each.number, (value_of(each.settings),))
    third = search.ask()
    assert third is not None and third[0].outer_key == first[0].outer_key


def test_pruned_outer_trials_get_no_further_batch() -> None:
    search = NestedSearch(KEYS, RECIPE, plan(trials=60))
    first = search.ask()
    assert first is not None
    for each in first:
        search.tell(each.number, (0.5,))
    batch = first
    while batch[0].outer_key == first[0].outer_key:
        batch = search.ask()
        assert batch is not None
        for each in batch:
            pruned = each.outer_key != first[0].outer_key
            search.tell(each.number, None if pruned else (0.5,), pruned_at=(1, 0.1) if pruned else None)
    after = search.ask()
    assert after is not None and after[0].outer_key not in (first[0].outer_key, batch[0].outer_key)


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_two_objectives_are_searched_together(sampler: str) -> None:
    search = NestedSearch(
        KEYS, RECIPE, plan(sampler=sampler, trials=40, inner_trials=1, directions=("max", "min"), flat=True)
    )
    count = 0
    while batch := search.ask():
        count += len(batch)
        for each in batch:
            search.tell(each.number, (value_of(each.settings), each.settings["a"]))
    assert count == 40
