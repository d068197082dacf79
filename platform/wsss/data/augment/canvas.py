"""Images of several sizes, plain and mirrored, on one padded canvas: a batch for multi-scale inference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wsss.data.transforms import channels_first, mirror, normalize, rescale
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


def canvas_inputs(image: np.ndarray, scales: Sequence[float], canvas: tuple[int, int]) -> list[CanvasInput]:
    """Every scale, plain and mirrored, in this order: uint8 (H, W, 3) -> 2 * len(scales) inputs.

    canvas: (height, width) in pixels. The normalized image lies on its middle, the rest is 0. Raises CanvasError for a
    scaled image that is larger.
    """
    inputs = []
    for scale in scales:
        scaled = rescale(image, scale, "bicubic")
        height, width = scaled.shape[:2]
        if height > canvas[0] or width > canvas[1]:
            raise CanvasError(
                f"an image of {height} x {width} does not fit a canvas of {canvas[0]} x {canvas[1]}",
                "multi-scale inference",
                f"set inference.infer_canvas to {max(height, width)} or more, or drop the largest infer_scales",
            )
        top, left = (canvas[0] - height) // 2, (canvas[1] - width) // 2
        for mirrored in (False, True):
            padded = np.zeros((3, *canvas), dtype=np.float32)
            padded[:, top : top + height, left : left + width] = network_input(mirror(scaled) if mirrored else scaled)
            inputs.append(CanvasInput(padded, Placement(top, left, height, width, mirrored)))
    return inputs
