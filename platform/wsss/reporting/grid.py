"""Image grids: each picture beside what the stages made of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.patches import Patch
from PIL import Image

from wsss.data.palette import colorize, voc_palette
from wsss.ops.cam import as_shares
from wsss.pipeline import GridKind
from wsss.reporting.plots import new_figure, save
from wsss.reporting.run_report import SampleImage, SampleRows

Array = np.ndarray[Any, np.dtype[Any]]
_CELL = 2.3  # inches


def write_grid(rows: SampleRows, classes: Sequence[str], path: Path) -> Path:
    """Draw a row for each sample: the picture, then the arrays of `rows.columns`; an absent one leaves its cell empty.

    Returns the path, of a PNG. Label maps have the VOC colours, ignored pixels the colour of 255.
    """
    samples = rows.samples
    columns = ["input", *rows.columns]
    heights = [sample.image.shape[0] / sample.image.shape[1] for sample in samples]
    present = sorted({index for sample in samples for index in _class_ids(rows, sample)})
    legend_columns = 2 * len(columns) - 1  # what fits below the pictures, long names included
    legend_rows = -(-len(present) // legend_columns)
    height = _CELL * sum(heights) + 0.3 * len(samples) + 0.5 + 0.28 * legend_rows
    figure = new_figure(_CELL * len(columns), height)
    axes = figure.subplots(len(samples), len(columns), squeeze=False, gridspec_kw={"height_ratios": heights})
    for row, sample in enumerate(samples):
        for column, title in enumerate(columns):
            cell = axes[row, column]
            cell.set_axis_off()
            if title == "input":
                cell.imshow(sample.image, interpolation="nearest")
            elif title in sample.arrays:
                cell.imshow(draw(sample.image, sample.arrays[title], rows.columns[title]), interpolation="nearest")
            if row == 0:
                cell.set_title(title, fontsize=11)
        place, caption = axes[row, 0].transAxes, _caption(rows, sample, classes)
        # A name may hold dollar signs, which are no formula.
        axes[row, 0].text(0, -0.03, caption, transform=place, fontsize=8, va="top", color="#444444", parse_math=False)
    if present:
        colors = voc_palette() / 255
        handles = []
        for index in present:
            name = classes[index] if index < len(classes) else "ignored or unsure"
            handles.append(Patch(facecolor=colors[index], edgecolor="#888888", label=name))
        width = min(legend_columns, len(handles))
        figure.legend(handles=handles, loc="outside lower center", ncols=width, frameon=False, fontsize=8)
    return save(figure, path)


def heat_overlay(image: Array, cam: Array, strength: float = 0.6) -> Array:
    """The strongest class at each pixel as a heat map over the grey picture.

    image: uint8 (H, W, 3). cam: float (K, h, w), resized bilinearly to the picture; values are clipped to
    0..1. K may be 0. Returns uint8 (H, W, 3).
    """
    height, width = image.shape[:2]
    grey = image.mean(axis=2, keepdims=True).repeat(3, axis=2) / 255
    best = cam.max(axis=0).astype(np.float32) if len(cam) else np.zeros((height, width), np.float32)
    heat = np.asarray(Image.fromarray(best).resize((width, height), Image.Resampling.BILINEAR))
    heat = np.clip(heat, 0, 1)
    colors = matplotlib.colormaps["turbo"](heat)[..., :3]
    # Weak activation leaves the picture visible, so that one sees what a map misses.
    weight = strength * np.clip(0.25 + heat, 0, 1)[..., None]
    return np.rint(255 * ((1 - weight) * grey + weight * colors)).astype(np.uint8)


def segment_outlines(image: Array, segments: Array) -> Array:
    """The borders between segments in yellow over the picture.

    image: uint8 (H, W, 3). segments: integers (h, w), stretched over the picture. Returns uint8 (H, W, 3).
    """
    height, width = image.shape[:2]
    rows, columns = (np.arange(size) * have // size for size, have in zip((height, width), segments.shape, strict=True))
    stretched = segments[rows][:, columns]
    border = np.zeros((height, width), bool)
    border[:, 1:] |= stretched[:, 1:] != stretched[:, :-1]
    border[1:] |= stretched[1:] != stretched[:-1]
    return np.where(border[..., None], np.array([255, 220, 0], np.uint8), image)


def draw(image: Array, array: Array, kind: GridKind) -> Array:
    """An array of a grid as a picture, uint8 (h, w, 3). `image`: uint8 (H, W, 3), what it belongs to."""
    match kind:
        case "cam":
            return heat_overlay(image, as_shares(array))
        case "labels":
            return colorize(array.astype(np.uint8))
        case "grey":
            level = array if array.dtype == np.uint8 else np.rint(255 * np.clip(array, 0, 1).astype(np.float32))
            return level.astype(np.uint8)[..., None].repeat(3, axis=2)
        case "segments":
            return segment_outlines(image, array)


def _class_ids(rows: SampleRows, sample: SampleImage, titles: Collection[str] = ()) -> set[int]:
    """Class ids in the label maps of a sample, of all columns unless some are named."""
    maps = [array for title, array in sample.arrays.items() if rows.columns[title] == "labels"]
    if titles:
        maps = [sample.arrays[title] for title in titles]
    return {int(index) for labels in maps for index in np.unique(labels.astype(np.uint8))}


def _caption(rows: SampleRows, sample: SampleImage, classes: Sequence[str]) -> str:
    ids = sorted(_class_ids(rows, sample, ("truth",) if "truth" in sample.arrays else ()))
    names = [classes[index] for index in ids if 0 < index < len(classes)]
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{sample.name}  {shown}".rstrip()
