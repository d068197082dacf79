"""Plots of a run as PNG files. Drawn without a display, with the figure interface alone (no global state)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from wsss.formatting import percent

# Okabe and Ito's palette: told apart by readers with any kind of colour vision.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
DOTS_PER_INCH = 130


def new_figure(width: float, height: float) -> Figure:
    """A figure in inches that can be saved without a display."""
    return Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained")


def new_plot(
    width: float, height: float, title: str, x_label: str, y_label: str = "", grid: str = "both"
) -> tuple[Figure, Axes]:
    """A figure in inches with one plot in it, and the plot."""
    figure = new_figure(width, height)
    axes = figure.add_subplot()
    clean_axes(axes, grid)
    axes.set_title(title)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return figure, axes


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Figure.savefig lays out and draws twice: the first time to find the size of a tight box, which is not asked for.
    FigureCanvasAgg(figure).print_png(path)
    return path


def plot_history(title: str, histories: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> Path:
    """Loss curves of a trained stage, one panel for each series.

    histories: label of a line ("seed 0") -> series name -> one value for each step. Series whose name begins
    with "learning_rate/" share one panel. NaN values are gaps. A panel shows the raw values pale, and their
    running mean over a fiftieth of the steps.
    """
    names = list(dict.fromkeys(name for series in histories.values() for name in series))
    rates = [name for name in names if name.startswith("learning_rate/")]
    panels = [[name] for name in names if name not in rates] + ([rates] if rates else [])
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(4.2 * columns if columns > 1 else 6.0, 2.9 * rows + 0.3)
    figure.suptitle(title)
    for index, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, index + 1)
        clean_axes(axes)
        axes.set_title("learning rate" if panel == rates else panel[0], fontsize=10)
        axes.set_xlabel("step")
        _history_panel(axes, panel, histories, smooth=panel != rates)
    return save(figure, path)


def plot_threshold_curve(
    title: str, curves: Mapping[str, Sequence[Mapping[str, Any]]], path: Path, parameter: str = "threshold"
) -> Path:
    """mIoU (percent) against the background threshold, the default and the best marked.

    curves: label of a line -> rows of a "curve" table (threshold, miou fraction or None, default, oracle).
    parameter: column of the rows that stands in the place of the threshold, e.g. "iterations".
    """
    shown_as = {"threshold": "background threshold"}.get(parameter, parameter)
    figure, axes = new_plot(6.4, 4.0, title, shown_as, "mIoU (percent)")
    for color, (label, rows) in zip(line_colors(len(curves)), curves.items(), strict=True):
        thresholds = [row[parameter] for row in rows]
        scores = [float("nan") if row["miou"] is None else 100 * row["miou"] for row in rows]
        (line,) = axes.plot(thresholds, scores, color=color, linewidth=1.8)
        marked: list[str] = []
        for row, score in zip(rows, scores, strict=True):
            if row["default"]:
                axes.plot(row[parameter], score, "o", color=color, markersize=7)
                marked.append(f"{score:.2f} at {row[parameter]:.3g}")
            if row["oracle"]:
                axes.plot(row[parameter], score, "*", color=color, markersize=14, markeredgecolor="white")
                marked.append(f"best {score:.2f} at {row[parameter]:.3g}")
        if len(curves) > 1:
            line.set_label(": ".join([label, ", ".join(marked)]))
    several = len(curves) > 1
    for marker, size, what in (("o", 7, f"{parameter} of the recipe"), ("*", 12, f"best {parameter}, chosen by masks")):
        text = what if several else f"{what}: {_score_at(curves, 'default' if marker == 'o' else 'oracle', parameter)}"
        axes.plot([], [], marker, color="black" if several else COLORS[0], markersize=size, label=text)
    axes.margins(y=0.12)
    axes.legend(fontsize=9, frameon=False, loc="best")
    return save(figure, path)


def plot_class_iou(title: str, classes: Sequence[str], series: Mapping[str, Mapping[str, float]], path: Path) -> Path:
    """IoU by class (percent) as horizontal bars, one colour for each scored output.

    series: label -> class -> IoU fraction. Classes that no output has are left out.
    """
    names = [name for name in classes if any(name in values for values in series.values())]
    height = 1.4 + max(2.0, len(names) * (0.14 + 0.09 * len(series)))
    figure, axes = new_plot(7.2, height, title, "IoU (percent)", grid="x")
    grouped_bars(axes, names, series, thickness=0.92)
    axes.set_xlim(0, 100)
    if len(series) > 1:
        figure.legend(loc="outside lower center", ncols=min(3, len(series)), frameon=False, fontsize=9)
    return save(figure, path)


def grouped_bars(
    axes: Axes, names: Sequence[str], series: Mapping[str, Mapping[str, float]], thickness: float, ends: bool = False
) -> None:
    """Horizontal bars of fractions in percent: a group for each name, from the top, and in it a bar of each series.

    thickness: of a bar, as a share of its place. ends: the percentage stands at the end of its bar.
    """
    place = 0.8 / max(1, len(series))
    for index, (color, (label, values)) in enumerate(zip(line_colors(len(series)), series.items(), strict=True)):
        positions = np.arange(len(names)) + (index + 0.5) * place - 0.4
        widths = [100 * values.get(name, 0.0) for name in names]
        axes.barh(positions, widths, height=place * thickness, color=color, label=label)
        for position, width in zip(positions, widths, strict=True):
            if ends:
                axes.text(width, position, f" {width:.0f}", va="center", fontsize=8)
    name_bars(axes, names)


def name_bars(axes: Axes, names: Sequence[str], fontsize: float | None = None) -> None:
    """Write the name beside each horizontal bar, the first one at the top."""
    axes.set_yticks(range(len(names)), names, fontsize=fontsize)
    axes.set_ylim(len(names) - 0.4, -0.6)


def _score_at(curves: Mapping[str, Sequence[Mapping[str, Any]]], mark: str, parameter: str) -> str:
    """Score and parameter of the marked row of a single curve."""
    for rows in curves.values():
        for row in rows:
            if row[mark] and row["miou"] is not None:
                return f"{percent(row['miou'])} at {row[parameter]:.3g}"
    return "none"


def running_mean(values: Sequence[float], window: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Mean over the last `window` values at each position, NaN left out; float64 of the same length."""
    array = np.asarray(values, dtype=np.float64)
    valid = ~np.isnan(array)
    sums = np.concatenate([[0.0], np.where(valid, array, 0.0).cumsum()])
    counts = np.concatenate([[0], valid.cumsum()])
    end = np.arange(1, array.size + 1)
    start = np.maximum(end - window, 0)
    number = counts[end] - counts[start]
    total = sums[end] - sums[start]
    return np.divide(total, number, out=np.full(array.size, np.nan), where=(number > 0) & valid)


def _history_panel(
    axes: Axes, names: Sequence[str], histories: Mapping[str, Mapping[str, Sequence[float]]], smooth: bool
) -> None:
    # Every seed has the same learning rates: those of the first are enough.
    shown = histories if smooth else dict(list(histories.items())[:1])
    lines = [(label, name, series[name]) for label, series in shown.items() for name in names if name in series]
    for color, (label, name, values) in zip(line_colors(len(lines)), lines, strict=True):
        parts = [label] if len(shown) > 1 else []
        parts += [name.removeprefix("learning_rate/")] if len(names) > 1 else []
        steps = np.arange(1, len(values) + 1)
        window = max(1, len(values) // 50)
        if smooth and window > 1:
            axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.7)
            axes.plot(steps, running_mean(values, window), color=color, linewidth=1.6, label=", ".join(parts) or None)
        else:
            marker = "." if len(values) < 3 else None
            axes.plot(steps, values, color=color, linewidth=1.4, marker=marker, label=", ".join(parts) or None)
    if len(lines) > 1:
        axes.legend(fontsize=7, frameon=False)


def clean_axes(axes: Axes, grid: str = "both") -> None:
    """The look of all plots. grid: "x", "y" or "both"."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, axis=grid, color="#e3e6ea", linewidth=0.8)  # pyright: ignore[reportArgumentType]
    axes.set_axisbelow(True)


def line_colors(number: int) -> list[str]:
    """`number` colors of the palette, repeated when it ends."""
    return [COLORS[index % len(COLORS)] for index in range(number)]
