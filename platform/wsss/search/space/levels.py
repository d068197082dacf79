"""Which stage a searched key belongs to, found by changing it and looking which stage keys change.

A change of an "outer" key forces training (or a stage above the cost limit); one of an "inner" key does not; a
"curve" key is the threshold of the searched metric's curve, whose every value one pass scores; an "unused" key
reaches no stage of the metric.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from wsss.pipeline import Stage, TrainStage
from wsss.recipe import RecipeError, change_recipe, flat_dict
from wsss.search.records import Level, SearchedKey
from wsss.search.space.file import SpaceError, values_of
from wsss.search.space.pipelines import KeyedPipeline, KeyedPipelines, metric_stage


def derive_levels(
    keys: Sequence[SearchedKey],
    pipelines: KeyedPipelines,
    base: KeyedPipeline,
    metric: str,
    seconds: Mapping[str, float | None],
    cost_limit: float | None,
    where: str = "search space",
) -> tuple[SearchedKey, ...]:
    """The keys with stage, level and training stages filled in.

    Args:
        seconds: expected cost of each stage of `base`; None where it was never timed.
        cost_limit: a stage that costs more makes its keys outer as well; None: training alone does.

    Raises:
        SpaceError: a key of which no value fits the recipe's other values.
    """
    problems: list[str] = []
    derived: list[SearchedKey] = []
    for key in keys:
        start = _activated(key, base, pipelines, problems)
        if start is None:
            continue
        changed: dict[str, Stage] = {}
        curve, tried = True, 0
        for value in _other_values(key, flat_dict(start.recipe)[key.key]):
            try:
                other = pipelines.of(change_recipe(start.recipe, {key.key: value}))
            except RecipeError:
                continue  # this value alone breaks a relation with another key's default
            tried += 1
            difference = _changed_stages(start, other, metric)
            curve = curve and _is_curve(difference, other, metric, value)
            changed.update({stage.name: stage for stage in difference})
            if tried == 3:
                break
        if not tried:
            problems.append(f"{key.key}: none of its values fits the recipe's other values")
            continue
        order = [stage.name for stage in base.pipeline] + [name for name in changed if name not in base.keys]
        ordered = sorted(changed.values(), key=lambda stage: order.index(stage.name))
        derived.append(_placed(key, ordered, curve, seconds, cost_limit))
    if problems:
        raise SpaceError(problems, where)
    return _consistent(derived)


def _placed(
    key: SearchedKey, changed: Sequence[Stage], curve: bool, seconds: Mapping[str, float | None], limit: float | None
) -> SearchedKey:
    trains = tuple(stage.name for stage in changed if isinstance(stage, TrainStage))
    costly = any(limit is not None and (seconds.get(stage.name) or 0.0) > limit for stage in changed)
    level: Level = "unused" if not changed else "curve" if curve else "outer" if trains or costly else "inner"
    return replace(key, stage=changed[0].name if changed else "", level=level, trains=trains)


def _activated(
    key: SearchedKey, base: KeyedPipeline, pipelines: KeyedPipelines, problems: list[str]
) -> KeyedPipeline | None:
    """The pipeline under which the key is active."""
    wanted = {
        name: allowed[0] for name, allowed in key.conditions.items() if flat_dict(base.recipe)[name] not in allowed
    }
    if not wanted:
        return base
    try:
        return pipelines.of(change_recipe(base.recipe, wanted))
    except RecipeError as error:
        problems += [f"{key.key}: its condition does not fit the recipe: {problem}" for problem in error.problems]
        return None


def _other_values(key: SearchedKey, present: Any) -> Iterator[Any]:
    if key.kind == "categorical":
        yield from (choice for choice in key.choices if choice != present)
        return
    if key.step:
        values = values_of(key)
        spread = [values[index * (len(values) - 1) // 8] for index in range(9)]
    else:
        spread = [key.low + (key.high - key.low) * index / 8 for index in range(9)]
        spread = [round(value) if key.kind == "int" else value for value in spread]
    # From the middle outwards: the ends of two ranges are likelier to break a relation between their keys.
    for value in sorted(dict.fromkeys(spread), key=lambda value: abs(value - (key.low + key.high) / 2)):
        if value != present:
            yield value


def _changed_stages(before: KeyedPipeline, after: KeyedPipeline, metric: str) -> list[Stage]:
    """Stages of the metric whose key differs between two pipelines, or that only one of them has."""
    stages: dict[str, Stage] = {}
    for pipeline, other in ((before, after), (after, before)):
        for stage in pipeline.pipeline.upstream(metric_stage(pipeline.pipeline, metric)):
            if other.keys.get(stage.name) != pipeline.keys[stage.name]:
                stages[stage.name] = stage
    return list(stages.values())


def _is_curve(changed: Sequence[Stage], after: KeyedPipeline, metric: str, value: Any) -> bool:
    """Whether the change only moves the default on the metric's threshold curve."""
    evaluation = after.pipeline.stage(metric_stage(after.pipeline, metric))
    scorers = set(evaluation.inputs.values())
    names = {stage.name for stage in changed}
    if evaluation.name not in names or not names <= {evaluation.name, *scorers}:
        return False
    default = getattr(evaluation.config, "default_threshold", None)
    if not isinstance(value, float) or default is None or abs(default - value) > 1e-12:
        return False
    # A scorer differs at most in which thresholds it scores.
    return all(
        "thresholds" in {field.name for field in dataclasses.fields(after.pipeline.stage(name).config)}
        for name in names & scorers
    )


def _consistent(keys: Sequence[SearchedKey]) -> tuple[SearchedKey, ...]:
    """A key on which an outer key's presence depends is outer itself; conditions come first in `keys`."""
    levels: dict[str, Level] = {key.key: key.level for key in keys}
    for key in reversed(keys):
        if levels[key.key] == "outer":
            levels.update({name: "outer" for name in key.conditions if name in levels})
    return tuple(replace(key, level=levels[key.key]) for key in keys)
