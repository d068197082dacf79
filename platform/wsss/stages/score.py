"""Stage functions that score any method's maps and labels against masks.

Two stages make a number: a map stage (`build_curve_scorer`, `build_label_scorer`) that counts each image,
and a reduce stage (`summarize_curve`, `summarize_labels`) that turns counts into scores. Counts are kept
for each image, so every other statistic is a function of them later.

Roles of inputs: the scorers read the artifact in role "scores" or "labels", the summaries the scorer's
artifact in role "confusions". Class ids are 1-based in arrays named keys (0 is background).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional

from wsss.evaluation.bootstrap import bootstrap_interval_from_counts
from wsss.evaluation.confusion import (
    EvaluationError,
    MeanOver,
    all_background,
    class_counts,
    class_rows,
    confusion_matrix,
    miou_from_counts,
    pixel_accuracy,
)
from wsss.evaluation.counts import Counts
from wsss.evaluation.curves import threshold_confusions
from wsss.evaluation.selection import Choice, choose_by_halves, half_of
from wsss.metric_name import MetricName
from wsss.pipeline import Reduction, StageContext
from wsss.store import Artifact

ScoreReader = Callable[[str], tuple[np.ndarray, np.ndarray]]

# The thresholds whose scores stand beside that of the recipe's own.
DEFAULT_THRESHOLDS = tuple(round(0.01 * step, 2) for step in range(5, 51))
# The largest threshold of a curve, and of the settings that choose one: class maps reach 1.
HIGHEST_THRESHOLD = 0.95


def thresholds_with(default: float, thresholds: Sequence[float] = DEFAULT_THRESHOLDS) -> tuple[float, ...]:
    """Thresholds to score, ascending, `default` among them (a recipe's own threshold may be off the grid).

    Where it lies above the others, as wide class maps ask for, the curve goes on in steps of 0.01 to
    `HIGHEST_THRESHOLD`: else the best of the curve would be its end.
    """
    further = range(round(100 * max(thresholds)) + 1, round(100 * HIGHEST_THRESHOLD) + 1)
    beyond = [round(0.01 * step, 2) for step in further] if default > max(thresholds) else []
    return tuple(sorted({*thresholds, *beyond, default}))


@dataclass(frozen=True)
class CurveScoreConfig:
    """How a map stage scores class maps at many thresholds.

    Attributes:
        thresholds: background constants to score.
        maps, keys: names of the upstream arrays: (K, h, w) scores and (K,) class ids, 1-based.
        upsample: 0 resizes maps that are smaller than the mask bilinearly to the mask's size; a factor
            n upsamples by n and crops to the mask, which brings a map of stride n back.
        normalize: "none"; "image_maximum" divides by the maximum over all classes after upsampling, when
            it is positive, as IRN's step/make_sem_seg_labels.py does with random-walk scores.
        ignore_index: truth value that is not scored.
    """

    thresholds: tuple[float, ...] = DEFAULT_THRESHOLDS
    maps: str = "cam"
    keys: str = "keys"
    upsample: int = 0
    normalize: Literal["none", "image_maximum"] = "none"
    ignore_index: int = 255


@dataclass(frozen=True)
class LabelScoreConfig:
    """How a map stage scores label maps.

    Attributes:
        labels: name of the upstream array, integer (H, W).
        prediction_ignore_to: class that a predicted `ignore_index` counts as; None makes it an error.
        ignore_index: truth value that is not scored.
    """

    labels: str = "label"
    prediction_ignore_to: int | None = None
    ignore_index: int = 255


@dataclass(frozen=True)
class SummaryConfig:
    """What a reduce stage calls its numbers and how it forms them.

    Attributes:
        prefix: what is scored: "cam", "pseudo_label", "segmentation".
        split: list of the data set that was scored: "train", "val".
        variant: ending of every metric name, for example "crf"; empty for none.
        default_threshold: threshold of the headline number of a curve; must be one that was scored.
        mean_over: see `confusion.miou`.
        bootstrap_samples, confidence: of the interval over images.
    """

    prefix: str
    split: str
    variant: str = ""
    default_threshold: float = 0.0
    mean_over: MeanOver = "defined"
    bootstrap_samples: int = 1000
    confidence: float = 0.95

    @property
    def name(self) -> MetricName:
        """Of the main mIoU."""
        return MetricName(self.prefix, "miou", self.split, self.variant)

    def __post_init__(self) -> None:
        _ = self.name  # parts whose text is not read back are an error here, not at a run's end


def build_curve_scorer(context: StageContext) -> Callable[[str], Mapping[str, np.ndarray]]:
    """Map function (config CurveScoreConfig): image name -> confusion matrices at every threshold.

    Returns the counts (T, C, C) of `wsss.evaluation.counts` and "thresholds" float64 (T,).
    """
    config: CurveScoreConfig = context.config

    def read(name: str) -> tuple[np.ndarray, np.ndarray]:
        arrays = context.arrays("scores", name)
        return _named(arrays, config.maps, name, context.stage), _named(arrays, config.keys, name, context.stage)

    return curve_scorer(context, read)


def curve_scorer(context: StageContext, read: ScoreReader) -> Callable[[str], Mapping[str, np.ndarray]]:
    """`build_curve_scorer` for a method whose maps need another way of reading.

    read: image name -> (K, h, w) floating point maps and (K,) class ids, 1-based.
    """
    config: CurveScoreConfig = context.config
    thresholds = np.asarray(config.thresholds, dtype=np.float64)
    num_classes = len(context.data.classes)

    def score(name: str) -> Mapping[str, np.ndarray]:
        truth = context.data.mask(name)
        maps, keys = read(name)
        maps = maps_at_size(maps, truth.shape[0], truth.shape[1], config.upsample)
        if config.normalize == "image_maximum" and maps.size and maps.max() > 0:
            maps = maps / maps.max()
        confusion = threshold_confusions(maps, keys, truth, thresholds, num_classes, config.ignore_index)
        return {**Counts.of(confusion).arrays(), "thresholds": thresholds}

    return score


def build_label_scorer(context: StageContext) -> Callable[[str], Mapping[str, np.ndarray]]:
    """Map function (config LabelScoreConfig): image name -> counts (C, C) of `wsss.evaluation.counts`."""
    config: LabelScoreConfig = context.config
    num_classes = len(context.data.classes)

    def score(name: str) -> Mapping[str, np.ndarray]:
        confusion = confusion_matrix(
            context.data.mask(name),
            _named(context.arrays("labels", name), config.labels, name, context.stage),
            num_classes,
            config.ignore_index,
            prediction_ignore_to=config.prediction_ignore_to,
        )
        return Counts.of(confusion).arrays()

    return score


def maps_at_size(maps: np.ndarray, height: int, width: int, upsample: int = 0) -> np.ndarray:
    """Class maps (K, h, w) -> float32 or float64 (K, height, width); see CurveScoreConfig.upsample.

    Maps that have the size already are not resampled. Bilinear, align_corners false.
    Raises EvaluationError when the upsampled maps do not cover the mask.
    """
    maps = maps.astype(np.promote_types(maps.dtype, np.float32), copy=False)
    if maps.shape[1:] == (height, width):
        return maps
    if maps.shape[0] == 0:
        return np.zeros((0, height, width), dtype=maps.dtype)
    size = (maps.shape[1] * upsample, maps.shape[2] * upsample) if upsample else (height, width)
    if size[0] < height or size[1] < width:
        raise EvaluationError(
            f"maps {maps.shape[1:]} upsampled by {upsample} do not cover a mask of {(height, width)}",
            "maps_at_size",
            "set upsample to the stride of the maps, or to 0 to resize them to the mask",
        )
    batch = torch.from_numpy(np.ascontiguousarray(maps))[None]
    resized = functional.interpolate(batch, size=size, mode="bilinear", align_corners=False)
    return resized[0, :, :height, :width].numpy()


def summarize_curve(context: StageContext) -> Reduction:
    """Reduce function (config SummaryConfig) over a curve scorer's artifact in role "confusions".

    Metrics, as fractions, named `<prefix>/<what>_<split>[...][_variant]`:
        miou_<split>                 at the default threshold, with _low and _high (bootstrap over images),
        miou_<split>_oracle          at the best threshold of these very images (the first of equals), by the same
                                     mean over classes: chosen by masks,
        oracle_threshold_<split>     that threshold,
        miou_<split>_cross_fitted    each half of the images scored at the other half's best threshold, both halves
                                     pooled, at most the oracle: what a choice by masks is worth on other images,
        miou_<split>_all_background  of a predictor that says background everywhere,
        pixel_accuracy_<split>       at the default threshold.
    Tables: "curve" (threshold, miou, default, oracle), "per_class" (class, iou, pixels), "miou" (metric, mean_over:
    how its mean over classes is formed; a table and the arrays of one metric have the same ending, "_crf" or none).
    Arrays: "confusion" int64 (C, C) at the default, "curve_confusion" (T, C, C), "thresholds" (T,),
    "image_counts" int64 (N, 3, C) and "images" (N,) at the default, for paired comparisons.
    Raises EvaluationError when there is no image or the default threshold was not scored.
    """
    config: SummaryConfig = context.config
    artifact = context.inputs["confusions"]
    names = scored_images(artifact, context.stage)
    thresholds = np.asarray(artifact.arrays(names[0])["thresholds"], dtype=np.float64)
    default = _index_of(config.default_threshold, thresholds, context.stage)
    halves = np.zeros((2, *Counts.read(artifact.arrays(names[0])).shape), dtype=np.int64)
    counts: list[np.ndarray] = []
    for image in names:
        found = Counts.read(artifact.arrays(image))
        found.add_to(halves[half_of(image)])
        counts.append(class_counts(found.at(default).dense()))
    curve = halves.sum(axis=0)
    chosen = choose_by_halves(class_counts(halves.swapaxes(0, 1)), config.mean_over)

    metrics, tables, arrays = _scores_of(config, curve[default], np.stack(counts), names, context)
    further, tables["curve"] = choice_scores(config.name, chosen, "threshold", thresholds.tolist(), default)
    metrics.update(further)
    arrays["curve_confusion"] = curve
    arrays["thresholds"] = thresholds
    return Reduction(metrics=metrics, tables=tables, arrays=arrays)


def summarize_labels(context: StageContext) -> Reduction:
    """Reduce function (config SummaryConfig) over a label scorer's artifact in role "confusions".

    Metrics, tables and arrays as `summarize_curve`, without those that belong to a curve.
    """
    artifact = context.inputs["confusions"]
    names = scored_images(artifact, context.stage)
    return label_scores(context.config, {name: Counts.read(artifact.arrays(name)) for name in names}, context)


def label_scores(config: SummaryConfig, counts: Mapping[str, Counts], context: StageContext) -> Reduction:
    """`summarize_labels` from the counts (C, C) of every image, in the order of their names.

    A class beyond those of the data set costs what it covers, but is in no mean and in no table.
    """
    total = np.zeros(next(iter(counts.values())).shape, dtype=np.int64)
    for each in counts.values():
        each.add_to(total)
    per_image = np.stack([class_counts(each.dense()) for each in counts.values()])
    return Reduction(*_scores_of(config, total, per_image, list(counts), context))


def choice_scores(
    name: MetricName, chosen: Choice, what: str, values: Sequence[float], default: int
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Metrics and the table of a choice by masks, of a threshold or a number of iterations.

    Args:
        name: of the mIoU at the default.
        what, values: "threshold" or "iterations", and what was scored; `default` is the position of the recipe's own.
    """
    metrics = {
        str(name.beside("oracle")): chosen.oracle_miou,
        str(name.of(f"oracle_{what}")): float(values[chosen.oracle]),
    }
    if chosen.cross_fitted_miou is not None:
        metrics[str(name.beside("cross_fitted"))] = chosen.cross_fitted_miou
    rows = [
        {what: value, "miou": score, "default": index == default, "oracle": index == chosen.oracle}
        for index, (value, score) in enumerate(zip(values, chosen.mious, strict=True))
    ]
    return metrics, rows


def _scores_of(
    config: SummaryConfig,
    confusion: np.ndarray,
    counts: np.ndarray,
    names: Sequence[str],
    context: StageContext,
) -> tuple[dict[str, float], dict[str, list[dict[str, Any]]], dict[str, np.ndarray]]:
    if confusion.sum() == 0:
        raise EvaluationError(
            "no pixel was scored: the masks hold nothing but ignored positions",
            f"stage {context.stage}",
            "check the masks with `wsss data check`",
        )
    classes = context.data.classes
    counts = counts[..., : len(classes)]
    interval = bootstrap_interval_from_counts(
        counts, samples=config.bootstrap_samples, confidence=config.confidence, mean_over=config.mean_over
    )
    background = class_counts(all_background(confusion))[:, : len(classes)]
    name = config.name
    found = {
        name: interval.value,
        name.beside("low"): interval.low,
        name.beside("high"): interval.high,
        name.beside("all_background"): float(miou_from_counts(*background, mean_over=config.mean_over)),
        name.of("pixel_accuracy"): float(pixel_accuracy(confusion)),
    }
    further = [f"further {number}" for number in range(len(confusion) - len(classes))]
    per_class = class_rows(confusion, (*classes, *further))[: len(classes)]
    means = [{"metric": str(name), "mean_over": config.mean_over}]
    arrays = {"confusion": confusion, "image_counts": counts, "images": np.array(names)}
    return {str(each): value for each, value in found.items()}, {"per_class": per_class, "miou": means}, arrays


def _named(arrays: Mapping[str, np.ndarray], array: str, image: str, stage: str) -> np.ndarray:
    if array not in arrays:
        raise EvaluationError(
            f"the upstream artifact has no array {array!r} for image {image}",
            f"stage {stage}",
            f"it holds: {', '.join(sorted(arrays)) or 'nothing'}; set the stage's array name accordingly",
        )
    return arrays[array]


def scored_images(artifact: Artifact, stage: str) -> list[str]:
    """Names of the images of a scorer's artifact, sorted. Raises EvaluationError when there is none."""
    names = artifact.images()
    if not names:
        raise EvaluationError("there is no scored image", f"stage {stage}", "check the image list of the stage before")
    return sorted(names)


def _index_of(threshold: float, thresholds: np.ndarray, stage: str) -> int:
    found = np.flatnonzero(np.isclose(thresholds, threshold, rtol=0, atol=1e-9))
    if not found.size:
        raise EvaluationError(
            f"the default threshold {threshold:g} was not scored",
            f"stage {stage}",
            f"add it to the scorer's thresholds ({thresholds.min():g} to {thresholds.max():g})",
        )
    return int(found[0])
