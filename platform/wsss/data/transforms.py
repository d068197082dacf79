"""Geometric transforms and normalization that methods share, on numpy arrays through Pillow.

Images are (H, W, 3), maps (labels, superpixel ids) (H, W). What is drawn is in `wsss.data.augment`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
from PIL import Image
from scipy import ndimage

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Resample = Literal["nearest", "bilinear", "bicubic"]

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def normalize(
    image: np.ndarray, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD
) -> np.ndarray:
    """Normalization of a uint8 RGB image, of values in [0, 1]: (H, W, 3) uint8 -> (H, W, 3) float32."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected a uint8 (H, W, 3) image, got {image.dtype} {image.shape}")
    table = _normalized_levels(mean, std)
    result = np.empty(image.shape, dtype=np.float32)
    for channel in range(3):
        np.take(table[:, channel], image[..., channel], out=result[..., channel])
    return result


@lru_cache
def _normalized_levels(mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    # Every value that a uint8 channel can take, in float64 before the one rounding to float32.
    return ((np.arange(256)[:, None] / 255.0 - np.asarray(mean)) / np.asarray(std)).astype(np.float32)


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


def resize_spline(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize float32 (C, H, W) maps to (C, height, width) by cubic splines, clipped to each map's range.

    Equal to scikit-image's `resize` of order 3 with edge values beyond the border, channel by channel.
    """
    factors = [wanted / length for wanted, length in zip(size, maps.shape[1:], strict=True)]
    resized = np.stack([np.asarray(ndimage.zoom(m, factors, order=3, mode="nearest", grid_mode=True)) for m in maps])
    return resized.clip(maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)).astype(np.float32)


def rescale(array: np.ndarray, scale: float, resample: Resample) -> np.ndarray:
    """Resize both sides by one factor; sizes are rounded half to even, at least 1."""
    height, width = (max(1, round(length * scale)) for length in array.shape[:2])
    return resize(array, (height, width), resample)


def resize_long(array: np.ndarray, long_side: int, resample: Resample) -> np.ndarray:
    """Resize so that the longer side is `long_side` pixels, the aspect ratio kept (half to even)."""
    return rescale(array, long_side / max(array.shape[:2]), resample)


def mirror(array: np.ndarray) -> np.ndarray:
    """Left-right mirror image, contiguous."""
    return np.ascontiguousarray(array[:, ::-1])
