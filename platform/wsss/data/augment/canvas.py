"""Images of several sizes, plain and mirrored, on one padded canvas: a batch for multi-scale inference."""

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
    """One input of the network: float32 (3, *canvas), zero around the image, and where the image is."""

    image: np.ndarray
    placement: Placement


def network_input(image: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) -> float32 (3, H, W), normalized."""
    return channels_first(normalize(image))


def on_canvas(image: np.ndarray, canvas: tuple[int, int], mirrored: bool) -> CanvasInput:
    """Mirror a uint8 (H, W, 3) image when asked and lay its normalized version on the middle of a canvas.

    canvas: (height, width) in pixels; it is 0 after normalization. Raises CanvasError for an image that is larger.
    """
    height, width = image.shape[:2]
    if height > canvas[0] or width > canvas[1]:
        raise CanvasError(
            f"an image of {height} x {width} does not fit a canvas of {canvas[0]} x {canvas[1]}",
            "multi-scale inference",
            f"set inference.infer_canvas to {max(height, width)} or more, or drop the largest infer_scales",
        )
    top, left = (canvas[0] - height) // 2, (canvas[1] - width) // 2
    padded = np.zeros((3, *canvas), dtype=np.float32)
    padded[:, top : top + height, left : left + width] = network_input(mirror(image) if mirrored else image)
    return CanvasInput(padded, Placement(top, left, height, width, mirrored))


def canvas_inputs(image: np.ndarray, scales: Sequence[float], canvas: tuple[int, int]) -> list[CanvasInput]:
    """Every scale, plain and mirrored, in this order: uint8 (H, W, 3) -> 2 * len(scales) inputs."""
    inputs = []
    for scale in scales:
        scaled = resize(image, scaled_size(image.shape[0], image.shape[1], scale), "bicubic")
        inputs += [on_canvas(scaled, canvas, mirrored) for mirrored in (False, True)]
    return inputs
