"""Regions of COCO annotations as pixels, by the COCO mask API (pycocotools): polygons and run lengths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from wsss.data.errors import DataError

Array = np.ndarray[Any, np.dtype[Any]]

_FIRST_CHARACTER = 48


def region_mask(segmentation: Any, height: int, width: int) -> Array:
    """The pixels of a `segmentation` entry: (height, width) bool.

    The entry is a list of polygons, or run lengths {"size": [height, width], "counts": list of lengths, or their
    compressed text}. Polygons of fewer than three points cover nothing.

    Raises:
        DataError: `region_problem` says what is wrong with the entry, or pycocotools is not installed.
    """
    problem = region_problem(segmentation, height, width)
    if problem:
        raise DataError(problem, "segmentation of a COCO annotation", "use the original annotation file")
    try:
        from pycocotools import mask as api
    except ImportError as error:
        raise DataError(
            "masks from COCO's instances need pycocotools", "this Python environment", "pip install 'wsss[coco]'"
        ) from error
    if isinstance(segmentation, Mapping):
        runs: Any = {"size": [height, width], "counts": _lengths(segmentation["counts"])}
        return api.decode(api.frPyObjects(runs, height, width)).astype(bool)
    polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
    if not polygons:
        return np.zeros((height, width), dtype=bool)
    return api.decode(api.merge(api.frPyObjects(polygons, height, width))).astype(bool)


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


def decode_runs(text: str) -> list[int]:
    """Run lengths of the compressed text form.

    Each number is cut into groups of five bits, lowest first, one character (code 48 + group) each; bit 5 says that
    more follow, and bit 4 of the last is the sign. From the fourth number on, the difference to the one two before
    is stored. By hand, because pycocotools does not notice a damaged text. ValueError when the text ends within a
    number or holds other characters.
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


def _lengths(counts: Any) -> list[int]:
    if isinstance(counts, str):
        return decode_runs(counts)
    if isinstance(counts, list) and all(isinstance(length, int) for length in counts):
        return counts
    raise ValueError("the counts are neither a list of lengths nor their compressed text")


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6
