"""Random brightness, contrast, saturation and hue on 8-bit images, by the rule of torchvision's ColorJitter."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance

_OPERATIONS = ("brightness", "contrast", "saturation", "hue")
_ENHANCE = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
}


@dataclass(frozen=True)
class ColorJitter:
    """Ranges: a factor in [max(0, 1 - x), 1 + x] for the first three, a shift in [-x, x] turns (x <= 0.5) of hue."""

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def scaled(self, factor: float) -> ColorJitter:
        """All ranges times `factor`."""
        return ColorJitter(
            self.brightness * factor, self.contrast * factor, self.saturation * factor, min(0.5, self.hue * factor)
        )


# Of 1-stage-wseg (Araslanov and Roth), and in three further programs.
PUBLISHED_JITTER = ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1)


def random_color_jitter(image: np.ndarray, jitter: ColorJitter, rng: np.random.Generator) -> np.ndarray:
    """The four operations in random order, each with a value drawn uniformly from its range.

    uint8 (H, W, 3) RGB in and out. A range of 0 leaves its operation out. The generator is used alike
    whatever the ranges are.
    """
    order = rng.permutation(len(_OPERATIONS))
    draws = rng.uniform(-1.0, 1.0, len(_OPERATIONS))
    for index in order:
        name = _OPERATIONS[index]
        reach = getattr(jitter, name)
        if reach == 0:
            continue
        if name == "hue":
            image = adjusted_color(image, name, round(reach * draws[index] * 255))
            continue
        low, high = max(0.0, 1.0 - reach), 1.0 + reach
        factor = low + (high - low) * (draws[index] + 1) / 2
        image = adjusted_color(image, name, factor)
    return image


def adjusted_color(image: np.ndarray, operation: str, amount: float) -> np.ndarray:
    """One operation of `ColorJitter` by Pillow: uint8 (H, W, 3) RGB in and out.

    amount: factor of "brightness", "contrast" or "saturation"; of "hue" a whole number of 255ths of a turn.
    """
    picture = Image.fromarray(image)
    if operation != "hue":
        return np.array(_ENHANCE[operation](picture).enhance(amount))
    hue, saturation, value = picture.convert("HSV").split()
    shifted = np.array(hue, dtype=np.uint8) + np.array(int(amount) % 256, dtype=np.uint8)  # wraps around
    return np.array(Image.merge("HSV", (Image.fromarray(shifted), saturation, value)).convert("RGB"))
