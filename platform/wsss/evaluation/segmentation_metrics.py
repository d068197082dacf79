"""Scores of a segmentation network from one confusion matrix over a whole list of images.

`selection_metrics` is the score by which co-training keeps its best epoch, `final_metrics` the final one
(BECO's `main.py` and `test.py`).  Both average over the classes that are present in the ground truth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from wsss.evaluation.confusion import (
    intersections_and_totals,
    iou,
    mean_accuracy,
    miou,
    pixel_accuracy,
)

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class SelectionMetrics:
    """Accuracies and mean IoU in 0..1; `iou` is float64 (C,), 0 for a class that is in neither map."""

    overall_accuracy: float
    class_accuracy: float
    prediction_accuracy: float
    miou: float
    iou: Array


@dataclass(frozen=True)
class FinalMetrics:
    """Accuracies, frequency-weighted and mean IoU in 0..1; `iou` is float64 (C,), NaN where undefined."""

    pixel_accuracy: float
    mean_accuracy: float
    frequency_weighted_iou: float
    miou: float
    iou: Array


def selection_metrics(confusion: Array, epsilon: float = 1e-5) -> SelectionMetrics:
    """Training-time metric: `epsilon` is added to every denominator.

    confusion: int64 (C, C), rows truth, columns prediction.  Class accuracy (recall) and mean IoU average
    over the classes present in the truth, prediction accuracy (precision) over the classes that are
    predicted at all. An empty confusion matrix scores 0.
    """
    right, in_truth, predicted = intersections_and_totals(confusion)
    per_class_iou = right / (in_truth + predicted - right + epsilon)
    return SelectionMetrics(
        overall_accuracy=float(right.sum() / (in_truth.sum() + epsilon)),
        class_accuracy=_mean_where(right / (in_truth + epsilon), in_truth > 0),
        prediction_accuracy=_mean_where(right / (predicted + epsilon), predicted > 0),
        miou=_mean_where(per_class_iou, in_truth > 0),
        iou=per_class_iou,
    )


def final_metrics(confusion: Array) -> FinalMetrics:
    """Final metric at original resolution (the number to hold against a published one).

    confusion: int64 (C, C), rows truth, columns prediction.  Mean accuracy and mean IoU run over the
    classes present in the truth; frequency-weighted IoU weights each by its share of the truth's pixels.
    NaN without any pixel.
    """
    per_class_iou = iou(confusion)
    _, in_truth, _ = intersections_and_totals(confusion)
    pixels = int(in_truth.sum())
    weighted = np.nansum(in_truth * per_class_iou) / pixels if pixels else float("nan")
    return FinalMetrics(
        pixel_accuracy=pixel_accuracy(confusion),
        mean_accuracy=mean_accuracy(confusion),
        frequency_weighted_iou=float(weighted),
        miou=miou(confusion, mean_over="truth"),
        iou=per_class_iou,
    )


def _mean_where(values: Array, taking_part: Array) -> float:
    return float(values[taking_part].mean()) if taking_part.any() else 0.0
