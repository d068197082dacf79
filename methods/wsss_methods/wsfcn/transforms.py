"""The padded inputs of multi-scale inference (WS-FCN, sections 5.3 and 7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wsss.data.transforms import channels_first, mirror, normalize, resize, scaled_size
from wsss.errors import WsssError


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


def network_input(image: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) -> float32 (3, H, W), normalized."""
    return channels_first(normalize(image))


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
