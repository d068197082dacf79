"""Writes the report of a run: HTML with plots and image grids, Markdown and CSV beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsss.reporting.grid import write_grid
from wsss.reporting.page import Page, Section, new_report_folder, slug, write_page
from wsss.reporting.picture_cache import PictureCache
from wsss.reporting.plots import plot_class_iou, plot_history, plot_threshold_curve
from wsss.reporting.run_report import RunReport
from wsss.reporting.tables import (
    Table,
    class_iou_series,
    class_table,
    common_obstacles,
    other_data,
    other_metrics_table,
    result_table,
    results_csv,
    score_name,
    stage_table,
    verdict_table,
)


@dataclass(frozen=True)
class ReportFiles:
    """What `write_report` wrote."""

    folder: Path
    html: Path
    markdown: Path
    csv: Path
    figures: tuple[Path, ...]


def write_report(folder: Path, report: RunReport, home: Path | None = None) -> ReportFiles:
    """Write `<folder>/report/`: index.html, report.md, results.csv and figures/*.png.

    The pages refer to the figures by relative paths, so that the folder can be moved and served as it is.
    An earlier report in the folder is replaced. home: keeps drawn pictures for the next report; None draws all of them.
    """
    target, figures_folder = new_report_folder(folder)
    pictures = PictureCache(home / "cache" / "pictures" if home else None)
    images, *sections = _draw(report, figures_folder, pictures)
    verdict, elsewhere, obstacles = verdict_table(report.verdicts), other_data(report), common_obstacles(report)
    seeds = f"seed{'s' if len(report.seeds) > 1 else ''} {', '.join(map(str, report.seeds))}"
    page = Page(
        title=report.title,
        subtitle=f"{report.dataset}, recipe {report.recipe}, {seeds}",
        lead=f"{obstacles[0].upper()}{obstacles[1:]}." if obstacles else "",
        notes=[report.citation],
        # First what was made, then how it compares with what is published, then how it came about.
        blocks=[result_table(report), images, *([] if elsewhere else [verdict]), *sections, stage_table(report)],
        details=[
            class_table(report),
            other_metrics_table(report),
            *([verdict] if elsewhere else []),
            *_fact_tables(report),
        ],
    )
    html, markdown = write_page(page, target)
    csv = target / "results.csv"
    csv.write_text(results_csv(report), encoding="utf-8")
    figures = tuple(path for section in (images, *sections) for _, path in section.figures)
    return ReportFiles(target, html, markdown, csv, figures)


def _draw(report: RunReport, folder: Path, pictures: PictureCache) -> list[Section]:
    grids = [
        (grid.title, pictures.draw(folder / f"grid_{index}_{slug(grid.title)}.png", write_grid, grid, report.classes))
        for index, grid in enumerate(report.grids)
        if grid.samples
    ]
    sections = [Section("Images", tuple(grids))]
    for parameter, what in (("threshold", "the background threshold"), ("iterations", "the iterations of the CRF")):
        drawn = []
        for name, lines in _curves(report, parameter).items():
            path = folder / f"curve_{parameter}_{slug(name)}.png"
            title = f"mIoU against {parameter}: {name}"
            drawn.append((name, pictures.draw(path, plot_threshold_curve, title, lines, parameter=parameter)))
        sections.append(Section(f"mIoU against {what}", tuple(drawn)))
    series = class_iou_series(report)
    if any(series.values()):
        path = pictures.draw(folder / "class_iou.png", plot_class_iou, "IoU by class", report.classes, series)
        sections.append(Section("IoU by class, as bars", (("IoU by class", path),)))
    losses = [
        (name, pictures.draw(folder / f"loss_{slug(name)}.png", plot_history, name, histories))
        for name, histories in _histories(report).items()
    ]
    sections.append(Section("Losses of the trained stages", tuple(losses)))
    return sections


def _curves(report: RunReport, parameter: str) -> dict[str, dict[str, Sequence[Mapping[str, Any]]]]:
    """Curve tables of the stages: "curve" holds thresholds, "iterations_<variant>" iterations."""
    found: dict[str, dict[str, Sequence[Mapping[str, Any]]]] = {}
    for stage in report.stages:
        for table, rows in stage.tables.items():
            if rows and (table == "curve" if parameter == "threshold" else table.startswith(f"{parameter}_")):
                variant = table.removeprefix(f"{parameter}_") if parameter != "threshold" else ""
                name = " ".join(part for part in (score_name(stage.name, stage.metrics), variant) if part)
                found.setdefault(name, {})[f"seed {stage.seed}"] = rows
    return found


def _histories(report: RunReport) -> dict[str, dict[str, Mapping[str, Sequence[float]]]]:
    found: dict[str, dict[str, Mapping[str, Sequence[float]]]] = {}
    for stage in report.stages:
        if any(len(values) for values in stage.history.values()):
            found.setdefault(stage.name, {})[f"seed {stage.seed}"] = stage.history
    return found


def _fact_tables(report: RunReport) -> list[Table]:
    """Protocol, provenance and settings, as two columns each."""
    keys = {
        (stage.name if len(report.seeds) == 1 else f"{stage.name}, seed {stage.seed}"): stage.key
        for stage in report.stages
    }
    marks = set(report.changed_settings)
    settings = [
        (name, str(value) + ("  (differs from the recipe)" if name in marks else ""))
        for name, value in report.settings.items()
    ]
    return [
        _facts("Protocol", "fact", report.protocol.items()),
        _facts("Where the numbers come from", "fact", report.provenance.items()),
        _facts("Stage keys", "stage", keys.items(), value="key"),
        _facts("Settings", "setting", settings),
    ]


def _facts(title: str, name: str, rows: Any, value: str = "value") -> Table:
    return Table(title, (name, value), tuple((str(key), str(text)) for key, text in rows))
