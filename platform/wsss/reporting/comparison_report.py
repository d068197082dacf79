"""Writes the page of a comparison: numbers, pictures, classes, ranks over seeds, cost against quality."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsss.evaluation.confusion import iou_from_counts, miou_from_counts
from wsss.formatting import duration, percent
from wsss.metric_name import MetricName
from wsss.reporting.comparison import Contender, Scored, difference_table, number_table
from wsss.reporting.grid import write_grid
from wsss.reporting.number_plot import number_lines, plot_numbers
from wsss.reporting.page import Page, Section, new_report_folder, slug, write_page
from wsss.reporting.picture_cache import PictureCache
from wsss.reporting.plots import line_colors, new_plot, save
from wsss.reporting.run_report import SampleRows
from wsss.reporting.tables import Table

SHOWN_IMAGES = 6
NUMBERS_PICTURE = Path("figures", "numbers.png")  # beside the page
_BEST = " ●"
_LEGEND_WIDTH = 100  # letters


@dataclass(frozen=True, kw_only=True)
class ComparisonReport:
    """What `write_comparison` shows.

    Attributes:
        contenders: rows of all tables; references and baselines behind the methods.
        metrics: names of the numbers that stand side by side.
        classes: data set -> names of its classes, background first.
        grids: one for each number whose pictures are kept, a column for each method.
    """

    title: str
    contenders: Sequence[Contender]
    metrics: Sequence[str]
    classes: Mapping[str, Sequence[str]]
    grids: Sequence[tuple[SampleRows, Sequence[str]]]


def write_comparison(folder: Path, report: ComparisonReport, home: Path | None = None) -> Path:
    """Write `<folder>/report/`: index.html, report.md and figures; returns the page. home: as of `write_report`."""
    target, figures = new_report_folder(folder)
    pictures = PictureCache(home / "cache" / "pictures" if home else None)
    grids = [
        (rows.title, pictures.draw(figures / f"grid_{slug(rows.title)}.png", write_grid, rows, classes))
        for rows, classes in report.grids
    ]
    numbers = []
    if report.metrics:
        lines = number_lines(report.contenders, report.metrics)
        titles = [each.title for each in report.contenders]
        numbers = [("mIoU of every row", pictures.draw(target / NUMBERS_PICTURE, plot_numbers, lines, titles))]
    costs = []
    for metric in report.metrics:
        points = cost_points(report.contenders, metric)
        if len(points) > 1:
            path = figures / f"cost_{slug(metric)}.png"
            costs.append((metric, pictures.draw(path, plot_cost, metric, points)))
    page = Page(
        title=report.title,
        subtitle=", ".join(dict.fromkeys(contender.title for contender in report.contenders if contender.runs)),
        lead="",
        notes=["Pictures on which the rows disagree most come first, then those that are worst for all."],
        blocks=[
            number_table(report.contenders, report.metrics),
            Section("Numbers", numbers),
            Section("Images", grids),
            difference_table(report.contenders, report.metrics),
            rank_table(report.contenders, report.metrics),
            Section("Cost against quality", costs),
            *(_class_table(report, metric) for metric in report.metrics),
        ],
        details=[Table("Runs", ("recipe", "runs"), tuple((c.title, ", ".join(c.runs)) for c in report.contenders))],
    )
    return write_page(page, target)[0]


def telling_images(scored: Sequence[Scored], number: int = SHOWN_IMAGES) -> list[str]:
    """Names of images to look at: half those on which the contenders disagree most, then the worst of all others.

    Every score must be of the same images. An image's score is its mIoU, of the first seed.
    """
    first = scored[0]
    # An image of which no pixel is scored is neither disputed nor bad.
    scores = np.nan_to_num(np.stack([image_mious(each) for each in scored]), nan=1.0)
    means, disputed = scores.mean(axis=0), scores.std(axis=0)
    by_dispute = [int(place) for place in np.argsort(-disputed, kind="stable") if disputed[place] > 0]
    chosen = by_dispute[: (number + 1) // 2]
    chosen += [int(place) for place in np.argsort(means, kind="stable") if place not in chosen]
    return [first.images[place] for place in chosen[:number]]


def image_mious(scored: Scored) -> np.ndarray:
    """mIoU of each image, float64 (N,), over the classes that are in its truth or its prediction."""
    return np.asarray(miou_from_counts(*np.moveaxis(scored.counts[0], 1, 0)), dtype=np.float64)


def rank_table(contenders: Sequence[Contender], metrics: Sequence[str]) -> Table:
    """Mean rank over the seeds that all methods on a data set have; without rows where that is fewer than two."""
    rows = []
    for metric in metrics:
        for dataset in dict.fromkeys(each.dataset for each in contenders):
            ranked = [c for c in contenders if c.dataset == dataset and len(c.seeds) > 1 and metric in c.numbers]
            seeds = sorted(set.intersection(*(set(c.seeds) for c in ranked))) if ranked else []
            if len(ranked) < 2 or len(seeds) < 2:
                continue
            values = np.array(
                [[c.numbers[metric].values[c.seeds.index(seed)] for seed in seeds] for c in ranked], dtype=np.float64
            )
            # Equals share the mean of their places.
            places = (
                1 + (values[None] > values[:, None]).sum(axis=1) + ((values[None] == values[:, None]).sum(1) - 1) / 2
            )
            for contender, own in zip(ranked, places, strict=True):
                shown = ", ".join(f"{place:g}" for place in own)
                rows.append((metric, contender.title, f"{own.mean():.2f}", shown))
    note = "1 is best. Seeds that all have; a method that is first for each seed is better than one that is so once."
    return Table("Ranks over seeds", ("number", "recipe", "mean rank", "by seed"), tuple(rows), frozenset(), note)


def cost_points(contenders: Sequence[Contender], metric: str) -> list[tuple[str, float, float]]:
    """(title, seconds, mIoU fraction) of the contenders that took time and have the number."""
    return [
        (each.title, each.cost.seconds, each.numbers[metric].mean)
        for each in contenders
        if each.cost is not None and each.cost.seconds and metric in each.numbers
    ]


def plot_cost(metric: str, points: Sequence[tuple[str, float, float]], path: Path) -> Path:
    """mIoU in percent against the time of all stages in minutes, one point for each contender."""
    figure, axes = new_plot(7.2, 4.2, metric, "minutes of stages", "mIoU (percent)")
    for color, (title, seconds, value) in zip(line_colors(len(points)), points, strict=True):
        label = textwrap.fill(f"{title}: {percent(value)} in {duration(seconds)}", _LEGEND_WIDTH)
        axes.plot([seconds / 60], [100 * value], "o", markersize=9, color=color, label=label)
    axes.margins(0.15)
    figure.legend(loc="outside lower center", ncols=1, frameon=False, fontsize=9)
    return save(figure, path)


def _class_table(report: ComparisonReport, metric: str) -> Table:
    kept = [each for each in report.contenders if metric in each.numbers and each.numbers[metric].counts]
    datasets = list(dict.fromkeys(each.dataset for each in kept))
    columns = ("class", *(each.title for each in kept))
    rows: list[tuple[str, ...]] = []
    if len(kept) > 1 and len(datasets) == 1:
        values = np.stack([_class_ious(each.numbers[metric]) for each in kept], axis=1)
        rows = [(name, *_best_marked(own)) for name, own in zip(report.classes[datasets[0]], values, strict=False)]
    note = f"IoU in percent, mean over seeds;{_BEST}: the best of the row."
    name = MetricName.parse(metric)
    return Table(f"Classes: {name}", columns, tuple(rows), frozenset(columns[1:]), note)


def _class_ious(scored: Scored) -> np.ndarray:
    """IoU of each class (C,), mean over the seeds that have the class; NaN where none has."""
    values = np.stack([iou_from_counts(*counts.sum(axis=0)) for counts in scored.counts])
    known = ~np.isnan(values)
    total, number = np.where(known, values, 0.0).sum(axis=0), known.sum(axis=0)
    return np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)


def _best_marked(values: np.ndarray) -> list[str]:
    best = np.nan_to_num(values).max()
    return [percent(value) + (_BEST if value == best > 0 else "") if value == value else "-" for value in values]


# Fills a grid: (metric, its scored contenders, names of images) -> the grid and the names of its classes.
GatherGrid = Callable[[str, Sequence[Contender], Sequence[str]], tuple[SampleRows, Sequence[str]] | None]


def comparison_grids(
    contenders: Sequence[Contender], metrics: Sequence[str], gather: GatherGrid
) -> list[tuple[SampleRows, Sequence[str]]]:
    """A grid for each number that at least two contenders have on the same images and masks."""
    grids = []
    for metric in metrics:
        kept = [each for each in contenders if metric in each.numbers and each.numbers[metric].counts and each.runs]
        if len(kept) < 2:
            continue
        first = kept[0].numbers[metric]
        alike = [each for each in kept if each.dataset == kept[0].dataset and _alike(each.numbers[metric], first)]
        if len(alike) > 1:
            found = gather(metric, alike, telling_images([each.numbers[metric] for each in alike]))
            grids += [found] if found is not None else []
    return grids


def _alike(one: Scored, other: Scored) -> bool:
    return one.images == other.images and one.same_truth(other)
