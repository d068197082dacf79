"""Label maps as palette PNG files with the VOC colours."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from wsss.files import write_file


def voc_palette() -> np.ndarray:
    """The 256 VOC colours, (256, 3) uint8: the bits of the class id spread over R, G and B.

    Source: VOC 2012 development kit, function VOClabelcolormap.
    """
    ids = np.arange(256, dtype=np.uint8)
    colors = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            if 3 * bit + channel < 8:
                colors[:, channel] |= ((ids >> (3 * bit + channel)) & 1) << (7 - bit)
    return colors


def colorize(mask: np.ndarray) -> np.ndarray:
    """Colours of a label map, for people: (H, W) uint8 -> (H, W, 3) uint8."""
    return voc_palette()[mask]


def encode_palette_png(mask: np.ndarray) -> bytes:
    """PNG file (mode P, VOC palette) of an (H, W) uint8 label map."""
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise ValueError(f"expected a uint8 (H, W) label map, got {mask.dtype} {mask.shape}")
    image = Image.fromarray(mask)
    image.putpalette(voc_palette().tobytes())  # turns mode L into P, values unchanged
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def write_palette_mask(path: Path, mask: np.ndarray) -> None:
    """Write a label map; a reader sees the whole file or none."""
    write_file(path, encode_palette_png(mask))
