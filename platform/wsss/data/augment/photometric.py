"""Brightness, contrast, color, grey and blur of normalized batches, in the 8-bit arithmetic of OpenCV.

The operations and their ranges are the defaults of albumentations 1.x (RandomBrightnessContrast, HueSaturationValue,
ToGray, GaussianBlur).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from wsss.data.transforms import IMAGENET_MEAN, IMAGENET_STD

# Sector of the hue -> which of (value, low, falling, rising) red, green and blue take.
_SECTORS = np.array([[0, 3, 1], [2, 0, 1], [1, 0, 3], [1, 2, 0], [3, 1, 0], [0, 1, 2]])


@dataclass(frozen=True)
class PhotometricSettings:
    """Probabilities of the three groups of operations; the ranges inside them are fixed by the method."""

    jitter_probability: float = 0.8
    grey_probability: float = 0.2
    blur_probability: float = 0.5


@dataclass(frozen=True)
class PhotometricDraw:
    """What is done to one image; the defaults do nothing.

    contrast multiplies and brightness is added, in grey levels; hue is a shift in units of 2 degrees,
    saturation and value are shifts in grey levels; blur_kernel is 0 (none), 3 or 5.
    """

    contrast: float = 1.0
    brightness: float = 0.0
    hue: float = 0.0
    saturation: float = 0.0
    value: float = 0.0
    grey: bool = False
    blur_kernel: int = 0


def draw_photometric(seed: int, settings: PhotometricSettings) -> PhotometricDraw:
    """Draw the operations for one image: a pure function of `seed`, however the batch is split."""
    rng = np.random.default_rng(seed)
    contrast, brightness = 1.0, 0.0
    hue = saturation = value = 0.0
    if rng.random() < settings.jitter_probability:
        contrast = 1.0 + rng.uniform(-0.2, 0.2)
        brightness = 255.0 * rng.uniform(-0.2, 0.2)
        hue, saturation, value = rng.uniform(-20, 20), rng.uniform(-30, 30), rng.uniform(-20, 20)
    grey = bool(rng.random() < settings.grey_probability)
    blur_kernel = 0
    if rng.random() < settings.blur_probability:
        # A kernel size from 3..5 whose even value is raised to the next odd one: 5 twice as often as 3.
        blur_kernel = 3 if rng.integers(3) == 0 else 5
    return PhotometricDraw(contrast, brightness, hue, saturation, value, grey, blur_kernel)


@torch.no_grad()
def augment_photometric(images: Tensor, draws: Sequence[PhotometricDraw]) -> Tensor:
    """Apply one draw per image to ImageNet-normalized RGB `images`, float32 (N, 3, H, W) in and out.

    Undoes the normalization, truncates to uint8, swaps red and blue, augments, and goes back. Even a draw that does
    nothing passes through uint8. The official `segmentation/main.py` swaps the channels as well; only the weights of
    grey show it. Raises ValueError when the number of draws differs from N.
    """
    if len(draws) != len(images):
        raise ValueError(f"{len(draws)} photometric draws for {len(images)} images")
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).reshape(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=images.device).reshape(1, 3, 1, 1)
    levels = ((images.float() * std + mean) * 255).clamp(0, 255).to(torch.uint8).flip(1)
    pictures = levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    augmented = np.stack([augment_picture(picture, draw) for picture, draw in zip(pictures, draws, strict=True)])
    changed = torch.from_numpy(augmented).to(images.device).permute(0, 3, 1, 2)
    return (changed.flip(1).float() / 255 - mean) / std


def augment_picture(image: np.ndarray, draw: PhotometricDraw) -> np.ndarray:
    """What was drawn, in the order contrast, hue, grey, blur: uint8 (H, W, 3) in and out."""
    levels = np.arange(256, dtype=np.float32)
    if draw.contrast != 1.0 or draw.brightness != 0.0:
        image = cv2.LUT(image, _clipped(levels * np.float32(draw.contrast) + np.float32(draw.brightness)))
    if draw.hue or draw.saturation or draw.value:
        hue, saturation, value = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV))
        hue = cv2.LUT(hue, np.mod(levels + np.float32(draw.hue), 180).astype(np.uint8))
        saturation = cv2.LUT(saturation, _clipped(levels + np.float32(draw.saturation)))
        value = cv2.LUT(value, _clipped(levels + np.float32(draw.value)))
        image = _hsv_to_rgb(hue, saturation, value)
    if draw.grey:
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if draw.blur_kernel:
        image = cv2.GaussianBlur(image, (draw.blur_kernel, draw.blur_kernel), 0)
    return image


def _clipped(table: np.ndarray) -> np.ndarray:
    return np.clip(table, 0, 255).astype(np.uint8)


def _hsv_to_rgb(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Hue 0..179, saturation and value 0..255, uint8 (H, W) each, to RGB (H, W, 3), truncated.

    By hand: OpenCV rounds the last columns of a row and truncates the others, so its bytes depend on the width and on
    the processor.
    """
    position = hue.astype(np.float32) * np.float32(6 / 180)
    sector = np.floor(position)
    fraction = position - sector
    s, v = saturation.astype(np.float32) * np.float32(1 / 255), value.astype(np.float32) * np.float32(1 / 255)
    candidates = np.stack([v, v * (1 - s), v * (1 - s * fraction), v * (1 - s * (1 - fraction))], axis=-1)
    levels = (candidates * np.float32(255)).clip(0, 255).astype(np.uint8)
    return np.take_along_axis(levels, _SECTORS[sector.astype(np.intp) % 6], axis=-1)
