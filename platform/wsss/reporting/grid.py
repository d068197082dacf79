"""Image grids: the picture, its class maps and its labels side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.patches import Patch
from PIL import Image

from wsss.data.palette import colorize, voc_palette
from wsss.reporting.plots import new_figure, save
from wsss.reporting.run_report import SampleImage, SampleRows

Array = np.ndarray[Any, np.dtype[Any]]
_CELL = 2.3  # inches


def write_grid(rows: SampleRows, classes: Sequence[str], path: Path) -> Path:
    """Draw one row for each sample: input, CAM (if any sample has one), then the label maps.

    Titles of the label columns come from the samples, in order of first appearance; a sample without one of
    them leaves its cell empty. Labels have the VOC colours, unsure and ignored pixels the colour of 255.
    """
    samples = rows.samples
    titles = list(dict.fromkeys(title for sample in samples for title in sample.labels))
    with_cam = any(sample.cam is not None for sample in samples)
    columns = ["input", *(["CAM"] if with_cam else []), *titles]
    heights = [sample.image.shape[0] / sample.image.shape[1] for sample in samples]
    present = _present(samples)
    legend_columns = 2 * len(columns) - 1  # what fits below the pictures, long names included
    legend_rows = -(-len(present) // legend_columns)
    height = _CELL * sum(heights) + 0.3 * len(samples) + 0.5 + 0.28 * legend_rows
    figure = new_figure(_CELL * len(columns), height)
    axes = figure.subplots(len(samples), len(columns), squeeze=False, gridspec_kw={"height_ratios": heights})
    for row, sample in enumerate(samples):
        for column, title in enumerate(columns):
            cell = axes[row, column]
            cell.set_axis_off()
            picture = _cell(sample, title)
            if picture is not None:
                cell.imshow(picture, interpolation="nearest")
            if row == 0:
                cell.set_title(title, fontsize=11)
        axes[row, 0].text(
            0, -0.03, _caption(sample, classes), transform=axes[row, 0].transAxes, fontsize=8, va="top", color="#444444"
        )
    if present:
        colors = voc_palette() / 255
        handles = [
            Patch(facecolor=colors[index], edgecolor="#888888", label=_class_name(index, classes)) for index in present
        ]
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=min(legend_columns, len(handles)),
            frameon=False,
            fontsize=8,
        )
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


def _cell(sample: SampleImage, title: str) -> Array | None:
    if title == "input":
        return sample.image
    if title == "CAM":
        return None if sample.cam is None else heat_overlay(sample.image, sample.cam)
    labels = sample.labels.get(title)
    return None if labels is None else colorize(labels.astype(np.uint8))


def _present(samples: Sequence[SampleImage]) -> list[int]:
    found: set[int] = set()
    for sample in samples:
        for labels in sample.labels.values():
            found.update(np.unique(labels.astype(np.uint8)).tolist())
    return sorted(found)


def _caption(sample: SampleImage, classes: Sequence[str]) -> str:
    shown_labels = [sample.labels["truth"]] if "truth" in sample.labels else list(sample.labels.values())
    ids = sorted({index for labels in shown_labels for index in np.unique(labels).tolist()})
    names = [classes[int(index)] for index in ids if 0 < index < len(classes)]
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{sample.name}  {shown}".rstrip()


def _class_name(index: int, classes: Sequence[str]) -> str:
    return classes[index] if index < len(classes) else "ignored or unsure"
