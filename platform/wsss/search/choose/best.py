"""The outcome of a sweep: its best trial, confirmed under other seeds where that was asked for, as a recipe file."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from scipy import stats

from wsss.files import write_file
from wsss.formatting import percent
from wsss.recipe import change_recipe, to_dict
from wsss.search.choose.score import Score
from wsss.search.records import Best, ConfirmedTrial, SearchedKey, Select, SweepRecord, TrialRecord


def ranked(trials: Sequence[TrialRecord], metric: str) -> list[TrialRecord]:
    """Finished trials, best value first; among equals the cheaper, then the earlier one."""
    finished = [trial for trial in trials if trial.status == "finished"]
    return sorted(finished, key=lambda trial: (-trial.values[metric], trial.cost_seconds, trial.number))


def recipe_numbers(
    trial: TrialRecord | Score, default: float, keys: Sequence[SearchedKey], select: Select
) -> tuple[float, float]:
    """(value that the rule chooses by, value to quote) of the recipe itself: its own threshold, not the curve's best.

    trial: its trial, or its score under another seed. default: the value where no threshold is searched.
    """
    assert trial.quoted is not None
    threshold = next((key.default for key in keys if key.level == "curve"), None)
    if threshold is None or not trial.curve:
        return default, trial.quoted
    point = min(trial.curve, key=lambda point: abs(point.threshold - threshold))
    if trial.held_out is not None:
        return point.chosen, point.reported
    if select == "label_free":
        own = min(trial.criterion, key=lambda each: abs((each.threshold or 0.0) - threshold))
        return own.value, point.value
    return point.value, point.value


def best_of(trials: Sequence[TrialRecord], metric: str, keys: Sequence[SearchedKey], select: Select) -> Best | None:
    """The best trial beside the recipe itself; None while one of the two has not finished."""
    order = ranked(trials, metric)
    default = next((trial for trial in order if trial.number == 0), None)
    if default is None:
        return None
    return _best(order[0], default, metric, keys, select, confirmed=False)


def confirmed_best(
    trials: Mapping[int, TrialRecord],
    confirmations: Sequence[ConfirmedTrial],
    metric: str,
    keys: Sequence[SearchedKey],
    select: Select,
) -> Best:
    """The trial with the best mean over seeds; the recipe itself when nothing beats it."""
    winner = max(confirmations, key=lambda each: (each.mean, each.trial == 0))
    default = next(each for each in confirmations if each.trial == 0)
    best = _best(trials[winner.trial], trials[0], metric, keys, select, confirmed=True)
    return Best(
        trial=best.trial,
        settings=best.settings if winner.trial != 0 else {},  # the recipe was confirmed at its own threshold
        value=best.value if winner.trial != 0 else best.default_value,
        reported=winner.mean,
        default_value=best.default_value,
        default_reported=default.mean,
        confirmed=True,
    )


def confirm(trial: int, seeds: Sequence[int], values: Sequence[float]) -> ConfirmedTrial:
    """Mean, spread and 95 % t interval of the values under several seeds."""
    mean = statistics.fmean(values)
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    quantile = float(stats.t.ppf(0.975, len(values) - 1)) if len(values) > 1 else 0.0
    half = quantile * spread / math.sqrt(len(values))
    return ConfirmedTrial(trial, tuple(seeds), tuple(values), mean, spread, mean - half, mean + half)


def write_best(path: Path, recipe: Any, record: SweepRecord, best: Best) -> None:
    """Write the whole recipe with the values of the best trial, for `reproduce.py --recipe`, in one step."""
    content = to_dict(change_recipe(recipe, best.settings))
    content.pop("execution", None)  # how a machine is used is not part of what was found
    head = [
        f"# Best of sweep {record.sweep_id}: {record.metric} {percent(best.reported)} %,"
        f" recipe {record.recipe_name} {percent(best.default_reported)} %",
        f"# Rule {record.select}, trial {best.trial} of {record.trials}, commit {record.git_commit or 'unknown'}.",
        *(f"# changed: {key} = {value}" for key, value in best.settings.items()),
    ]
    text = "\n".join(head) + "\n\n" + yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=110)
    write_file(path, text)


def _best(
    trial: TrialRecord,
    default: TrialRecord,
    metric: str,
    keys: Sequence[SearchedKey],
    select: Select,
    confirmed: bool,
) -> Best:
    assert trial.quoted is not None
    settings = dict(trial.settings)
    if trial.threshold is not None:
        settings.update({key.key: round(trial.threshold, 6) for key in keys if key.level == "curve"})
    defaults = {key.key: key.default for key in keys}
    default_value, default_reported = recipe_numbers(default, default.values[metric], keys, select)
    return Best(
        trial=trial.number,
        settings={key: value for key, value in settings.items() if value != defaults.get(key)},
        value=trial.values[metric],
        reported=trial.quoted,
        default_value=default_value,
        default_reported=default_reported,
        confirmed=confirmed,
    )
