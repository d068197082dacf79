"""Writes the report of a run: HTML with plots and image grids, Markdown and CSV beside it."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from wsss.reporting.grid import write_grid
from wsss.reporting.plots import DOTS_PER_INCH, plot_class_iou, plot_history, plot_threshold_curve
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
_PIXELS_PER_INCH = 88


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
            path = folder / f"curve_{parameter}_{_slug(name)}.png"
            drawn.append((name, plot_threshold_curve(f"mIoU against {parameter}: {name}", lines, path, parameter)))
        sections.append(_Section(f"mIoU against {what}", tuple(drawn)))
    series = class_iou_series(report)
    if any(series.values()):
        path = plot_class_iou("IoU by class", report.classes, series, folder / "class_iou.png")
        sections.append(_Section("IoU by class", (("IoU by class", path),)))
    grids = [
        (grid.title, write_grid(grid, report.classes, folder / f"grid_{index}_{_slug(grid.title)}.png"))
        for index, grid in enumerate(report.grids)
        if grid.samples
    ]
    sections.append(_Section("Images", tuple(grids)))
    losses = [
        (name, plot_history(name, histories, folder / f"loss_{_slug(name)}.png"))
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
        parts += [
            f'<figure><img src="{path.relative_to(target).as_posix()}" alt="{html.escape(title)}" '
            f'width="{_width(path)}"></figure>'
            for title, path in section.figures
        ]
    for table in [*_detail_tables(report), *_fact_tables(report)]:
        if table.rows:
            parts.append(
                f"<details{' open' if table.title == 'Protocol' else ''}><summary>{html.escape(table.title)}</summary>"
                f"{to_html(table)}</details>"
            )
    return _PAGE.replace("{title}", html.escape(f"{report.title}: {_subtitle(report)}")).replace(
        "{body}", "\n".join(parts)
    )


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


def _width(path: Path) -> int:
    """Width on the page: figures are drawn denser than a screen so that they stay sharp."""
    with Image.open(path) as image:
        return round(image.width * _PIXELS_PER_INCH / DOTS_PER_INCH)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body { font: 15px/1.5 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; color: #1d2329; background: #fff;
  max-width: 1180px; margin: 0 auto; padding: 2rem 1.5rem 4rem; }
h1 { font-size: 1.65rem; margin: 0; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; }
.subtitle { color: #56606b; margin: .2rem 0; }
.note { color: #56606b; font-size: .87rem; margin: .45rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .38rem .8rem .38rem 0; border-bottom: 1px solid #e6e9ed; }
th { color: #56606b; font-weight: 600; white-space: nowrap; border-bottom: 1px solid #c5cbd3; }
.right { text-align: right; white-space: nowrap; }
code { font-size: .82rem; color: #56606b; }
.outcome { font-weight: 600; white-space: nowrap; padding: .1rem .5rem; border-radius: .7rem; background: #eef0f3;
  color: #56606b; }
.reproduced { background: #dff3e4; color: #17693a; }
.above { background: #e0edfb; color: #14528f; }
.below { background: #fbe4e2; color: #a02b22; }
figure { margin: .5rem 1rem 1rem 0; display: inline-block; vertical-align: top; max-width: 100%; }
img { max-width: 100%; height: auto; }
details { border-top: 1px solid #e6e9ed; padding: .6rem 0; }
details:first-of-type { margin-top: 2.4rem; }
summary { cursor: pointer; font-weight: 600; }
</style>
</head>
<body>
{body}
</body>
</html>
"""
