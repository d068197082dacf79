"""A picture and its map at a random scale, mirrored, and cut or padded to a square, as IRN's programs do it.

Also the inputs of inference at several scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wsss.data.transforms import IMAGENET_MEAN, IMAGENET_STD, channels_first, mirror, normalize, rescale, resize

Array = np.ndarray[Any, np.dtype[Any]]

UNSURE = 255


@dataclass(frozen=True)
class CanvasCrop:
    """A canvas of (height, width) pixels and where the image's first pixel lies on it; negative: cut off."""

    height: int
    width: int
    top: int
    left: int

    def apply(self, array: Array, fill: float) -> Array:
        """Cut (H, W[, C]) to the canvas, padded with `fill`; the dtype stays.

        The same crop applied to an image and to its maps keeps them aligned.
        """
        canvas = np.full((self.height, self.width, *array.shape[2:]), fill, dtype=array.dtype)
        part = array[max(0, -self.top) :, max(0, -self.left) :]
        place = canvas[max(0, self.top) :, max(0, self.left) :]
        height, width = min(len(part), len(place)), min(part.shape[1], place.shape[1])
        place[:height, :width] = part[:height, :width]
        return canvas


def sample_canvas_crop(rng: np.random.Generator, height: int, width: int, size: int) -> CanvasCrop:
    """Draw where a (height, width) image lies on a square of side `size`.

    Per axis: a longer image is cut at a uniform start in 0..(length - size) and fills the square; a shorter one is
    placed whole at a uniform offset in 0..(size - length).
    """
    top, left = (_offset(rng, length, size) for length in (height, width))
    return CanvasCrop(size, size, top, left)


def _offset(rng: np.random.Generator, length: int, size: int) -> int:
    offset = int(rng.integers(0, abs(length - size) + 1))
    return -offset if length > size else offset


@dataclass(frozen=True)
class CamSample:
    """image: float32 (3, S, S) normalized, 0 where padded. superpixels: int32 (S, S), 0..k-1."""

    image: Array
    superpixels: Array


@dataclass(frozen=True)
class AffinitySample:
    """image: float32 (3, S, S) normalized. label: uint8 (S / 4, S / 4), class ids, 255 unsure or padded."""

    image: Array
    label: Array


def cam_training_sample(
    image: Array,
    superpixels: Array,
    rng: np.random.Generator,
    *,
    crop_size: int = 512,
    resize_long_min: int = 320,
    resize_long_max: int = 640,
) -> CamSample:
    """Random rescale, mirror and crop of an image and its superpixels.

    Args:
        image: uint8 (H, W, 3) RGB.
        superpixels: integer ids (H, W), at least 0. The padding of the crop becomes one more superpixel.
        resize_long_min, resize_long_max: the longer side becomes a uniform random integer of this closed range.
    """
    if superpixels.shape != image.shape[:2]:
        raise ValueError(f"superpixels {superpixels.shape} and image {image.shape} differ in size")
    scale = int(rng.integers(resize_long_min, resize_long_max + 1)) / max(image.shape[:2])
    # Plus 1 leaves 0 to the padding.
    image = rescale(image, scale, "bicubic")
    ids = rescale(superpixels.astype(np.int32) + np.int32(1), scale, "nearest")
    mirrored = bool(rng.random() < 0.5)
    crop = sample_canvas_crop(rng, image.shape[0], image.shape[1], crop_size)
    cropped = cropped_map(ids, mirrored, crop, fill=0)
    _, compact = np.unique(cropped, return_inverse=True)
    return CamSample(
        channels_first(cropped_image(image, mirrored, crop)), compact.reshape(cropped.shape).astype(np.int32)
    )


def affinity_training_sample(
    image: Array,
    label: Array,
    rng: np.random.Generator,
    *,
    crop_size: int = 512,
    rescale_min: float = 0.5,
    rescale_max: float = 1.5,
) -> AffinitySample:
    """Random rescale, mirror and crop of an image and its three-state label, which is then quartered.

    Args:
        image: uint8 (H, W, 3) RGB.
        label: uint8 (H, W), class ids, 255 unsure.
        crop_size: a multiple of 4.
        rescale_min, rescale_max: bounds of the uniform random scale.
    """
    scale = float(rng.uniform(rescale_min, rescale_max))
    image, label = rescale(image, scale, "bicubic"), rescale(label, scale, "nearest")
    mirrored = bool(rng.random() < 0.5)
    crop = sample_canvas_crop(rng, image.shape[0], image.shape[1], crop_size)
    reduced = quartered_label(cropped_map(label, mirrored, crop, fill=UNSURE))
    return AffinitySample(channels_first(cropped_image(image, mirrored, crop)), reduced)


def quartered_label(label: Array) -> Array:
    """A label map at a quarter of its size, by Pillow nearest: uint8 (H, W) -> uint8 (H // 4, W // 4)."""
    return resize(label, (label.shape[0] // 4, label.shape[1] // 4), "nearest")


def cropped_image(
    image: Array,
    mirrored: bool,
    crop: CanvasCrop,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> Array:
    """Normalize, mirror and cut: uint8 (H, W, 3) -> float32 (S, S, 3), padded with 0, the mean color."""
    normalized = normalize(image, mean, std)
    return crop.apply(mirror(normalized) if mirrored else normalized, 0)


def cropped_map(labels: Array, mirrored: bool, crop: CanvasCrop, fill: int) -> Array:
    """Mirror and cut a map as its image: (H, W) -> (S, S), padded with `fill`."""
    return crop.apply(mirror(labels) if mirrored else labels, fill)


def cam_inputs(image: Array, scales: Sequence[float] = (1.0, 0.5, 1.5, 2.0)) -> list[Array]:
    """For each scale the image and its mirror: uint8 (H, W, 3) -> float32 (2, 3, h, w), normalized.

    (h, w) is (H, W) times the scale, rounded half to even; Pillow bicubic on the uint8 image.
    """
    pairs = []
    for scale in scales:
        resized = image if scale == 1 else rescale(image, scale, "bicubic")
        planes = channels_first(normalize(resized))
        pairs.append(np.stack([planes, planes[..., ::-1]]))
    return pairs
