"""Scores against a background threshold, for every threshold from one pass over the pixels.

A class map volume becomes labels by standing a constant background map in front of it and taking the
argmax, for CAMs and for random-walk scores alike. Which class wins among the
maps does not depend on the constant, only whether it beats it: so one histogram over (truth, winning class,
number of thresholds the winner exceeds) holds the confusion matrix of every threshold.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wsss.evaluation.confusion import EvaluationError, counted_truth


def threshold_confusions(
    cam: np.ndarray,
    keys: np.ndarray,
    truth: np.ndarray,
    thresholds: Sequence[float] | np.ndarray,
    num_classes: int,
    ignore_index: int | None = 255,
) -> np.ndarray:
    """Confusion matrices of the argmax over (constant background, maps) for every threshold, in one pass.

    The background stands first, so it wins ties with a class, and the earlier class wins ties with a later one.

    cam: (K, H, W) floating point (float16 counts as float32); K may be 0. keys: (K,) class ids 1-based.
    truth: (H, W) integer. thresholds: (T,), in any order, repeats allowed; each is rounded to the dtype of
    the maps, as filling an array with it would, so that a value exactly at a threshold is background.

    Returns int64 (T, num_classes, num_classes), rows truth, columns prediction.
    Raises EvaluationError on shapes that do not fit, ids outside 1..num_classes-1, or NaN.
    """
    maps, keys = _checked(cam, keys)
    truth = np.asarray(truth)
    if truth.shape != maps.shape[1:]:
        raise EvaluationError(
            f"class maps {maps.shape} do not have the size of the mask {truth.shape}",
            "threshold_confusions",
            "upsample the maps to the size of the mask first",
        )
    if keys.size and (keys.min() < 1 or keys.max() >= num_classes):
        raise EvaluationError(
            f"class ids {keys.tolist()} are outside 1..{num_classes - 1}",
            "threshold_confusions",
            "keys are 1-based here (0 is background); add 1 to ids that start at 0",
        )
    counted = counted_truth(truth, num_classes, ignore_index)
    true_class = truth[counted].astype(np.int64)
    in_truth = np.bincount(true_class, minlength=num_classes)
    wanted = np.asarray(thresholds, dtype=np.float64).astype(maps.dtype)
    result = np.zeros((wanted.size, num_classes, num_classes), dtype=np.int64)
    result[:, :, 0] = in_truth
    if keys.size == 0:
        return result

    values = maps[:, counted]
    winner = values.argmax(axis=0)
    best = np.take_along_axis(values, winner[None], axis=0)[0]
    if np.isnan(best).any():
        raise EvaluationError(
            "the class maps hold NaN",
            "threshold_confusions",
            "find the stage that wrote them and fix it there",
        )
    levels = np.unique(wanted)
    # side="left": the number of thresholds strictly below the value, so that ties go to the background.
    exceeded = np.searchsorted(levels, best, side="left")
    shape = (levels.size + 1, num_classes, keys.size)
    cell = (exceeded * num_classes + true_class) * keys.size + winner
    histogram = np.bincount(cell, minlength=int(np.prod(shape))).reshape(shape)
    # A pixel is foreground at level i when its best value exceeds more than i levels.
    foreground = histogram[::-1].cumsum(axis=0)[::-1][1:][np.searchsorted(levels, wanted)]
    for column, class_id in enumerate(keys):
        result[:, :, class_id] += foreground[:, :, column]
    result[:, :, 0] -= foreground.sum(axis=2)
    return result


def _checked(maps: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    maps = np.asarray(maps)
    keys = np.asarray(keys)
    if maps.ndim != 3 or keys.shape != (maps.shape[0],):
        raise EvaluationError(
            f"class maps {maps.shape} and keys {keys.shape} do not fit",
            "threshold curve",
            "maps are (K, H, W) and keys (K,), one class id for each map",
        )
    if not np.issubdtype(maps.dtype, np.floating):
        raise EvaluationError(f"class maps have dtype {maps.dtype}", "threshold curve", "give floating point scores")
    if keys.size and not np.issubdtype(keys.dtype, np.integer):
        raise EvaluationError(f"keys have dtype {keys.dtype}", "threshold curve", "give integer class ids")
    return maps.astype(np.promote_types(maps.dtype, np.float32), copy=False), keys.astype(np.int64)
