"""Confusion matrices, and the scores that are pure functions of them.

A confusion matrix is an int64 array (C, C): rows are the truth, columns the prediction, class 0 is the
background. Leading axes are allowed in every score function, so that a curve (T, C, C) or a set of images
(N, C, C) is scored in one call. Scores are fractions in 0..1; people are shown percent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from wsss.errors import WsssError

MeanOver = Literal["defined", "truth", "all"]


class EvaluationError(WsssError):
    """A score can not be computed from what was given."""


def confusion_matrix(
    truth: np.ndarray,
    prediction: np.ndarray,
    num_classes: int,
    ignore_index: int | None = 255,
    *,
    prediction_ignore_to: int | None = None,
) -> np.ndarray:
    """Count pixels by true and predicted class.

    truth, prediction: integer arrays of one shape. Positions whose truth is `ignore_index`, negative, or
    at least `num_classes` are left out (VOC borders are 255; some readers write -1).
    prediction_ignore_to: class that a predicted `ignore_index` counts as (pseudo labels with unsure pixels
    are scored as background: 0). Without it such a prediction is an error.

    Returns int64 (num_classes, num_classes), rows truth, columns prediction.
    Raises EvaluationError on differing shapes, non-integer arrays, or a prediction outside
    0..num_classes-1.
    """
    truth = _integer_array(truth, "truth")
    prediction = _integer_array(prediction, "prediction")
    if truth.shape != prediction.shape:
        raise EvaluationError(
            f"truth {truth.shape} and prediction {prediction.shape} differ in shape",
            "confusion_matrix",
            "resize the prediction to the size of the mask (nearest for labels, bilinear for scores)",
        )
    truth = truth.ravel()
    prediction = prediction.ravel()
    if prediction_ignore_to is not None and ignore_index is not None:
        prediction = np.where(prediction == ignore_index, prediction_ignore_to, prediction.astype(np.int64))
    if prediction.size and (int(prediction.min()) < 0 or int(prediction.max()) >= num_classes):
        wrong = np.unique(prediction[(prediction < 0) | (prediction >= num_classes)])[:5].tolist()
        raise EvaluationError(
            f"the prediction holds {wrong}, outside 0..{num_classes - 1}",
            "confusion_matrix",
            "check the class list; to count unsure pixels as background pass prediction_ignore_to=0",
        )
    counted = counted_truth(truth, num_classes, ignore_index)
    pairs = truth[counted].astype(np.int64) * num_classes + prediction[counted]
    return np.bincount(pairs, minlength=num_classes * num_classes).reshape(num_classes, num_classes)


def counted_truth(truth: np.ndarray, num_classes: int, ignore_index: int | None = 255) -> np.ndarray:
    """Boolean array of truth's shape: the positions that are scored."""
    counted = (truth >= 0) & (truth < num_classes)
    if ignore_index is not None:
        counted &= truth != ignore_index
    return counted


def intersections_and_totals(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per class: pixels right, pixels in the truth, pixels predicted; each int64 (..., C)."""
    check_confusion(confusion)
    right = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.int64)
    return right, confusion.sum(axis=-1, dtype=np.int64), confusion.sum(axis=-2, dtype=np.int64)


def class_counts(confusion: np.ndarray) -> np.ndarray:
    """`intersections_and_totals` in one array: int64 (..., 3, C), all that a mIoU needs to know of an image."""
    return np.stack(intersections_and_totals(confusion), axis=-2)


def iou(confusion: np.ndarray) -> np.ndarray:
    """Intersection over union per class: float64 (..., C) in 0..1, NaN where a class is in neither map."""
    return iou_from_counts(*intersections_and_totals(confusion))


def iou_from_counts(right: np.ndarray, in_truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """`iou` from the counts of `intersections_and_totals`; float64 of the counts' shape."""
    union = np.asarray(in_truth + predicted - right, dtype=np.float64)
    return np.divide(right, union, out=np.full(union.shape, np.nan), where=union > 0)


def miou(confusion: np.ndarray, mean_over: MeanOver = "defined") -> Any:
    """Mean IoU in 0..1: float64 (...), a float for one matrix; NaN when no class takes part.

    mean_over "defined": the classes that have a value (in the truth or predicted), as IRN's step/eval_cam.py
    does. "truth": the classes in the truth; a class that is predicted and in no truth then costs only the classes
    that it covers. "all": every class of the matrix; one that is neither in the truth nor predicted counts as 0.
    """
    return miou_from_counts(*intersections_and_totals(confusion), mean_over=mean_over)


def miou_from_counts(
    right: np.ndarray, in_truth: np.ndarray, predicted: np.ndarray, mean_over: MeanOver = "defined"
) -> Any:
    """`miou` from the counts of `intersections_and_totals`."""
    values = iou_from_counts(right, in_truth, predicted)
    if mean_over == "all":
        values = np.where(np.isnan(values).all(axis=-1, keepdims=True), np.nan, np.nan_to_num(values))
    taking_part = in_truth > 0 if mean_over == "truth" else ~np.isnan(values)
    number = taking_part.sum(axis=-1)
    total = np.where(taking_part, values, 0.0).sum(axis=-1)
    mean = np.divide(total, number, out=np.full(np.shape(total), np.nan), where=number > 0)
    return float(mean) if mean.ndim == 0 else mean


def smoothed_miou(confusion: np.ndarray, epsilon: float = 1e-5) -> float:
    """Mean over the classes in the truth of right / (union + epsilon); 0 for one empty matrix (C, C).

    BECO's co-training keeps its best epoch by it.
    """
    right, in_truth, predicted = intersections_and_totals(confusion)
    present = in_truth > 0
    return float((right / (in_truth + predicted - right + epsilon))[present].mean()) if present.any() else 0.0


def class_iou(confusion: np.ndarray, class_names: Sequence[str]) -> dict[str, float | None]:
    """IoU by class name, None where it is undefined. Raises EvaluationError when the counts differ."""
    values = iou(confusion)
    if values.shape != (len(class_names),):
        raise EvaluationError(
            f"{len(class_names)} class names for a confusion matrix of shape {confusion.shape}",
            "class_iou",
            "give the dataset's classes, background first",
        )
    return {name: None if np.isnan(value) else float(value) for name, value in zip(class_names, values, strict=True)}


def class_rows(confusion: np.ndarray, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each class: class, iou (None where undefined), truth_pixels, predicted_pixels."""
    _, in_truth, predicted = intersections_and_totals(confusion)
    return [
        {"class": name, "iou": value, "truth_pixels": int(in_truth[i]), "predicted_pixels": int(predicted[i])}
        for i, (name, value) in enumerate(class_iou(confusion, class_names).items())
    ]


def pixel_accuracy(confusion: np.ndarray) -> Any:
    """Share of scored pixels that are right: float64 (...), NaN without pixels."""
    right, in_truth, _ = intersections_and_totals(confusion)
    total = in_truth.sum(axis=-1)
    mean = np.divide(right.sum(axis=-1), total, out=np.full(np.shape(total), np.nan), where=total > 0)
    return float(mean) if mean.ndim == 0 else mean


def mean_accuracy(confusion: np.ndarray) -> Any:
    """Mean recall over the classes present in the truth: float64 (...), NaN without pixels."""
    right, in_truth, _ = intersections_and_totals(confusion)
    present = in_truth > 0
    recall = np.divide(right, in_truth, out=np.zeros(np.shape(right)), where=present)
    number = present.sum(axis=-1)
    mean = np.divide(recall.sum(axis=-1), number, out=np.full(np.shape(number), np.nan), where=number > 0)
    return float(mean) if mean.ndim == 0 else mean


def all_background(confusion: np.ndarray) -> np.ndarray:
    """The confusion matrix of a predictor that says background everywhere, on the same pixels."""
    check_confusion(confusion)
    baseline = np.zeros_like(confusion)
    baseline[..., 0] = confusion.sum(axis=-1)
    return baseline


def _integer_array(values: np.ndarray, what: str) -> np.ndarray:
    values = np.asarray(values)
    if not np.issubdtype(values.dtype, np.integer):
        raise EvaluationError(
            f"{what} has dtype {values.dtype}, class ids must be integers",
            "confusion_matrix",
            "take the argmax of scores first, and convert with .astype(np.uint8)",
        )
    return values


def check_confusion(confusion: np.ndarray) -> None:
    """EvaluationError unless the shape is (..., C, C)."""
    if confusion.ndim < 2 or confusion.shape[-1] != confusion.shape[-2]:
        raise EvaluationError(
            f"a confusion matrix has shape (..., C, C), not {confusion.shape}",
            "wsss.evaluation",
            "build it with confusion_matrix or threshold_confusions",
        )
