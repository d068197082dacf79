"""Regions of COCO annotations as pixels: polygons and run lengths, by the rules of the COCO mask API.

Masks are column-major there: run lengths count down the columns, alternately outside and inside the region. A
polygon's border is traced on a grid five times as fine, which decides which pixels it covers; a plain polygon
fill differs along borders.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from wsss.data.errors import DataError

Array = np.ndarray[Any, np.dtype[Any]]

_FINER = 5
_FIRST_CHARACTER = 48


def region_columns(segmentation: Any, height: int, width: int) -> Iterator[tuple[int, Array]]:
    """A `segmentation` entry in pieces whose union it is: (first column, bool (columns, height) from there on).

    The entry is a list of polygons, or run lengths {"size": [height, width], "counts": list of lengths, or their
    compressed text}. Polygons of fewer than three points cover nothing.

    Raises:
        DataError: `region_problem` says what is wrong with the entry.
    """
    problem = region_problem(segmentation, height, width)
    if problem:
        raise DataError(problem, "segmentation of a COCO annotation", "use the original annotation file")
    if isinstance(segmentation, Mapping):
        yield 0, _runs(_lengths(segmentation["counts"])).reshape(width, height)
        return
    for polygon in segmentation:
        if len(polygon) >= 6:
            yield _polygon(polygon, height, width)


def region_mask(segmentation: Any, height: int, width: int) -> Array:
    """`region_columns` as one mask, (height, width) bool."""
    mask = np.zeros((width, height), dtype=bool)
    for first, inside in region_columns(segmentation, height, width):
        mask[first : first + len(inside)] |= inside
    return mask.T


def region_problem(segmentation: Any, height: int, width: int) -> str:
    """What is wrong with a `segmentation` entry for a picture of this size; empty when it can be decoded."""
    if isinstance(segmentation, list):
        if not segmentation:
            return "the annotation has no polygon"
        for polygon in segmentation:
            if not isinstance(polygon, list) or len(polygon) % 2 or not all(map(_finite, polygon)):
                return "a polygon is not a list of x, y pairs"
        return ""
    if not isinstance(segmentation, Mapping) or not {"size", "counts"} <= set(segmentation):
        return "the segmentation is neither polygons nor run lengths (size and counts)"
    if segmentation["size"] != [height, width]:
        return f"the run lengths are of size {segmentation['size']}, the picture is {[height, width]}"
    try:
        lengths = _lengths(segmentation["counts"])
    except ValueError as error:
        return str(error)
    if any(length < 0 for length in lengths) or sum(lengths) != height * width:
        return f"the run lengths add up to {sum(lengths)} instead of {height * width} pixels"
    return ""


def _polygon(polygon: Sequence[float], height: int, width: int) -> tuple[int, Array]:
    """The columns that a polygon (x0, y0, x1, y1, ... in pixels, closed by itself) touches, and its pixels there.

    On a grid five times as fine every edge is walked in steps of its longer axis, always from the lower to the
    higher end. Where the walk enters a new fine column that lies in the middle of a pixel column, the border
    crosses that column at the walk's height; between the first and the second crossing is inside, and so on.
    """
    corners = np.trunc(_FINER * np.asarray(polygon, dtype=np.float64).reshape(-1, 2) + 0.5).astype(np.int64)
    walks = [_walk(start, end) for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True)]
    x, y = (np.concatenate(axis) for axis in zip(*walks, strict=True))
    enters = np.flatnonzero(x[1:] != x[:-1]) + 1
    column = (np.minimum(x[enters], x[enters - 1]) + 0.5) / _FINER - 0.5
    row = np.ceil(np.clip((np.minimum(y[enters], y[enters - 1]) + 0.5) / _FINER - 0.5, 0, height))
    counts = (column == np.floor(column)) & (column >= 0) & (column <= width - 1)
    if not counts.any():
        return 0, np.zeros((0, height), dtype=bool)
    columns, rows = column[counts].astype(np.int64), row[counts].astype(np.int64)
    first, number = int(columns.min()), int(columns.max() - columns.min()) + 1
    # A closed border crosses a column an even number of times, so that columns do not influence each other; a
    # crossing below the last row has a place of its own.
    places = (columns - first) * (height + 1) + rows
    toggles = np.bincount(places, minlength=number * (height + 1)).reshape(number, height + 1)
    return first, np.cumsum(toggles, axis=1)[:, :height] % 2 == 1


def _runs(lengths: Sequence[int]) -> Array:
    """Run lengths, outside first, as bool (pixels,)."""
    inside = np.zeros(len(lengths), dtype=bool)
    inside[1::2] = True
    return np.repeat(inside, lengths)


def decode_runs(text: str) -> list[int]:
    """Run lengths of the compressed text form.

    Each number is cut into groups of five bits, lowest first, one character (code 48 + group) each; bit 5 says that
    more follow, and bit 4 of the last is the sign. From the fourth number on, the difference to the one two before
    is stored. ValueError when the text ends within a number or holds other characters.
    """
    lengths: list[int] = []
    value = shift = 0
    pending = False
    for character in text:
        group = ord(character) - _FIRST_CHARACTER
        if not 0 <= group < 64:
            raise ValueError(f"the compressed run lengths hold the character {character!r}")
        value |= (group & 0x1F) << shift
        shift += 5
        pending = bool(group & 0x20)
        if pending:
            continue
        if group & 0x10:
            value -= 1 << shift
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value = shift = 0
    if pending:
        raise ValueError("the compressed run lengths end within a number")
    return lengths


def _walk(start: Array, end: Array) -> tuple[Array, Array]:
    """Fine grid points from one corner to the next, both included: x and y, int64."""
    along = 0 if abs(end[0] - start[0]) >= abs(end[1] - start[1]) else 1
    low, high = (start, end) if start[along] <= end[along] else (end, start)
    steps = int(high[along] - low[along])
    step = np.arange(steps + 1)
    if low is not start:
        step = step[::-1]
    across = 1 - along
    slope = (high[across] - low[across]) / steps if steps else 0.0
    points = [step, step]
    points[along] = step + low[along]
    points[across] = np.trunc(low[across] + slope * step + 0.5).astype(np.int64)
    return points[0], points[1]


def _lengths(counts: Any) -> list[int]:
    if isinstance(counts, str):
        return decode_runs(counts)
    if isinstance(counts, list) and all(isinstance(length, int) for length in counts):
        return counts
    raise ValueError("the counts are neither a list of lengths nor their compressed text")


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6
