"""What the tables and plots of a sweep read off its records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from wsss.search.records import SearchedKey, SweepRecord, TrialRecord, executed_stages

NO_VALUE = object()


@dataclass(frozen=True)
class StageCost:
    """What all trials asked of one stage.

    Attributes:
        asked, executed: executions asked for, and really done.
        independent_seconds: had every trial computed itself what some trial computed; executed_seconds: what was spent.
    """

    asked: int = 0
    executed: int = 0
    independent_seconds: float = 0.0
    executed_seconds: float = 0.0


def finished(trials: Sequence[TrialRecord], metric: str) -> list[TrialRecord]:
    """Trials with a value, by number."""
    return sorted(
        (trial for trial in trials if trial.status == "finished" and _is_number(trial.values.get(metric))),
        key=lambda trial: trial.number,
    )


def best_trial(sweep: SweepRecord, trials: Sequence[TrialRecord]) -> TrialRecord | None:
    """The trial that the sweep declares; while it declares none, the one with the best value."""
    found = finished(trials, sweep.metric)
    if sweep.best is not None:
        return next((trial for trial in found if trial.number == sweep.best.trial), None)
    return max(found, key=lambda trial: (trial.values[sweep.metric], -trial.number), default=None)


def recipe_trial(trials: Sequence[TrialRecord]) -> TrialRecord | None:
    """Trial 0, the recipe itself."""
    return next((trial for trial in trials if trial.number == 0), None)


def value_of(sweep: SweepRecord, trial: TrialRecord, key: SearchedKey) -> Any:
    """The value of a key in a trial; NO_VALUE where the key's conditions switch it off."""
    if key.level == "curve" and trial.threshold is not None:
        return trial.threshold
    if key.key in trial.settings:
        return trial.settings[key.key]
    return key.default if _active(sweep, trial, key) else NO_VALUE


def best_so_far(values: Sequence[float]) -> list[float]:
    """Running best."""
    return list(accumulate(values, max))


def by_importance(importances: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Keys by their largest share. importances: way of computing it ("fANOVA") -> key -> share 0 to 1."""
    names = dict.fromkeys(key for shares in importances.values() for key in shares)
    return sorted(names, key=lambda key: -max(shares.get(key, 0.0) for shares in importances.values()))


def pareto_front(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """Positions that no other one beats in both cost and value, by rising cost."""
    front: list[int] = []
    for index in sorted(range(len(costs)), key=lambda index: (costs[index], -values[index])):
        if not front or values[index] > values[front[-1]]:
            front.append(index)
    return front


def shown_value(value: Any) -> str:
    """A value as people read it."""
    if value is NO_VALUE:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def stage_costs(trials: Sequence[TrialRecord]) -> dict[str, StageCost]:
    """Stage -> executions and seconds over all trials, in the order in which they are first asked for."""
    found: dict[str, StageCost] = {}
    computed = executed_stages(trials)
    for trial in trials:
        for use in trial.stages:
            before = found.get(use.name, StageCost())
            found[use.name] = StageCost(
                before.asked + 1,
                before.executed + use.executed,
                before.independent_seconds + (use.seconds if (use.name, use.key) in computed else 0.0),
                before.executed_seconds + (use.seconds if use.executed else 0.0),
            )
    return found


def _active(sweep: SweepRecord, trial: TrialRecord, key: SearchedKey) -> bool:
    recipe = _flat(sweep.recipe)
    defaults = {each.key: each.default for each in sweep.space}
    values = {**recipe, **defaults, **trial.settings}
    return all(values.get(name) in allowed for name, allowed in key.conditions.items())


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, Mapping):
            result.update(_flat(value, f"{prefix}{name}."))
        else:
            result[f"{prefix}{name}"] = value
    return result


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
