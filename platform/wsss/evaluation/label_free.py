"""Criteria that rank settings without masks, from the maps and the picture alone.

A criterion is one number for an image and a setting, higher for better; a choice takes its mean over
images. None of them is the mIoU: how well one ranks settings must be measured where masks exist
(rank correlation). `benchmarks/label_free.py --images 120` did, on VOC pictures of one animal and maps of
an ImageNet classifier that was never tuned on them. Rank correlation with the mIoU, and mIoU of the choice:

    settings                                  best    confidence_margin  boundary_contrast  label_agreement
    30: background threshold and exponent     54.09   -0.63   23.07      -0.24   26.19
    24: threshold and dense CRF               61.35   +0.05   55.31      +0.34   54.75      -0.39   54.69

So none of these is fit to choose a threshold: a high one keeps a few sure pixels with sharp edges, which all of them
like, and on the CRF none beats a random pick (median 56.48). They stand beside the honest numbers to be judged, not
to be believed.
"""

from __future__ import annotations

import numpy as np

from wsss.evaluation.confusion import EvaluationError


def confidence_margin(scores: np.ndarray) -> float:
    """Mean distance of the best to the second best label: floating point (L, H, W), L at least 2.

    Blind to what the scores are worth: a transformation that sharpens them raises it.
    """
    if scores.ndim != 3 or scores.shape[0] < 2:
        raise EvaluationError(
            f"scores {scores.shape} have no second best label",
            "confidence_margin",
            "give (labels, height, width) with the background among the labels",
        )
    second, best = np.partition(np.asarray(scores, dtype=np.float64), -2, axis=0)[-2:]
    return float((best - second).mean())


def boundary_contrast(label: np.ndarray, image: np.ndarray) -> float:
    """Whether label boundaries lie where the picture changes.

    Mean color step across the boundaries of a label map, divided by the mean color step of the whole image; both
    between horizontal and vertical neighbors. label: integer (H, W); image: uint8 (H, W, 3). 1 is what boundaries at
    random places score; NaN when the map has no boundary or the image no step.
    """
    steps, size = _color_steps(image, label.shape)
    across = np.concatenate([(label[1:] != label[:-1]).ravel(), (label[:, 1:] != label[:, :-1]).ravel()])
    if not across.any() or size == 0:
        return float("nan")
    return float(steps[across].mean() / size)


def _color_steps(image: np.ndarray, size: tuple[int, ...]) -> tuple[np.ndarray, float]:
    """Color distance of vertical, then horizontal neighbors, flat; and its mean over both."""
    if image.shape != (*size, 3):
        raise EvaluationError(
            f"labels of {size} do not fit an image {image.shape}",
            "boundary_contrast",
            "resize the maps to the image first",
        )
    values = image.astype(np.float64)
    vertical = np.sqrt(((values[1:] - values[:-1]) ** 2).sum(axis=2)).ravel()
    horizontal = np.sqrt(((values[:, 1:] - values[:, :-1]) ** 2).sum(axis=2)).ravel()
    steps = np.concatenate([vertical, horizontal])
    return steps, float(steps.mean()) if steps.size else 0.0
