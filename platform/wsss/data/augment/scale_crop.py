"""Scale, crop and mirror of a picture and its label map (kazuto1011/deeplab-pytorch), and what networks are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from wsss.data.transforms import IMAGENET_MEAN, IMAGENET_STD, channels_first, mirror, resize

# caffe: BGR in 0..255 minus the mean color. imagenet: RGB in 0..1 minus the mean color, divided by its deviation.
InputFormat = Literal["caffe", "imagenet"]

CAFFE_MEAN_BGR = (104.008, 116.669, 122.675)
IGNORE = 255


@dataclass(frozen=True)
class ScaleCrop:
    """What is drawn: a scale, the upper left corner of the crop in the scaled and padded picture, mirroring."""

    scale: float
    top: int
    left: int
    mirrored: bool


def draw_scale_crop(rng: np.random.Generator, height: int, width: int, scales: Sequence[float], size: int) -> ScaleCrop:
    """Uniform over the scales and over all corners that fit; mirrored with probability 1/2."""
    scale = float(scales[int(rng.integers(len(scales)))])
    free = [max(0, int(length * scale) - size) for length in (height, width)]
    return ScaleCrop(scale, int(rng.integers(free[0] + 1)), int(rng.integers(free[1] + 1)), bool(rng.random() < 0.5))


def scale_crop(
    image: np.ndarray, label: np.ndarray, drawn: ScaleCrop, size: int, form: InputFormat = "caffe"
) -> tuple[np.ndarray, np.ndarray]:
    """A training sample: uint8 (H, W, 3) RGB and uint8 (H, W) -> `network_input` (3, size, size), uint8 (size, size).

    Sides are truncated to whole pixels; the picture is resized bilinearly, the label by nearest. Padding at the bottom
    and the right is the mean color, and 255 in the label.
    """
    scaled = _scaled(image, drawn.scale)
    if drawn.scale != 1:
        label = resize(label, scaled.shape[:2], "nearest")
    rows, columns = slice(drawn.top, drawn.top + size), slice(drawn.left, drawn.left + size)
    pixels, labels = _formatted(scaled, form)[rows, columns], label[rows, columns]
    missing = ((0, size - labels.shape[0]), (0, size - labels.shape[1]))
    pixels, labels = np.pad(pixels, (*missing, (0, 0))), np.pad(labels, missing, constant_values=IGNORE)
    if drawn.mirrored:
        pixels, labels = mirror(pixels), mirror(labels)
    return channels_first(pixels), labels


def network_input(image: np.ndarray, form: InputFormat = "caffe", scale: float = 1.0) -> np.ndarray:
    """uint8 (H, W, 3) RGB -> float32 (3, H, W) in a format, both sides times `scale`; the mean color is 0."""
    return channels_first(_formatted(_scaled(image, scale), form))


def caffe_input(image: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) RGB -> float32 (3, H, W) BGR in 0..255 minus the mean color, not divided."""
    return network_input(image, "caffe")


def _scaled(image: np.ndarray, scale: float) -> np.ndarray:
    """Bilinearly, as float32; sides are truncated to whole pixels."""
    pixels = image.astype(np.float32)
    if scale == 1:
        return pixels
    size = max(1, int(image.shape[1] * scale)), max(1, int(image.shape[0] * scale))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR)


def _formatted(image: np.ndarray, form: InputFormat) -> np.ndarray:
    if form == "caffe":
        return image[..., ::-1] - np.array(CAFFE_MEAN_BGR, dtype=np.float32)
    mean, deviation = (np.array(values, dtype=np.float32) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (image / np.float32(255) - mean) / deviation
