"""Which of several settings to take, and what the choice is worth on images that it was not made on.

Settings (thresholds, iteration counts, recipes of a search) are compared on the same images. An image enters
through its counts alone, (3, C): pixels right, in the truth, predicted, as `bootstrap.image_counts` gives them;
everything here is a function of counts int64 (S, N, 3, C), S settings on N images. A setting chosen on the very
images that it is reported on looks better than it is, the more so the more settings there are: `select` puts the
honest numbers beside that one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wsss.evaluation.bootstrap import (
    Interval,
    PairedComparison,
    bootstrap_interval_from_counts,
    paired_comparison_from_counts,
)
from wsss.evaluation.confusion import EvaluationError, MeanOver, miou_from_counts

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Choice:
    """The best of S settings, chosen by masks.

    Attributes:
        mious: of every setting on all images (fraction), None where nothing was scored.
        oracle: index of the best setting on all images, the first among equals; `oracle_miou` its mIoU there.
        held_out: best setting on each half of the images (`half_of`); None when one half is empty or unscored.
        held_out_miou: both halves pooled, each scored at the setting that the other half chose; None likewise.
    """

    mious: tuple[float | None, ...]
    oracle: int
    oracle_miou: float
    held_out: tuple[int, int] | None
    held_out_miou: float | None


@dataclass(frozen=True)
class Selected:
    """What one way of choosing gives.

    Attributes:
        rule: "default", "oracle", "held_out", "split" or "label_free".
        settings: the chosen setting; two for "held_out", one for each half of the images.
        images: how many images the numbers are over: those that the choice was not made on, for "split".
        miou: with its interval over images; the choice itself is held fixed in it.
        gain: over the default setting on the same images, paired.
        used_masks: whether masks made the choice.
    """

    rule: str
    settings: tuple[int, ...]
    images: int
    miou: Interval
    gain: PairedComparison
    used_masks: bool


def half_of(name: str) -> int:
    """0 or 1: the half of the images that an image belongs to, by its name alone.

    Adding images to a list moves none of the others to the other half.
    """
    return hashlib.sha256(name.encode()).digest()[0] & 1


def in_selection_part(name: str, fraction: float) -> bool:
    """Whether an image belongs to the part of about `fraction` (0 to 1) that choices are made on, by its name alone.

    The bytes of the digest differ from those of `half_of`, so that the two divisions know nothing of each other.
    """
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[8:12], "big") < fraction * 2**32


def setting_mious(counts: Array, mean_over: MeanOver = "defined") -> Array:
    """counts (S, N, 3, C) -> mIoU float64 (S,) of all N images, NaN where no pixel was scored."""
    total = _checked(counts).sum(axis=1)
    return np.atleast_1d(miou_from_counts(total[:, 0], total[:, 1], total[:, 2], mean_over))


def best_setting(counts: Array, mean_over: MeanOver = "defined") -> int:
    """Index of the setting with the highest mIoU, the first among equals. EvaluationError if nothing was scored."""
    scores = setting_mious(counts, mean_over)
    if np.isnan(scores).all():
        raise EvaluationError("no pixel was scored", "best_setting", "check that the masks are not all ignored")
    return int(np.nanargmax(scores))


def choose(counts: Array, names: Sequence[str], *, mean_over: MeanOver = "defined") -> Choice:
    """The best setting on all images, and cross-fitted on halves.

    counts: int64 (S, N, 3, C). names: of the N images, which decide the halves.
    Raises EvaluationError when the shapes do not fit or no pixel was scored.
    """
    scores = setting_mious(counts, mean_over)
    oracle = best_setting(counts, mean_over)
    fitted = _cross_fitted(counts, names, mean_over)
    held_out = None
    if fitted is not None:
        total = fitted[1].sum(axis=0)
        held_out = float(miou_from_counts(total[0], total[1], total[2], mean_over))
    return Choice(
        mious=tuple(None if np.isnan(score) else float(score) for score in scores),
        oracle=oracle,
        oracle_miou=float(scores[oracle]),
        held_out=None if fitted is None else fitted[0],
        held_out_miou=held_out,
    )


def select(
    counts: Array,
    names: Sequence[str],
    *,
    default: int = 0,
    label_free: Array | None = None,
    split: float = 0.5,
    samples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    mean_over: MeanOver = "defined",
) -> tuple[Selected, ...]:
    """Every way of choosing side by side: default, oracle, held_out, split and, with a criterion, label_free.

    Args:
        counts: int64 (S, N, 3, C).
        names: of the N images.
        default: index of the setting that was not chosen, a published one.
        label_free: float (S, N), a criterion that no mask enters, higher is better (`wsss.evaluation.label_free`);
            NaN where an image has none. The setting with the highest mean is taken, the first among equals.
        split: share of the images that "split" chooses on; it reports on the others.
        samples, confidence, seed: of the bootstrap; all settings see the same resamples.

    Ways that can not be gone, because a part of the images is empty or unscored, are left out.
    Raises EvaluationError when shapes do not fit or nothing was scored.
    """
    counts = _checked(counts)
    if len(names) != counts.shape[1] or not 0 <= default < counts.shape[0]:
        raise EvaluationError(
            f"{len(names)} names and default {default} for counts {counts.shape}",
            "select",
            "give one name for each image and the index of one of the settings",
        )
    everywhere = np.ones(counts.shape[1], dtype=bool)
    oracle = best_setting(counts, mean_over)
    ways: list[tuple[str, tuple[int, ...], Array, Array, bool]] = [
        ("default", (default,), counts[default], everywhere, False),
        ("oracle", (oracle,), counts[oracle], everywhere, True),
    ]
    fitted = _cross_fitted(counts, names, mean_over)
    if fitted is not None:
        ways.append(("held_out", fitted[0], fitted[1], everywhere, True))
    part = np.array([in_selection_part(name, split) for name in names])
    if _scored(counts[:, part]) and _scored(counts[:, ~part]):
        chosen = best_setting(counts[:, part], mean_over)
        ways.append(("split", (chosen,), counts[chosen][~part], ~part, True))
    if label_free is not None:
        chosen = label_free_choice(label_free)
        ways.append(("label_free", (chosen,), counts[chosen], everywhere, False))
    result = []
    for rule, settings, chosen_counts, over, used_masks in ways:
        options: dict[str, Any] = {
            "samples": samples,
            "confidence": confidence,
            "seed": seed,
            "mean_over": mean_over,
        }
        interval = bootstrap_interval_from_counts(chosen_counts, **options)
        gain = paired_comparison_from_counts(chosen_counts, counts[default][over], **options)
        result.append(Selected(rule, settings, int(over.sum()), interval, gain, used_masks))
    return tuple(result)


def counts_of_settings(evaluations: Sequence[Mapping[str, Array]], variant: str = "") -> tuple[Array, list[str]]:
    """What `select` needs, from the arrays that evaluation stages store ("image_counts", "images").

    evaluations: arrays of each setting's evaluation. variant: ending of the number's name, e.g. "crf".
    Returns int64 (S, N, 3, C) and the names of the N images, sorted.
    Raises EvaluationError when settings were evaluated on different images, or keep no counts.
    """
    ending = f"_{variant}" if variant else ""
    names: list[str] | None = None
    stacked: list[Array] = []
    for index, arrays in enumerate(evaluations):
        if f"image_counts{ending}" not in arrays:
            raise EvaluationError(
                f"setting {index} keeps no counts of its images: image_counts{ending} is missing",
                "counts_of_settings",
                f"it holds: {', '.join(sorted(arrays)) or 'nothing'}",
            )
        found = [str(name) for name in arrays[f"images{ending}"]]
        order = sorted(range(len(found)), key=found.__getitem__)
        ordered = [found[position] for position in order]
        if names is not None and ordered != names:
            raise EvaluationError(
                f"setting {index} was evaluated on {len(found)} images, the first one on {len(names)} or on others",
                "counts_of_settings",
                "compare settings of one data set and one image list",
            )
        names = ordered
        stacked.append(np.asarray(arrays[f"image_counts{ending}"])[order].astype(np.int64))
    if names is None:
        raise EvaluationError("there is no setting", "counts_of_settings", "give at least one evaluation")
    return np.stack(stacked), names


def label_free_choice(criterion: Array) -> int:
    """Setting with the highest mean over images of a criterion float (S, N); NaN values are left out of the mean.

    Raises EvaluationError when no setting has a value.
    """
    criterion = np.asarray(criterion, dtype=np.float64)
    if criterion.ndim != 2 or np.isnan(criterion).all():
        raise EvaluationError(
            f"a criterion is (settings, images) with values, not {criterion.shape}",
            "label_free_choice",
            "compute it for every setting on the same images",
        )
    return int(np.nanargmax(_nan_means(criterion)))


def rank_correlation(first: Sequence[float] | Array, second: Sequence[float] | Array) -> float:
    """Spearman's rank correlation of two scores of the same S settings, -1 to 1; ties share their mean rank.

    NaN when one of the two does not vary or there are fewer than two settings.
    """
    ranks = [_ranks(np.asarray(values, dtype=np.float64)) for values in (first, second)]
    if ranks[0].size != ranks[1].size:
        raise EvaluationError(
            f"{ranks[0].size} and {ranks[1].size} scores can not be ranked against each other",
            "rank_correlation",
            "give both scores of the same settings",
        )
    if ranks[0].size < 2 or np.ptp(ranks[0]) == 0 or np.ptp(ranks[1]) == 0:
        return float("nan")
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _cross_fitted(counts: Array, names: Sequence[str], mean_over: MeanOver) -> tuple[tuple[int, int], Array] | None:
    """Settings chosen on each half, and counts (N, 3, C) of every image at the other half's choice."""
    halves = np.array([half_of(name) for name in names])
    if halves.size != counts.shape[1]:
        raise EvaluationError(
            f"{halves.size} names for {counts.shape[1]} images", "selection", "give one name for each image"
        )
    if not all(_scored(counts[:, halves == half]) for half in (0, 1)):
        return None
    chosen = tuple(best_setting(counts[:, halves == half], mean_over) for half in (0, 1))
    fitted = np.where((halves == 0)[:, None, None], counts[chosen[1]], counts[chosen[0]])
    return (chosen[0], chosen[1]), fitted


def _scored(counts: Array) -> bool:
    return bool(counts[:, :, 1].sum())


def _nan_means(values: Array) -> Array:
    valid = ~np.isnan(values)
    number = valid.sum(axis=1)
    return np.divide(np.where(valid, values, 0).sum(axis=1), number, out=np.full(len(values), np.nan), where=number > 0)


def _ranks(values: Array) -> Array:
    _, inverse, number = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(number) - (number - 1) / 2)[inverse]


def _checked(counts: Array) -> Array:
    counts = np.asarray(counts)
    if counts.ndim != 4 or counts.shape[2] != 3 or 0 in counts.shape:
        raise EvaluationError(
            f"counts of settings are (S, N, 3, C) with at least one setting and one image, not {counts.shape}",
            "selection",
            "stack bootstrap.image_counts of every setting",
        )
    return counts
