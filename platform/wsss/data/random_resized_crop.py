"""A random crop of random size and aspect ratio, by the rule of torchvision's RandomResizedCrop."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class CropBox:
    """A rectangle in pixels: rows top..top+height-1, columns left..left+width-1."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, array: np.ndarray) -> np.ndarray:
        """The rectangle of (H, W[, C]), a view."""
        return array[self.top : self.top + self.height, self.left : self.left + self.width]


def random_resized_crop_box(
    height: int,
    width: int,
    rng: np.random.Generator,
    area: tuple[float, float] = (0.5, 0.75),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> CropBox:
    """Draw a crop of a (height, width) image.

    Up to ten tries of an area fraction uniform in `area` and an aspect ratio (width / height) log-uniform
    in `ratio`, placed uniformly; then the largest central crop whose ratio is within `ratio`.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        target = height * width * rng.uniform(area[0], area[1])
        aspect = math.exp(rng.uniform(low, high))
        crop_width = round(math.sqrt(target * aspect))
        crop_height = round(math.sqrt(target / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(rng.integers(0, height - crop_height + 1))
            left = int(rng.integers(0, width - crop_width + 1))
            return CropBox(top, left, crop_height, crop_width)
    if width / height < ratio[0]:
        crop_height, crop_width = round(width / ratio[0]), width
    elif width / height > ratio[1]:
        crop_height, crop_width = height, round(height * ratio[1])
    else:
        crop_height, crop_width = height, width
    return CropBox((height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width)
