"""Superpixels by SLIC, and the colour coding of superpixel ids in PNG files."""

from __future__ import annotations

import numpy as np
from skimage.segmentation import slic


def slic_superpixels(image: np.ndarray, segments: int = 300, compactness: float = 10.0) -> np.ndarray:
    """Connected superpixels of an RGB image by k-means in CIELAB colour and place.

    Args:
        image: (H, W, 3) uint8.
        segments: about how many superpixels; what comes out may be some fewer or more.
        compactness: weight of place against colour.

    Returns:
        (H, W) int32, ids 0..k-1, each of them present. The same image gives the same ids.
    """
    labels = slic(image, n_segments=segments, compactness=compactness, start_label=0, channel_axis=-1)
    _, ids = np.unique(labels, return_inverse=True)
    return ids.reshape(labels.shape).astype(np.int32)


def ids_to_rgb(ids: np.ndarray) -> np.ndarray:
    """Code ids of 0..2^24-1 as colours, id = R + 256 G + 65536 B: (H, W) int -> (H, W, 3) uint8."""
    if ids.min(initial=0) < 0 or ids.max(initial=0) >= 1 << 24:
        raise ValueError(f"ids must lie in 0..2^24-1, found {ids.min()}..{ids.max()}")
    return np.stack([(ids >> shift) & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)


def rgb_to_ids(rgb: np.ndarray) -> np.ndarray:
    """Inverse of `ids_to_rgb`: (H, W, 3) uint8 -> (H, W) int32. Cast first: uint8 cannot hold 256 G."""
    wide = rgb.astype(np.int32)
    return wide[..., 0] + 256 * wide[..., 1] + 65536 * wide[..., 2]
