"""How far a mIoU could move with other images: bootstrap over images, and paired comparison of two results.

A data set's mIoU depends on an image only through three counts per class (right, in the truth, predicted),
so a resample is a weighted sum of rows, and a thousand resamples are one matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wsss.evaluation.confusion import EvaluationError, MeanOver, miou_from_counts

_CHUNK = 64


@dataclass(frozen=True)
class Interval:
    """mIoU (fraction) of all images with its bootstrap percentile interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedComparison:
    """Difference first minus second in mIoU (fraction) over the same images.

    low, high: bootstrap percentile interval of the difference.
    p_value: two-sided share of resamples on the other side of zero; small means that the sign is settled.
    """

    difference: float
    low: float
    high: float
    p_value: float


def bootstrap_interval_from_counts(
    counts: np.ndarray,
    *,
    samples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    mean_over: MeanOver = "defined",
) -> Interval:
    """Percentile interval of mIoU when the N images are drawn anew with replacement.

    counts: `class_counts` of every image, integer (N, 3, C). confidence in (0, 1). The same seed gives the same
    interval. A class that a resample happens to miss is left out of that resample's mean.
    Raises EvaluationError without images or without scored pixels.
    """
    return interval_of_mean([counts], samples=samples, confidence=confidence, seed=seed, mean_over=mean_over)


def interval_of_mean(
    counts: Sequence[np.ndarray],
    *,
    samples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    mean_over: MeanOver = "defined",
) -> Interval:
    """As `bootstrap_interval_from_counts`, of the mean mIoU over trainings that were scored on the same images.

    counts: of each training the `class_counts` of every image, integer (N, 3, C), image i the same in all.
    """
    for each in counts:
        _check(each, samples, confidence)
    value = np.mean([_miou(each.sum(axis=0), mean_over) for each in counts])
    if np.isnan(value):
        raise EvaluationError("no pixel was scored", "bootstrap", "check that the masks are not all ignored")
    resampled = np.mean([_resampled_mious(each, samples, seed, mean_over) for each in counts], axis=0)
    return Interval(float(value), *_percentiles(resampled, confidence))


def paired_comparison_from_counts(
    first: np.ndarray,
    second: np.ndarray,
    *,
    samples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    mean_over: MeanOver = "defined",
) -> PairedComparison:
    """Compare two results on the same images: both are drawn with the same resamples.

    first, second: `class_counts` of every image, integer (N, 3, C), image i the same in both.
    Raises EvaluationError when they differ in shape.
    """
    return paired_comparison_of_means(
        [first], [second], samples=samples, confidence=confidence, seed=seed, mean_over=mean_over
    )


def paired_comparison_of_means(
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray],
    *,
    samples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    mean_over: MeanOver = "defined",
) -> PairedComparison:
    """Compare two recipes that were each trained under one or more seeds: mean mIoU over seeds, on the same images.

    first, second: of each seed the `class_counts` of every image, integer (N, 3, C). The interval is over images; what
    another training would give is in it only as far as the given seeds show.
    Raises EvaluationError when shapes differ, or one side has no seed.
    """
    shapes = {each.shape for each in (*first, *second)}
    if len(shapes) != 1 or not first or not second:
        raise EvaluationError(
            f"the two results cover {' and '.join(str([each.shape for each in side]) for side in (first, second))}",
            "paired_comparison",
            "give counts of the same images and classes in the same order",
        )
    _check(first[0], samples, confidence)
    ours, theirs = (float(np.mean([_miou(each.sum(axis=0), mean_over) for each in side])) for side in (first, second))
    value = ours - theirs
    if np.isnan(value):
        raise EvaluationError("no pixel was scored", "paired_comparison", "check the masks of both results")
    resampled_first, resampled_second = (
        np.mean([_resampled_mious(each, samples, seed, mean_over) for each in side], axis=0) for side in (first, second)
    )
    differences = resampled_first - resampled_second
    low, high = _percentiles(differences, confidence)
    below, above = np.mean(differences <= 0), np.mean(differences >= 0)
    return PairedComparison(float(value), low, high, float(min(1.0, 2 * min(below, above))))


def _resampled_mious(counts: np.ndarray, samples: int, seed: int, mean_over: MeanOver) -> np.ndarray:
    """mIoU of every resample, (samples,), in blocks; the draws do not depend on the block size."""
    rng = np.random.default_rng(seed)
    number = counts.shape[0]
    # float64 holds every integer below 2**53: exact for 9e15 pixels.
    flat = counts.reshape(number, -1).astype(np.float64)
    found = []
    for start in range(0, samples, _CHUNK):
        weights = rng.multinomial(number, np.full(number, 1 / number), size=min(_CHUNK, samples - start))
        found.append(_miou((weights.astype(np.float64) @ flat).reshape(-1, *counts.shape[1:]), mean_over))
    return np.concatenate(found)


def _miou(counts: np.ndarray, mean_over: MeanOver) -> Any:
    return miou_from_counts(counts[..., 0, :], counts[..., 1, :], counts[..., 2, :], mean_over)


def _percentiles(values: np.ndarray, confidence: float) -> tuple[float, float]:
    tail = (1 - confidence) / 2 * 100
    low, high = np.nanpercentile(values, [tail, 100 - tail])
    return float(low), float(high)


def _check(counts: np.ndarray, samples: int, confidence: float) -> None:
    if counts.ndim != 3 or counts.shape[1] != 3 or counts.shape[0] == 0:
        raise EvaluationError(
            f"image counts are (N, 3, C) with N at least 1, not {counts.shape}",
            "bootstrap",
            "give at least one image; build the counts with class_counts",
        )
    if samples < 1 or not 0 < confidence < 1:
        raise EvaluationError(
            f"samples {samples} and confidence {confidence} make no interval",
            "bootstrap",
            "samples at least 1, confidence between 0 and 1 (0.95 is usual)",
        )
