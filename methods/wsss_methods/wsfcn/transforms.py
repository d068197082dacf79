"""Training crops and the padded inputs of multi-scale inference (WS-FCN, sections 5.3 and 7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wsss.data.color_jitter import ColorJitter, random_color_jitter
from wsss.data.random_resized_crop import CropBox, random_resized_crop_box
from wsss.data.transforms import channels_first, mirror, normalize, resize, scaled_size
from wsss.errors import WsssError

PUBLISHED_JITTER = ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1)


class CanvasError(WsssError):
    """An image does not fit the canvas of inference."""


@dataclass(frozen=True)
class Placement:
    """Where an image lies on the canvas, in pixels, and whether it was mirrored."""

    top: int
    left: int
    height: int
    width: int
    mirrored: bool


@dataclass(frozen=True)
class CanvasInput:
    """One input of the network: float32 (3, S, S), zero around the image, and where the image is."""

    image: np.ndarray
    placement: Placement


def resized_crop(image: np.ndarray, box: CropBox, size: int, mirrored: bool) -> np.ndarray:
    """uint8 (H, W, 3): cut `box`, resize to a square of side `size` (bicubic, antialiased), mirror when asked."""
    crop = resize(np.ascontiguousarray(box.cut(image)), (size, size), "bicubic")
    return mirror(crop) if mirrored else crop


def network_input(image: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) -> float32 (3, H, W), normalized."""
    return channels_first(normalize(image))


def training_image(
    image: np.ndarray, rng: np.random.Generator, size: int, scale_min: float, jitter: ColorJitter
) -> np.ndarray:
    """One augmented sample: random resized crop, mirrored half of the time, colours changed, normalized.

    image: uint8 (H, W, 3) RGB. scale_min: smallest share of the area. Returns float32 (3, size, size).
    """
    box = random_resized_crop_box(image.shape[0], image.shape[1], rng, (scale_min, 1.0))
    crop = resized_crop(image, box, size, mirrored=bool(rng.random() < 0.5))
    return network_input(random_color_jitter(crop, jitter, rng))


def on_canvas(image: np.ndarray, size: int, mirrored: bool) -> CanvasInput:
    """Mirror a uint8 (H, W, 3) image when asked and lay its normalized version on the middle of a square canvas.

    The canvas is 0 after normalization. Raises CanvasError for an image that is larger.
    """
    height, width = image.shape[:2]
    if height > size or width > size:
        raise CanvasError(
            f"an image of {height} x {width} does not fit a canvas of {size} x {size}",
            "multi-scale inference",
            f"set inference.infer_canvas to {max(height, width)} or more, or drop the largest infer_scales",
        )
    top, left = (size - height) // 2, (size - width) // 2
    canvas = np.zeros((3, size, size), dtype=np.float32)
    canvas[:, top : top + height, left : left + width] = network_input(mirror(image) if mirrored else image)
    return CanvasInput(canvas, Placement(top, left, height, width, mirrored))


def canvas_inputs(image: np.ndarray, scales: Sequence[float], size: int) -> list[CanvasInput]:
    """Every scale, plain and mirrored, in this order: uint8 (H, W, 3) -> 2 * len(scales) inputs."""
    inputs = []
    for scale in scales:
        scaled = resize(image, scaled_size(image.shape[0], image.shape[1], scale), "bicubic")
        inputs += [on_canvas(scaled, size, mirrored) for mirrored in (False, True)]
    return inputs
