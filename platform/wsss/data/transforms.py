"""Geometric transforms and normalization that methods share, on numpy arrays through Pillow.

Images are (H, W, 3), maps (labels, superpixel ids) (H, W). Whatever is random takes an explicit
generator, so that a sample depends on (seed, epoch, index) and not on the worker that made it.
"""

from __future__ import annotations

from dataclasses import dataclass
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


def denormalize(image: np.ndarray) -> np.ndarray:
    """Inverse of `normalize`: (H, W, 3) float32 -> (H, W, 3) uint8, rounded and clipped to [0, 255]."""
    values = (image * np.asarray(IMAGENET_STD) + np.asarray(IMAGENET_MEAN)) * 255.0
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


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


def rescale_pair(image: np.ndarray, labels: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Rescale an image (bicubic) and its map (nearest) by one factor."""
    return rescale(image, scale, "bicubic"), rescale(labels, scale, "nearest")


def resize_long(array: np.ndarray, long_side: int, resample: Resample) -> np.ndarray:
    """Resize so that the longer side is `long_side` pixels, the aspect ratio kept (half to even)."""
    height, width = array.shape[:2]
    return rescale(array, long_side / max(height, width), resample)


def mirror(array: np.ndarray) -> np.ndarray:
    """Left-right mirror image, contiguous."""
    return np.ascontiguousarray(array[:, ::-1])


@dataclass(frozen=True)
class CropBox:
    """A rectangle of the image and where it lies on the canvas; half-open pixel ranges.

    Both rectangles have the same size. What the image does not cover of the canvas is padding.
    """

    canvas_height: int
    canvas_width: int
    canvas_top: int
    canvas_bottom: int
    canvas_left: int
    canvas_right: int
    image_top: int
    image_bottom: int
    image_left: int
    image_right: int


def sample_crop_box(rng: np.random.Generator, height: int, width: int, size: int | tuple[int, int]) -> CropBox:
    """Draw the place of a crop of `size` (one side, or (height, width)) from a (height, width) image.

    Per axis: a longer image is cut at a uniform start in 0..(length - size) and fills the canvas; a
    shorter one is placed whole at a uniform offset in 0..(size - length) (SSC, S1 augmentation).
    """
    canvas_height, canvas_width = (size, size) if isinstance(size, int) else size
    top, bottom, image_top, image_bottom = _sample_axis(rng, height, canvas_height)
    left, right, image_left, image_right = _sample_axis(rng, width, canvas_width)
    return CropBox(
        canvas_height,
        canvas_width,
        canvas_top=top,
        canvas_bottom=bottom,
        canvas_left=left,
        canvas_right=right,
        image_top=image_top,
        image_bottom=image_bottom,
        image_left=image_left,
        image_right=image_right,
    )


def _sample_axis(rng: np.random.Generator, length: int, size: int) -> tuple[int, int, int, int]:
    offset = int(rng.integers(0, abs(length - size) + 1))
    if length > size:
        return 0, size, offset, offset + size
    return offset, offset + length, 0, length


def apply_crop_box(array: np.ndarray, box: CropBox, fill: float) -> np.ndarray:
    """Cut (H, W[, C]) by a box into a canvas filled with `fill`; the dtype stays.

    The same box applied to an image and to its maps keeps them aligned.
    """
    canvas = np.full((box.canvas_height, box.canvas_width, *array.shape[2:]), fill, dtype=array.dtype)
    canvas[box.canvas_top : box.canvas_bottom, box.canvas_left : box.canvas_right] = array[
        box.image_top : box.image_bottom, box.image_left : box.image_right
    ]
    return canvas


def random_crop(
    rng: np.random.Generator, arrays: tuple[np.ndarray, ...], size: int, fills: tuple[float, ...]
) -> tuple[np.ndarray, ...]:
    """Crop aligned arrays of one height and width by one random box, each with its own fill value."""
    box = sample_crop_box(rng, arrays[0].shape[0], arrays[0].shape[1], size)
    return tuple(apply_crop_box(array, box, fill) for array, fill in zip(arrays, fills, strict=True))
