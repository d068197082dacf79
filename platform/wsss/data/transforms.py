"""Geometric transforms and normalization that methods share, on numpy arrays through Pillow.

Images are (H, W, 3), maps (labels, superpixel ids) (H, W). What is drawn is in `wsss.data.augment`.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Resample = Literal["nearest", "bilinear", "bicubic"]

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
# Every value that a uint8 channel can take, in float64 before the one rounding to float32.
_NORMALIZED = ((np.arange(256)[:, None] / 255.0 - np.asarray(IMAGENET_MEAN)) / np.asarray(IMAGENET_STD)).astype(
    np.float32
)


def normalize(image: np.ndarray) -> np.ndarray:
    """ImageNet normalization of a uint8 RGB image: (H, W, 3) uint8 -> (H, W, 3) float32."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected a uint8 (H, W, 3) image, got {image.dtype} {image.shape}")
    result = np.empty(image.shape, dtype=np.float32)
    for channel in range(3):
        np.take(_NORMALIZED[:, channel], image[..., channel], out=result[..., channel])
    return result


def channels_first(image: np.ndarray) -> np.ndarray:
    """(H, W, C) -> contiguous (C, H, W)."""
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def resize(array: np.ndarray, size: tuple[int, int], resample: Resample) -> np.ndarray:
    """Resize with Pillow; the dtype stays. Returned as is (not copied) when the size does not change.

    Args:
        array: (H, W, 3) uint8, or (H, W) uint8, int32 or float32. Ids beyond 255 must be int32.
        size: (height, width) wanted, each at least 1.
        resample: filter; maps of ids need "nearest".
    """
    height, width = size
    if array.shape[:2] == (height, width):
        return array
    if array.dtype not in (np.uint8, np.int32, np.float32) or (array.ndim == 3 and array.dtype != np.uint8):
        raise ValueError(f"Pillow cannot resize an array of {array.dtype} {array.shape}")
    resized = Image.fromarray(array).resize((width, height), _FILTERS[resample])
    return np.array(resized, dtype=array.dtype)


def scaled_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """(height, width) times `scale`, rounded half to even, at least 1."""
    return max(1, round(height * scale)), max(1, round(width * scale))


def rescale(array: np.ndarray, scale: float, resample: Resample) -> np.ndarray:
    """Resize both sides by one factor; sizes are rounded half to even."""
    return resize(array, scaled_size(array.shape[0], array.shape[1], scale), resample)


def resize_long(array: np.ndarray, long_side: int, resample: Resample) -> np.ndarray:
    """Resize so that the longer side is `long_side` pixels, the aspect ratio kept (half to even)."""
    height, width = array.shape[:2]
    return rescale(array, long_side / max(height, width), resample)


def mirror(array: np.ndarray) -> np.ndarray:
    """Left-right mirror image, contiguous."""
    return np.ascontiguousarray(array[:, ::-1])
