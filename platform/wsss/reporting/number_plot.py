"""The numbers of a comparison as one picture: a panel for each number, a line for each row."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes

from wsss.evaluation.bootstrap import interval_of_mean
from wsss.formatting import percent
from wsss.reporting.comparison import Contender, Scored
from wsss.reporting.plots import COLORS, clean_axes, name_bars, new_figure, save

_MOST_PANELS = 4  # beside each other
_TITLE_WIDTH = 34  # letters
_METHOD, _REFERENCE = COLORS[0], "#6f6f6f"


@dataclass(frozen=True)
class NumberLine:
    """A number of one row, all in percent.

    Attributes:
        row: its place, 0 at the top.
        values: of each seed.
        low, high: of the interval over images of their mean; that mean, where there is none.
    """

    row: int
    is_reference: bool
    values: tuple[float, ...]
    low: float
    high: float

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.fmean(self.values)


def number_lines(contenders: Sequence[Contender], metrics: Sequence[str]) -> dict[str, list[NumberLine]]:
    """Lines of every number, for the rows that have it."""
    return {
        metric: [
            NumberLine(
                row,
                each.is_reference,
                tuple(100 * value for value in each.numbers[metric].values),
                *_bounds(each.numbers[metric]),
            )
            for row, each in enumerate(contenders)
            if metric in each.numbers
        ]
        for metric in metrics
    }


def plot_numbers(panels: Mapping[str, Sequence[NumberLine]], titles: Sequence[str], path: Path) -> Path:
    """mIoU of every row; references hollow and gray. titles: of all rows, from the top.

    The mean over seeds is a point, each seed a tick where there are several. All panels share one scale, so that the
    step from one number to the next is seen as well.
    """
    rows = math.ceil(len(panels) / _MOST_PANELS)
    columns = math.ceil(len(panels) / rows)
    names = [textwrap.fill(title, _TITLE_WIDTH) for title in titles]
    height = sum(1 + 0.5 * name.count("\n") for name in names)
    figure = new_figure(3.0 + 2.4 * columns, rows * (0.7 + 0.3 * height) + 0.35)
    first = None
    for index, (metric, lines) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, index + 1, sharex=first, sharey=first)
        first = first or axes
        clean_axes(axes, "x")
        axes.set_title(metric, fontsize=9)
        for line in lines:
            _draw(axes, line)
        name_bars(axes, names, fontsize=8)
        axes.tick_params(axis="y", length=0, labelleft=index % columns == 0)
    if first is not None:
        # A percentile interval of few pictures can leave its own number out. The rest is room for the figures.
        most = max(max(line.high, line.mean) for lines in panels.values() for line in lines)
        first.set_xlim(0, 1.25 * most or 1.0)
    figure.supxlabel("mIoU in percent, with its 95 % interval over images", fontsize=9)
    return save(figure, path)


def _draw(axes: Axes, line: NumberLine) -> None:
    color = _REFERENCE if line.is_reference else _METHOD
    axes.hlines(line.row, line.low, line.high, color=color, linewidth=1.6)
    if len(line.values) > 1:
        axes.plot(line.values, [line.row] * len(line.values), "|", color=color, markersize=9)
    face = "white" if line.is_reference else color
    axes.plot(line.mean, line.row, "o", color=color, markerfacecolor=face, markersize=6)
    axes.annotate(
        percent(line.mean / 100),
        (max(line.high, line.mean), line.row),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        color=color,
    )


def _bounds(number: Scored) -> tuple[float, float]:
    if not number.counts:
        return 100 * number.mean, 100 * number.mean
    found = interval_of_mean(number.counts, mean_over=number.mean_over)
    return 100 * found.low, 100 * found.high
