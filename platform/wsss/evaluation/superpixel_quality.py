"""How well superpixels follow the borders of masks, whatever they are used for.

Neubert and Protzel, "Superpixel Benchmark and Comparison", 2012. Segments of the truth are its classes. Positions
that the truth ignores are in no sum; for borders they take the nearest class, so a border lies in the middle of the
ignored line that VOC draws around objects.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from wsss.evaluation.confusion import EvaluationError


@dataclass(frozen=True)
class SuperpixelQuality:
    """Of one picture.

    Attributes:
        boundary_recall: share of the truth's border with a superpixel's border near it; NaN without a border.
        undersegmentation: share of the pixels by which superpixels leak over borders, the smaller part of each leak.
        achievable_accuracy: share of the pixels that are right if each superpixel takes its most frequent class.
        count: number of superpixels.
    """

    boundary_recall: float
    undersegmentation: float
    achievable_accuracy: float
    count: int


def superpixel_quality(
    ids: np.ndarray, truth: np.ndarray, tolerance: int = 2, ignore_index: int = 255
) -> SuperpixelQuality:
    """Compare superpixels with a mask.

    Args:
        ids, truth: integer (H, W), ids at least 0.
        tolerance: pixels in each direction, diagonals too, within which borders count as the same.

    Raises:
        EvaluationError: the sizes differ, or every position is ignored.
    """
    if ids.shape != truth.shape or (truth == ignore_index).all():
        raise EvaluationError(
            f"superpixels {ids.shape} cannot be held against a mask {truth.shape}",
            "superpixel_quality",
            "give both at one size, and a mask with positions that are not ignored",
        )
    known = truth != ignore_index
    _, regions = np.unique(ids, return_inverse=True)
    classes, labels = np.unique(truth[known], return_inverse=True)
    pairs = regions.reshape(ids.shape)[known].astype(np.int64) * len(classes) + labels
    overlap = np.bincount(pairs, minlength=(int(regions.max()) + 1) * len(classes)).reshape(-1, len(classes))
    leaks = np.minimum(overlap, overlap.sum(axis=1, keepdims=True) - overlap)
    return SuperpixelQuality(
        boundary_recall=_boundary_recall(ids, truth, known, tolerance),
        undersegmentation=float(leaks.sum() / known.sum()),
        achievable_accuracy=float(overlap.max(axis=1).sum() / known.sum()),
        count=int(regions.max()) + 1,
    )


def _boundary_recall(ids: np.ndarray, truth: np.ndarray, known: np.ndarray, tolerance: int) -> float:
    rows, columns = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)  # pyright: ignore[reportGeneralTypeIssues]
    wanted = borders(truth[rows, columns])
    near = ndimage.binary_dilation(borders(ids), np.ones((2 * tolerance + 1,) * 2))
    return float(near[wanted].mean()) if wanted.any() else float("nan")


def borders(labels: np.ndarray) -> np.ndarray:
    """Pixels whose right or lower neighbor has another label: bool (H, W)."""
    found = np.zeros(labels.shape, dtype=bool)
    found[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    found[:-1] |= labels[:-1] != labels[1:]
    return found
