"""Rules of choosing among all trials of a sweep, side by side: what each would take, and what that is worth.

A rule chooses a trial and a threshold of its curve. Which ones it takes is read off the records; only the few
that are taken are scored again from their counts, for the intervals over images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from wsss.evaluation.bootstrap import bootstrap_interval_from_counts, paired_comparison_from_counts
from wsss.search.choose.score import Array, ImageCounts, limits_of
from wsss.search.records import SearchedKey, Selected, TrialRecord

ReadCounts = Callable[[TrialRecord], ImageCounts | None]


@dataclass(frozen=True)
class _TrialAtThreshold:
    """A trial at a threshold: mIoU of all images, of the half that chooses, of the other half."""

    trial: TrialRecord
    threshold: float | None
    value: float
    chosen: float
    reported: float


def compare_rules(trials: Sequence[TrialRecord], keys: Sequence[SearchedKey], read: ReadCounts) -> tuple[Selected, ...]:
    """Default, oracle, cross_fitted, held_out and, where trials have a criterion without masks, label_free.

    "held_out" chooses on one half of the images and reports on the other, as the sweep's rule of that name;
    "cross_fitted" does so both ways round and pools the halves. What led the
    search has looked at the trials before: a way is honest only on images that the search did not see
    (`sweep_tables`).

    Args:
        trials: those that finished; number 0 is the recipe itself.
        read: counts of each image of a trial; None when it has none.

    Returns nothing when the recipe has no counts per image.
    """
    recipe = next((trial for trial in trials if trial.number == 0), None)
    base = None if recipe is None else read(recipe)
    if recipe is None or base is None:
        return ()
    choices = [each for trial in trials for each in _choices(trial, keys, read)]
    everywhere = np.ones(len(base.names), dtype=bool)
    known: dict[int, ImageCounts] = {0: base}

    def counts(choice: _TrialAtThreshold) -> Array:
        number = choice.trial.number
        if number not in known:
            found = read(choice.trial)
            assert found is not None
            known[number] = found
        return known[number].at(choice.threshold)

    def best(score: Callable[[_TrialAtThreshold], float]) -> _TrialAtThreshold:
        # The first among equals, and a trial without a score (no pixel of the half) never.
        return max(choices, key=lambda each: -math.inf if math.isnan(score(each)) else score(each))

    default, reporting = base.at(None), ~base.choosing
    oracle, first, second = best(lambda c: c.value), best(lambda c: c.chosen), best(lambda c: c.reported)
    crossed = np.where(base.choosing[:, None, None], counts(second), counts(first))
    ways: list[tuple[str, tuple[_TrialAtThreshold, ...], Array, Array, bool]] = [
        ("oracle", (oracle,), counts(oracle), everywhere, True),
        ("cross_fitted", (first, second), crossed, everywhere, True),
        ("held_out", (first,), counts(first)[reporting], reporting, True),
    ]
    label_free = _label_free(trials)
    if label_free is not None:
        ways.append(("label_free", (label_free,), counts(label_free), everywhere, False))
    numbers: list[tuple[str, tuple[int, ...], Array, Array, bool]] = [
        (rule, tuple(each.trial.number for each in taken), found, over, by_masks)
        for rule, taken, found, over, by_masks in ways
    ]
    return tuple(
        Selected(
            rule=rule,
            trials=taken,
            images=int(over.sum()),
            miou=bootstrap_interval_from_counts(found, mean_over=base.mean_over),
            gain=paired_comparison_from_counts(found, default[over], mean_over=base.mean_over),
            used_masks=by_masks,
        )
        for rule, taken, found, over, by_masks in [("default", (0,), default, everywhere, False), *numbers]
    )


def _choices(trial: TrialRecord, keys: Sequence[SearchedKey], read: ReadCounts) -> list[_TrialAtThreshold]:
    limits = limits_of(keys)
    if trial.curve:
        return [
            _TrialAtThreshold(trial, point.threshold, point.value, point.chosen, point.reported)
            for point in trial.curve
            if limits is not None and limits[0] - 1e-9 <= point.threshold <= limits[1] + 1e-9
        ] or [_TrialAtThreshold(trial, trial.threshold, *_at_own_threshold(trial))]
    found = read(trial)
    if found is None:
        return []
    everywhere = np.ones(len(found.names), dtype=bool)
    values = (found.curve(images)[found.default] for images in (everywhere, found.choosing, ~found.choosing))
    return [_TrialAtThreshold(trial, None, *map(float, values))]


def _at_own_threshold(trial: TrialRecord) -> tuple[float, float, float]:
    point = min(trial.curve, key=lambda point: abs(point.threshold - (trial.threshold or 0.0)))
    return point.value, point.chosen, point.reported


def _label_free(trials: Sequence[TrialRecord]) -> _TrialAtThreshold | None:
    points = [
        (point.value, -trial.number, trial, point.threshold)
        for trial in trials
        for point in trial.criterion
        if not math.isnan(point.value)
    ]
    if not points:
        return None
    value, _, trial, threshold = max(points, key=lambda each: each[:2])
    return _TrialAtThreshold(trial, threshold, value, value, value)
