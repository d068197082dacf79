"""Writes the report of a run: HTML with plots and image grids, Markdown and CSV beside it."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsss.reporting.grid import write_grid
from wsss.reporting.page import figure, page, slug
from wsss.reporting.plots import plot_class_iou, plot_history, plot_threshold_curve
from wsss.reporting.run_report import RunReport
from wsss.reporting.tables import (
    Table,
    class_iou_series,
    class_table,
    other_metrics_table,
    result_table,
    results_csv,
    score_name,
    stage_table,
    to_html,
    to_markdown,
    verdict_table,
)

REPORT_FOLDER = "report"


@dataclass(frozen=True)
class ReportFiles:
    """What `write_report` wrote."""

    folder: Path
    html: Path
    markdown: Path
    csv: Path
    figures: tuple[Path, ...]


@dataclass(frozen=True)
class _Section:
    title: str
    figures: tuple[tuple[str, Path], ...]


def write_report(folder: Path, report: RunReport) -> ReportFiles:
    """Write `<folder>/report/`: index.html, report.md, results.csv and figures/*.png.

    The pages refer to the figures by relative paths, so that the folder can be moved and served as it is.
    An earlier report in the folder is replaced.
    """
    target = folder / REPORT_FOLDER
    figures_folder = target / "figures"
    figures_folder.mkdir(parents=True, exist_ok=True)
    for old in figures_folder.glob("*.png"):
        old.unlink()
    sections = _draw(report, figures_folder)
    files = ReportFiles(
        folder=target,
        html=target / "index.html",
        markdown=target / "report.md",
        csv=target / "results.csv",
        figures=tuple(path for section in sections for _, path in section.figures),
    )
    files.html.write_text(_html_page(report, sections, target), encoding="utf-8")
    files.markdown.write_text(_markdown_page(report, sections, target), encoding="utf-8")
    files.csv.write_text(results_csv(report), encoding="utf-8")
    return files


def _draw(report: RunReport, folder: Path) -> tuple[_Section, ...]:
    sections = []
    for parameter, what in (("threshold", "the background threshold"), ("iterations", "the iterations of the CRF")):
        drawn = []
        for name, lines in _curves(report, parameter).items():
            path = folder / f"curve_{parameter}_{slug(name)}.png"
            drawn.append((name, plot_threshold_curve(f"mIoU against {parameter}: {name}", lines, path, parameter)))
        sections.append(_Section(f"mIoU against {what}", tuple(drawn)))
    series = class_iou_series(report)
    if any(series.values()):
        path = plot_class_iou("IoU by class", report.classes, series, folder / "class_iou.png")
        sections.append(_Section("IoU by class", (("IoU by class", path),)))
    grids = [
        (grid.title, write_grid(grid, report.classes, folder / f"grid_{index}_{slug(grid.title)}.png"))
        for index, grid in enumerate(report.grids)
        if grid.samples
    ]
    sections.append(_Section("Images", tuple(grids)))
    losses = [
        (name, plot_history(name, histories, folder / f"loss_{slug(name)}.png"))
        for name, histories in _histories(report).items()
    ]
    sections.append(_Section("Losses of the trained stages", tuple(losses)))
    return tuple(section for section in sections if section.figures)


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


def _tables(report: RunReport) -> list[Table]:
    """The verdict first, then our numbers and how they came about."""
    tables = [verdict_table(report.verdicts)] if report.verdicts else []
    tables += [result_table(report), stage_table(report)]
    return [table for table in tables if table.rows]


def _detail_tables(report: RunReport) -> list[Table]:
    tables = [class_table(report)] if any(class_iou_series(report).values()) else []
    return [table for table in [*tables, other_metrics_table(report)] if table.rows]


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


def _subtitle(report: RunReport) -> str:
    seeds = ", ".join(str(seed) for seed in report.seeds)
    return f"{report.dataset}, recipe {report.recipe}, seed{'s' if len(report.seeds) > 1 else ''} {seeds}"


def _html_page(report: RunReport, sections: Sequence[_Section], target: Path) -> str:
    parts = [f"<h1>{html.escape(report.title)}</h1>"]
    parts.append(f'<p class="subtitle">{html.escape(_subtitle(report))}</p>')
    if report.citation:
        parts.append(f'<p class="note">{html.escape(report.citation)}</p>')
    for table in _tables(report):
        parts.append(f"<h2>{html.escape(table.title)}</h2>\n{to_html(table)}")
    for section in sections:
        parts.append(f"<h2>{html.escape(section.title)}</h2>")
        parts += [figure(title, path, target) for title, path in section.figures]
    for table in [*_detail_tables(report), *_fact_tables(report)]:
        if table.rows:
            parts.append(
                f"<details{' open' if table.title == 'Protocol' else ''}><summary>{html.escape(table.title)}</summary>"
                f"{to_html(table)}</details>"
            )
    return page(f"{report.title}: {_subtitle(report)}", parts)


def _markdown_page(report: RunReport, sections: Sequence[_Section], target: Path) -> str:
    parts = [f"# {report.title}\n", f"{_subtitle(report)}\n"]
    if report.citation:
        parts.append(f"{report.citation}\n")
    parts += [to_markdown(table) for table in _tables(report)]
    for section in sections:
        parts.append(f"## {section.title}\n")
        parts += [f"![{title}]({path.relative_to(target).as_posix()})\n" for title, path in section.figures]
    parts += [to_markdown(table) for table in [*_detail_tables(report), *_fact_tables(report)] if table.rows]
    return "\n".join(parts)
