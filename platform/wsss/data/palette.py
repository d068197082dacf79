"""Label maps as palette PNG files with the VOC colours."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from wsss.files import write_file

# Colours of VOC's classes and of the border; the nearest two are 32 apart.
_CLASSES = (*range(21), 255)
_ROUNDING = 8
_WHITE = (255, 255, 255)


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


_CLASS_COLORS = voc_palette()[list(_CLASSES)]


def palette_fault(palette: np.ndarray, used: Sequence[int]) -> str:
    """Why the values of a palette picture are no class ids, by the colours of its palette; empty when they may be.

    A mask that went through its colours has values that are places in a new palette. That shows where the colours are
    VOC's in another order, or those of the web. Colours of another kind say nothing about ids and are left alone.

    Args:
        palette: (n, 3) uint8.
        used: values in the picture; those without a colour say nothing either.
    """
    seen = [value for value in used if value < len(palette)]
    if not seen or all(tuple(palette[value]) == (value,) * 3 for value in seen):
        return ""
    if len(palette) >= 226 and np.array_equal(palette[10:226], _web_palette()) and max(seen) >= 10:
        return "its palette is that of the web, as when a picture in colours is converted"
    meant = {value: _class_of(palette[value]) for value in seen}
    # A colour that two values have tells neither.
    told = {value: of for value, of in meant.items() if (palette == palette[value]).all(axis=1).sum() == 1}
    moved = {value: of for value, of in told.items() if of not in (None, value)}
    made_for_it = seen == list(range(len(palette)))
    if not moved or not (made_for_it or _all_voc(palette)):
        return ""
    words = [f"value {value} has the colour of class {of}" for value, of in list(moved.items())[:3]]
    return f"its palette has VOC's colours in another order: {', '.join(words)}"


def _all_voc(palette: np.ndarray) -> bool:
    known = {*map(tuple, voc_palette().tolist()), _WHITE}
    return all(tuple(color) in known or _class_of(color) is not None for color in np.unique(palette, axis=0).tolist())


def _class_of(color: Sequence[int] | np.ndarray) -> int | None:
    """The class whose VOC colour it is, up to rounding; 255 for the border."""
    distance = np.abs(_CLASS_COLORS.astype(int) - np.asarray(color, dtype=int)).max(axis=1)
    best = int(distance.argmin())
    return _CLASSES[best] if distance[best] <= _ROUNDING else None


def _web_palette() -> np.ndarray:
    """216 colours of steps of 51, red fastest, as Pillow orders them."""
    steps = np.arange(6) * 51
    return np.stack([np.tile(steps, 36), np.tile(steps.repeat(6), 6), steps.repeat(36)], axis=1)


def palette_colors(palette: np.ndarray, used: Sequence[int]) -> dict[str, list[int]]:
    """Colour (hex digits) of every value in a picture -> all values that have it in the palette."""
    shown = {palette[value].tobytes(): palette[value] for value in used if value < len(palette)}
    return {key.hex(): np.flatnonzero((palette == color).all(axis=1)).tolist() for key, color in shown.items()}


class SharedPalette:
    """Holds the masks of one folder against each other: a colour stands for one class in all of them."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[frozenset[int], str]] = {}

    def conflict(self, colors: Mapping[str, Sequence[int]], name: str) -> str:
        """What is wrong with `palette_colors` of a further mask, in words; empty when it agrees with all before."""
        for color, values in colors.items():
            before, first = self._seen.setdefault(color, (frozenset(values), name))
            common = before & frozenset(values)
            if not common:
                return (
                    f"its palette is another: colour #{color} is value {values[0]} here and {min(before)} in {first}, "
                    "so that values are places in palettes and no class ids"
                )
            self._seen[color] = common, first
        return ""


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
