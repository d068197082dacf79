"""Which pixels of a pseudo label to trust."""

from __future__ import annotations

import numpy as np


def score_margin(score: np.ndarray) -> np.ndarray:
    """Largest entry minus the largest one that differs from it (0 if there is none): (C, H, W) -> (H, W)."""
    largest = score.max(axis=0)
    second = np.where(score == largest[None], 0, score).max(axis=0)
    return largest - second


def confidence_mask(score: np.ndarray, label: np.ndarray, keep_ratio: float = 0.5) -> np.ndarray:
    """1 at the most certain share of every class's pixels.

    Args:
        score: float (C, H, W), at least 0, background included.
        label: integer (H, W), the class id of every pixel.
        keep_ratio: of a class's n pixels, floor(n * keep_ratio) with the largest margin are kept.

    Returns:
        uint8 (H, W), 0 or 1.
    """
    if score.shape[1:] != label.shape:
        raise ValueError(f"score {score.shape} and label {label.shape} differ in size")
    margin = score_margin(score).reshape(-1)
    flat = label.reshape(-1)
    mask = np.zeros(flat.shape, dtype=np.uint8)
    for class_id in np.unique(flat):
        places = np.flatnonzero(flat == class_id)
        kept = int(len(places) * keep_ratio)
        order = np.argsort(-margin[places], kind="stable")
        mask[places[order[:kept]]] = 1
    return mask.reshape(label.shape)
