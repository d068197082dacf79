"""Photometric augmentation of the segmentation stage, on normalized batches (SSC, section 3.3, item 4).

Arithmetic follows 8-bit image libraries (look-up tables, HSV with hue 0..179, integer grey weights, integer
blur kernels), written with tensor operations so that it runs where the batch lies.  Images are augmented
with red and blue swapped, as the official code does; only the grey weights show it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.data.transforms import IMAGENET_MEAN, IMAGENET_STD

_BLUR_KERNELS = {3: (1, 2, 1), 5: (1, 4, 6, 4, 1)}
_HSV_SHIFT = 12
_GREY_SHIFT = 15
_GREY_WEIGHTS = (9798, 19235, 3735)  # 0.299, 0.587, 0.114 times 2**15


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

    Undoes the normalization, truncates to uint8, swaps red and blue, augments, and goes back.  Even a draw
    that does nothing passes through uint8.  Raises ValueError when the number of draws differs from N.
    """
    if len(draws) != len(images):
        raise ValueError(f"{len(draws)} photometric draws for {len(images)} images")
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).reshape(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=images.device).reshape(1, 3, 1, 1)
    levels = ((images.float() * std + mean) * 255).clamp(0, 255).to(torch.uint8).flip(1)
    augmented = torch.stack([_augment_one(image, draw) for image, draw in zip(levels, draws, strict=True)])
    return (augmented.flip(1).float() / 255 - mean) / std


def _augment_one(image: Tensor, draw: PhotometricDraw) -> Tensor:
    if draw.contrast != 1.0 or draw.brightness != 0.0:
        image = _contrast_brightness(image, draw.contrast, draw.brightness)
    if draw.hue or draw.saturation or draw.value:
        image = _shift_hsv(image, draw.hue, draw.saturation, draw.value)
    if draw.grey:
        image = _grey(image)
    if draw.blur_kernel:
        image = _blur(image, draw.blur_kernel)
    return image


def _look_up(channel: Tensor, table: np.ndarray) -> Tensor:
    return torch.as_tensor(table, device=channel.device)[channel.long()]


def _contrast_brightness(image: Tensor, contrast: float, brightness: float) -> Tensor:
    table = np.arange(256, dtype=np.float32) * np.float32(contrast) + np.float32(brightness)
    return _look_up(image, np.clip(table, 0, 255).astype(np.uint8))


def _shift_hsv(image: Tensor, hue: float, saturation: float, value: float) -> Tensor:
    levels = np.arange(256, dtype=np.float32)
    tables = (
        np.mod(levels + np.float32(hue), 180).astype(np.uint8),
        np.clip(levels + np.float32(saturation), 0, 255).astype(np.uint8),
        np.clip(levels + np.float32(value), 0, 255).astype(np.uint8),
    )
    shifted = [_look_up(channel, table) for channel, table in zip(_rgb_to_hsv(image), tables, strict=True)]
    return _hsv_to_rgb(*shifted)


def _rgb_to_hsv(image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """uint8 (3, H, W) to hue 0..179, saturation and value 0..255, in 8-bit fixed-point arithmetic."""
    divisors = np.arange(1, 256, dtype=np.float64)
    saturation_table = np.concatenate(([0], np.rint((255 << _HSV_SHIFT) / divisors))).astype(np.int64)
    hue_table = np.concatenate(([0], np.rint((180 << _HSV_SHIFT) / (6 * divisors)))).astype(np.int64)
    half = 1 << (_HSV_SHIFT - 1)
    red, green, blue = image.to(torch.int64)
    value = torch.maximum(torch.maximum(red, green), blue)
    spread = value - torch.minimum(torch.minimum(red, green), blue)
    saturation = (spread * _look_up(value, saturation_table) + half) >> _HSV_SHIFT
    sector = torch.where(
        value == red,
        green - blue,
        torch.where(value == green, blue - red + 2 * spread, red - green + 4 * spread),
    )
    hue = (sector * _look_up(spread, hue_table) + half) >> _HSV_SHIFT
    return torch.where(hue < 0, hue + 180, hue), saturation, value


def _hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Inverse of `_rgb_to_hsv`, truncating to uint8 (3, H, W) as vectorized 8-bit conversions do."""
    position = hue.float() * (6 / 180)
    sector = position.floor()
    fraction = position - sector
    s, v = saturation.float() * (1 / 255), value.float() * (1 / 255)
    low, falling, rising = v * (1 - s), v * (1 - s * fraction), v * (1 - s * (1 - fraction))
    candidates = torch.stack([v, low, falling, rising])
    order = torch.tensor([[0, 3, 1], [2, 0, 1], [1, 0, 3], [1, 2, 0], [3, 1, 0], [0, 1, 2]], device=hue.device)
    chosen = order[sector.long() % 6].movedim(-1, 0)
    return (torch.gather(candidates, 0, chosen) * 255).clamp(0, 255).to(torch.uint8)


def _grey(image: Tensor) -> Tensor:
    first, second, third = image.to(torch.int64)
    a, b, c = _GREY_WEIGHTS
    grey = (a * first + b * second + c * third + (1 << (_GREY_SHIFT - 1))) >> _GREY_SHIFT
    return grey.to(torch.uint8).expand(3, -1, -1)


def _blur(image: Tensor, kernel: int) -> Tensor:
    """Binomial kernel, the 8-bit stand-in for a Gaussian of that size; reflected at the border."""
    weights = _BLUR_KERNELS[kernel]
    reach = kernel // 2
    height, width = image.shape[1:]
    padded = F.pad(image.float()[None], (reach, reach, reach, reach), mode="reflect")[0]
    columns = torch.stack([w * padded[:, :, i : i + width] for i, w in enumerate(weights)]).sum(dim=0)
    both = torch.stack([w * columns[:, i : i + height] for i, w in enumerate(weights)]).sum(dim=0)
    return torch.floor(both / sum(weights) ** 2 + 0.5).to(torch.uint8)
