"""Which of several settings to take, and what the choice is worth on images that it was not made on.

Settings (thresholds, iteration counts, recipes of a search) are compared on the same images. An image enters
through its counts alone, (3, C): pixels right, in the truth, predicted, as `confusion.class_counts` gives them;
everything here is a function of counts int64 (S, N, 3, C), S settings on N images. A setting chosen on the very
images that it is reported on looks better than it is, the more so the more settings there are: what it is worth on
other images stands beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wsss.evaluation.confusion import EvaluationError, MeanOver, miou_from_counts


@dataclass(frozen=True)
class Choice:
    """The best of S settings, chosen by masks.

    Attributes:
        mious: of every setting on all images (fraction), None where nothing was scored.
        oracle: index of the best setting on all images, the first among equals; `oracle_miou` its mIoU there.
        cross_fitted: best setting on each half of the images (`half_of`); None when one half is empty or unscored.
        cross_fitted_miou: both halves pooled, each scored at the setting that the other half chose, and at most
            `oracle_miou`; None likewise. mIoU is no sum over images: two settings mixed can reach more than the best
            single one, which is what a single choice is worth at most.
    """

    mious: tuple[float | None, ...]
    oracle: int
    oracle_miou: float
    cross_fitted: tuple[int, int] | None
    cross_fitted_miou: float | None


def half_of(name: str) -> int:
    """0 or 1: the half of the images that an image belongs to, by its name alone.

    Adding images to a list moves none of the others to the other half.
    """
    return hashlib.sha256(name.encode()).digest()[0] & 1


def setting_mious(counts: np.ndarray, mean_over: MeanOver = "defined") -> np.ndarray:
    """counts (S, N, 3, C) -> mIoU float64 (S,) of all N images, NaN where no pixel was scored."""
    total = _checked(counts).sum(axis=1)
    return np.atleast_1d(miou_from_counts(total[:, 0], total[:, 1], total[:, 2], mean_over))


def best_setting(counts: np.ndarray, mean_over: MeanOver = "defined") -> int:
    """Index of the setting with the highest mIoU, the first among equals. EvaluationError if nothing was scored."""
    scores = setting_mious(counts, mean_over)
    if np.isnan(scores).all():
        raise EvaluationError("no pixel was scored", "best_setting", "check that the masks are not all ignored")
    return int(np.nanargmax(scores))


def choose(counts: np.ndarray, names: Sequence[str], *, mean_over: MeanOver = "defined") -> Choice:
    """The best setting on all images, and cross-fitted on halves.

    counts: int64 (S, N, 3, C). names: of the N images, which decide the halves.
    Raises EvaluationError when the shapes do not fit or no pixel was scored.
    """
    halves = np.array([half_of(name) for name in names])
    if halves.size != _checked(counts).shape[1]:
        raise EvaluationError(
            f"{halves.size} names for {counts.shape[1]} images", "selection", "give one name for each image"
        )
    return choose_by_halves(np.stack([counts[:, halves == half].sum(axis=1) for half in (0, 1)], axis=1), mean_over)


def choose_by_halves(counts: np.ndarray, mean_over: MeanOver = "defined") -> Choice:
    """`choose` from counts int64 (S, 2, 3, C), the sums over the images of each half (zeros without an image)."""
    scores = setting_mious(counts, mean_over)
    oracle = best_setting(counts, mean_over)
    oracle_miou = float(scores[oracle])
    chosen = cross_fitted = None
    if counts[:, :, 1].any(axis=(0, 2)).all():
        chosen = (best_setting(counts[:, :1], mean_over), best_setting(counts[:, 1:], mean_over))
        total = counts[chosen[1], 0] + counts[chosen[0], 1]
        cross_fitted = min(oracle_miou, float(miou_from_counts(total[0], total[1], total[2], mean_over)))
    return Choice(
        mious=tuple(None if np.isnan(score) else float(score) for score in scores),
        oracle=oracle,
        oracle_miou=oracle_miou,
        cross_fitted=chosen,
        cross_fitted_miou=cross_fitted,
    )


def _checked(counts: np.ndarray) -> np.ndarray:
    counts = np.asarray(counts)
    if counts.ndim != 4 or counts.shape[2] != 3 or 0 in counts.shape:
        raise EvaluationError(
            f"counts of settings are (S, N, 3, C) with at least one setting and one image, not {counts.shape}",
            "selection",
            "stack confusion.class_counts of every setting",
        )
    return counts
