"""Reads the value of a trial off its evaluation: the curve, the rule that chooses, the honest number beside it."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from wsss.evaluation.bootstrap import PairedComparison, bootstrap_interval_from_counts, paired_comparison_from_counts
from wsss.evaluation.confusion import MeanOver, intersections_and_totals, miou_from_counts
from wsss.evaluation.counts import Counts
from wsss.evaluation.selection import half_of
from wsss.search.records import CriterionPoint, CurvePoint, SearchedKey, Select
from wsss.store import Artifact

Array = np.ndarray[Any, np.dtype[Any]]
_CHOOSING = 0
_BOOTSTRAP_SAMPLES = 1000


@dataclass(frozen=True)
class Score:
    """What `TrialRecord` holds of an evaluation; see there. `value` is what the search sees."""

    value: float
    quoted: float
    threshold: float | None = None
    default_value: float | None = None
    oracle: float | None = None
    chosen: float | None = None
    held_out: float | None = None
    low: float | None = None
    high: float | None = None
    curve: tuple[CurvePoint, ...] = ()
    criterion: tuple[CriterionPoint, ...] = ()
    label_free: float | None = None


@dataclass(frozen=True)
class ImageCounts:
    """Right, in the truth, predicted, of every image at every threshold.

    Attributes:
        images: (N, T, 3, C) int64; T is 1 without a curve.
        thresholds: (T,); empty without a curve.
        names: (N,) of the images.
        mean_over: how the metric forms its mean.
        default: index of the recipe's own threshold.
    """

    images: Array
    thresholds: Array
    names: tuple[str, ...]
    mean_over: MeanOver
    default: int

    @cached_property
    def choosing(self) -> Array:
        """(N,) bool, images of the half that chooses."""
        return np.array([is_choosing(name) for name in self.names], dtype=bool)

    def of(self, names: Sequence[str]) -> ImageCounts:
        """The counts of some of the images, in that order."""
        places = {name: place for place, name in enumerate(self.names)}
        return replace(self, images=self.images[[places[name] for name in names]], names=tuple(names))

    def allowed(self, limits: tuple[float, float] | None) -> Array:
        """(T,) bool, thresholds that may be chosen; the recipe's own always may."""
        found = np.zeros(self.images.shape[1], dtype=bool)
        found[self.default] = True
        if limits is not None and len(self.thresholds):
            found |= (self.thresholds >= limits[0] - 1e-9) & (self.thresholds <= limits[1] + 1e-9)
        return found

    def at(self, threshold: float | None) -> Array:
        """(N, 3, C) at a threshold; None: the recipe's own."""
        return self.images[:, self.index(threshold)]

    def index(self, threshold: float | None) -> int:
        """Place of a threshold; None: the recipe's own."""
        if threshold is None or not len(self.thresholds):
            return self.default
        return int(np.abs(self.thresholds - threshold).argmin())

    def curve(self, images: Array) -> Array:
        """mIoU (T,) of a subset of the images, given as a mask."""
        total = self.images[images].sum(axis=0)
        return np.asarray(
            miou_from_counts(total[..., 0, :], total[..., 1, :], total[..., 2, :], self.mean_over), dtype=np.float64
        )


def score_of(
    metric: str,
    select: Select,
    evaluation: Artifact,
    scorer: Artifact | None,
    limits: tuple[float, float] | None,
    criterion: Sequence[CriterionPoint] = (),
) -> Score:
    """The score of one evaluation.

    Args:
        metric: name in the evaluation's metrics; mIoU as a fraction.
        evaluation: artifact of the reduce stage; scorer: of the stage with the confusion matrix of each image.
        limits: range of the thresholds that may be chosen; None: the threshold is not searched.
        criterion: without masks, at some of the thresholds; the rule label_free needs it.
    """
    value = float(evaluation.json("metrics.json")[metric])
    counts = read_counts(metric, evaluation, scorer)
    if counts is None:
        seen = best_point(criterion).value if select == "label_free" else value
        free = value if criterion else None
        return Score(value=seen, quoted=value, default_value=value, criterion=tuple(criterion), label_free=free)
    return score_counts(counts, select, limits, value, criterion)


def score_counts(
    counts: ImageCounts,
    select: Select,
    limits: tuple[float, float] | None,
    default_value: float,
    criterion: Sequence[CriterionPoint] = (),
) -> Score:
    """The score from the counts of the images.

    Rules: "default_threshold" takes the recipe's own threshold and all images; "oracle" the best threshold of all
    images, by their masks; "held_out" the best threshold of one half of the images, and reports on the other half;
    "label_free" the threshold with the best criterion, whose value the search then sees, and reports on all images.
    A threshold that is not searched (`limits` None) stays the recipe's.
    """
    everything = np.ones(len(counts.choosing), dtype=bool)
    over_all = counts.curve(everything)
    on_choosing, on_reporting = counts.curve(counts.choosing), counts.curve(~counts.choosing)
    allowed = counts.allowed(limits)
    by_rule = on_choosing if select == "held_out" else over_all
    free = counts.index(best_point(criterion).threshold) if criterion else None
    index = counts.default
    if select == "label_free":
        assert free is not None
        index = free
    elif select != "default_threshold":
        index = int(np.nanargmax(np.where(allowed, by_rule, -np.inf)))
    best = int(np.nanargmax(np.where(allowed, over_all, -np.inf)))
    images = ~counts.choosing if select == "held_out" else everything
    interval = bootstrap_interval_from_counts(
        counts.images[images][:, index], samples=_BOOTSTRAP_SAMPLES, mean_over=counts.mean_over
    )
    curve = tuple(
        CurvePoint(float(threshold), float(a), float(b), float(c))
        for threshold, a, b, c in zip(counts.thresholds, over_all, on_choosing, on_reporting, strict=False)
    )
    held = select == "held_out"
    return Score(
        value=best_point(criterion).value if select == "label_free" else float(by_rule[index]),
        quoted=float(on_reporting[index]) if held else float(over_all[index]),
        threshold=float(counts.thresholds[index]) if len(counts.thresholds) else None,
        default_value=default_value,
        oracle=float(over_all[best]),
        chosen=float(on_choosing[index]) if held else None,
        held_out=float(on_reporting[index]) if held else None,
        low=interval.low,
        high=interval.high,
        curve=curve,
        criterion=tuple(criterion),
        label_free=None if free is None else float(over_all[free]),
    )


def best_point(criterion: Sequence[CriterionPoint]) -> CriterionPoint:
    """The point with the highest value, the first among equals; one without a value is the worst."""
    return max(criterion, key=lambda point: -math.inf if math.isnan(point.value) else point.value)


def limits_of(keys: Sequence[SearchedKey]) -> tuple[float, float] | None:
    """Range of the thresholds that the curve may choose from; None: no threshold is searched."""
    curve = [key for key in keys if key.level == "curve"]
    return (min(key.low for key in curve), max(key.high for key in curve)) if curve else None


def paired_gain(
    best: ImageCounts, threshold: float | None, recipe: ImageCounts, select: Select, samples: int = _BOOTSTRAP_SAMPLES
) -> PairedComparison | None:
    """Best trial at its threshold against the recipe at its own, on the images that report; None if these differ."""
    if best.names != recipe.names:
        return None
    images = ~best.choosing if select == "held_out" else np.ones(len(best.choosing), dtype=bool)
    return paired_comparison_from_counts(
        best.at(threshold)[images], recipe.at(None)[images], samples=samples, mean_over=best.mean_over
    )


def is_choosing(name: str) -> bool:
    """Whether an image belongs to the half that chooses."""
    return half_of(name) == _CHOOSING


def read_counts(metric: str, evaluation: Artifact, scorer: Artifact | None) -> ImageCounts | None:
    """Counts of each image behind a metric; None when the evaluation keeps none, or only one half has images."""
    if "arrays.npz" not in evaluation.files:
        return None
    with np.load(io.BytesIO(evaluation.path("arrays.npz").read_bytes()), allow_pickle=False) as arrays:
        scored = None if scorer is None else scorer.arrays
        counts = counts_of(metric, arrays, evaluation.json("tables.json"), scored)
    return None if counts is None or counts.choosing.all() or not counts.choosing.any() else counts


def counts_of(
    metric: str,
    arrays: Mapping[str, Array],
    tables: Mapping[str, Sequence[Mapping[str, Any]]],
    scored: Callable[[str], Mapping[str, Array]] | None,
) -> ImageCounts | None:
    """Counts of each image from what an evaluation returned (see `wsss.stages.score.summarize_curve`).

    Args:
        scored: image name -> arrays of the scorer before it, which hold the curve of each image; None: no curve.

    Returns None when the evaluation does not say how the metric forms its mean, and so keeps no counts per image.
    """
    means = ((name, row) for name, rows in tables.items() if name.startswith("miou") for row in rows)
    found = next(((name, row["mean_over"]) for name, row in means if row["metric"] == metric), None)
    if found is None:
        return None
    suffix, mean_over = found[0].removeprefix("miou"), found[1]
    per_image = arrays[f"image_counts{suffix}"].astype(np.int64)
    names = tuple(str(name) for name in arrays[f"images{suffix}"])
    thresholds = arrays.get(f"thresholds{suffix}")
    if thresholds is None or scored is None:
        return ImageCounts(per_image[:, None], np.zeros(0), names, mean_over, 0)
    default = next(index for index, row in enumerate(tables[f"curve{suffix}"]) if row["default"])
    curves = np.stack([_image_curve(Counts.read(scored(name)).dense()) for name in names])
    return ImageCounts(curves, thresholds.astype(np.float64), names, mean_over, default)


def _image_curve(confusion: Array) -> Array:
    """(T, C, C) -> (T, 3, C)."""
    return np.stack(intersections_and_totals(confusion), axis=-2)
