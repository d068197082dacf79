"""Tables of a run: built once, shown as Markdown, HTML, CSV or on a terminal."""

from __future__ import annotations

import csv
import html
import io
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD, Box
from rich.table import Table as RichTable
from rich.text import Text

from wsss.claims import Claim, Verdict
from wsss.formatting import duration, interval, mean_and_spread, percent
from wsss.metric_name import ENDINGS, MetricName
from wsss.reporting.run_report import RunReport

_OUTCOME_STYLE = {
    "reproduced": "bold green",
    "above": "bold blue",
    "below": "bold red",
    "not comparable": "dim",
    "context": "dim",
}

END_OF_RANGE = " (end)"
_WIDE_NUMBER = 20  # letters; beyond them what stands in parentheses gets its own line on a page
ONE_TRAINING = "what another training would give is not in it (`--seeds 0,1,2` shows it)"


@dataclass(frozen=True)
class Table:
    """Texts in rows and columns. right: titles of the columns that are aligned to the right."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: frozenset[str] = frozenset()
    note: str = ""


def shown(metric: str, value: float | None) -> str:
    """A metric's value as people read it: percent for scores, plain digits for the others."""
    if value is None or not math.isfinite(value):
        return "-"
    return percent(value) if MetricName.parse(metric).is_fraction else f"{value:.4g}"


def source_words(claim: Claim) -> str:
    """Where a claim stands, and whether it is of the released model: "readme, released model"."""
    words = claim.source.replace("_", " ")
    return f"{words}, released model" if claim.released and claim.source != "released_weights" else words


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """Claim, ours, difference, tolerance, verdict: the product of a reproduction. Percent."""
    rows = []
    for verdict in verdicts:
        claim, ours = verdict.claim, verdict.ours
        rows.append(
            (
                claim.metric,
                f"{claim.value:.2f}",
                f"{source_words(claim)}: {claim.citation}",
                f"{claim.dataset} {claim.split}, {claim.protocol}",
                "-" if ours is None else mean_and_spread(ours.mean, ours.spread),
                "-" if verdict.difference is None else f"{verdict.difference:+.2f}",
                f"{claim.tolerance:g}",
                verdict.outcome,
                verdict.reason,
            )
        )
    columns = ("number", "claim", "source", "claim's protocol", "ours", "difference", "tolerance", "verdict", "why")
    right = frozenset({"claim", "ours", "difference", "tolerance"})
    note = "mIoU in percent; ours is mean ± spread over seeds."
    if any(verdict.ours is not None and len(verdict.ours.seeds) == 1 for verdict in verdicts):
        note += " A number of one seed is one training: another one may fall on the other side of the tolerance."
    return Table("Verdict", columns, tuple(rows), right, note)


def other_data(report: RunReport) -> str:
    """One sentence where no published number is on the data set of the run; else empty."""
    published = [each.claim for each in report.verdicts if not each.claim.context]
    elsewhere = sorted({claim.dataset for claim in published})
    if not published or report.dataset in elsewhere:
        return ""
    numbers = f"{len(published)} published number{'s' if len(published) > 1 else ''}"
    verb = "are" if len(published) > 1 else "is"
    return f"not comparable: ours is on {report.dataset}, the {numbers} {verb} on {' and '.join(elsewhere)}"


def common_obstacles(report: RunReport) -> str:
    """One sentence where nothing published is comparable and the same stands in the way of every number; else empty."""
    other = other_data(report)
    published = [each for each in report.verdicts if not each.claim.context]
    if other or not published:
        return other
    common = [each for each in published[0].obstacles if all(each in verdict.obstacles for verdict in published)]
    if not common:
        return ""
    numbers = f"any of the {len(published)} published numbers" if len(published) > 1 else "the published number"
    return f"not comparable with {numbers}: {'; '.join(common)}"


def short_verdicts(verdicts: Sequence[Verdict]) -> Table:
    """The verdict table for a terminal: without the columns that only the written report has room for."""
    full = verdict_table(verdicts)
    columns = ("number", "claim", "ours", "difference", "verdict", "why")
    rows = []
    for verdict, row in zip(verdicts, full.rows, strict=True):
        cells = dict(zip(full.columns, row, strict=True))
        cells["claim"] += f" ({source_words(verdict.claim)})"
        rows.append(tuple(cells[column] for column in columns))
    return Table(full.title, columns, tuple(rows), full.right & set(columns), full.note)


def result_table(report: RunReport) -> Table:
    """One row for each mIoU: seeds, mean and spread, interval over images, and what stands beside it."""
    seeds = report.seeds
    by_seed = report.metrics_by_seed
    several = len(seeds) > 1
    columns = ["number", *(f"seed {seed}" for seed in seeds if several), "mIoU"]
    columns += ["spread"] * several + ["95 % interval", "cross-fitted choice", "best choice", "at", "all background"]
    rows = []
    for metric in miou_metrics(report):
        name = MetricName.parse(metric)
        values = [by_seed[seed].get(metric) for seed in seeds]
        low, high, cross_fitted, oracle, background = (
            _mean([by_seed[seed].get(str(name.beside(ending))) for seed in seeds])
            for ending in ("low", "high", "cross_fitted", "oracle", "all_background")
        )
        rows.append(
            (
                *(metric, *(percent(value) for value in values if several), percent(_mean(values))),
                *([percent(_spread(values))] * several),
                "-" if low is None or high is None else interval(low, high),
                *(percent(cross_fitted), percent(oracle)),
                _oracle_setting(list(by_seed.values()), name) + (END_OF_RANGE if _ends_range(report, metric) else ""),
                percent(background),
            )
        )
    trainings = f"the spread is over the trainings of {len(seeds)} seeds" if several else ONE_TRAINING
    note = (
        f"mIoU in percent at the recipe's own threshold or number of iterations; the interval is over images, "
        f"{trainings}. Best choice: masks of these images made it. Cross-fitted choice: each half of the images at the "
        "other half's best."
    )
    if any(END_OF_RANGE in cell for row in rows for cell in row):
        note += f"{END_OF_RANGE}: the first or last that was scored; a better one may lie beyond."
    return Table("Results", tuple(columns), tuple(rows), frozenset(columns[1:]), note)


def other_metrics_table(report: RunReport) -> Table:
    """Every metric that is not in `result_table`."""
    seeds = report.seeds
    by_seed = report.metrics_by_seed
    shown_already: set[str] = set()
    for metric in miou_metrics(report):
        name = MetricName.parse(metric)
        shown_already.update({metric, *_oracle_names(name).values()})
        shown_already.update(str(name.beside(ending)) for ending in ENDINGS)
    names = sorted({name for metrics in by_seed.values() for name in metrics} - shown_already)
    rows = [(name, *(shown(name, by_seed[seed].get(name)) for seed in seeds)) for name in names]
    columns = ("number", *(f"seed {seed}" for seed in seeds))
    return Table("Other numbers", columns, tuple(rows), frozenset(columns[1:]), "Scores in percent.")


def stage_table(report: RunReport) -> Table:
    """Stage, executed or cached, seconds, numbers in percent."""
    several = len(report.seeds) > 1
    columns = (["seed"] if several else []) + ["stage", "kind", "status", "time", "numbers", "key"]
    rows = []
    for stage in report.stages:
        first = (*([str(stage.seed)] if several else []), stage.name, stage.kind)
        status = "; ".join([stage.status.replace("_", " "), *stage.notes])
        took = duration(stage.seconds) if stage.seconds else "-"
        scores = ", ".join(f"{name} {percent(stage.metrics[name])}" for name in main_mious(stage.metrics))
        rows.append((*first, status, took, scores or "-", stage.key[:12]))
    executed = sum(stage.seconds for stage in report.stages if stage.status == "executed")
    number = sum(stage.status == "executed" for stage in report.stages)
    note = (
        f"{number} of {len(report.stages)} stages executed in {duration(executed)}; a cached stage shows its own time."
    )
    return Table("Stages", tuple(columns), tuple(rows), frozenset({"time", "seed"}), note)


def class_table(report: RunReport) -> Table:
    """IoU in percent: one row for each class, one column for each scored output (mean over seeds)."""
    series = class_iou_series(report)
    names = report.classes if any(series.values()) else ()
    rows = [(name, *(percent(values.get(name)) for values in series.values())) for name in names]
    note = "Percent; - where a class is in neither map."
    return Table("IoU by class", ("class", *series), tuple(rows), frozenset(series), note)


def class_iou_series(report: RunReport) -> dict[str, dict[str, float]]:
    """Number's name -> class -> IoU (fraction, mean over the seeds that have one)."""
    collected: dict[str, dict[str, list[float]]] = {}
    for stage in report.stages:
        rows = stage.tables.get("per_class")
        if not rows:
            continue
        series = collected.setdefault(score_name(stage.name, stage.metrics), {})
        for row in rows:
            if row["iou"] is not None:
                series.setdefault(row["class"], []).append(row["iou"])
    return {
        name: {cls: statistics.fmean(values) for cls, values in series.items()} for name, series in collected.items()
    }


def score_name(stage: str, metrics: Mapping[str, float]) -> str:
    """The main mIoU's name of a summary stage without "miou_": "cam/train"; the stage's name if it has none."""
    names = main_mious(metrics)
    return names[0].replace("/miou_", "/") if names else stage


def main_mious(metrics: Iterable[str]) -> list[str]:
    """Those of the names that are a mIoU itself, not its interval or what stands beside it."""
    return [name for name in metrics if MetricName.parse(name).is_main_miou]


def miou_metrics(report: RunReport) -> list[str]:
    """Names of the main mIoU metrics: the headline first, then in the order of the stages."""
    found = dict.fromkeys(name for stage in report.stages for name in stage.metrics)
    main = main_mious(found)
    first = [name for name in report.headline if name in main]
    return first + [name for name in main if name not in first]


def to_markdown(table: Table) -> str:
    """GitHub Markdown with a heading."""
    marks = ["---:" if column in table.right else "---" for column in table.columns]
    lines = [f"## {markdown_text(table.title)}", ""]
    lines += [_markdown_row(table.columns), _markdown_row(marks)]
    lines += [_markdown_row(row) for row in table.rows]
    return "\n".join(lines + (["", markdown_text(table.note)] if table.note else [])) + "\n"


def markdown_text(text: str) -> str:
    """Text in which Markdown finds no HTML: `<script>` is shown and not run. `a < b` stays as it is."""
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text)


def to_html(table: Table) -> str:
    """A <table>; a cell of the column "verdict" gets its outcome as class.

    A column of numbers is as narrow as its numbers: a metric's name breaks behind "/", a difference and its interval
    have lines of their own, so that five metrics fit beside each other.
    """
    align = {column: ' class="right"' if column in table.right else "" for column in table.columns}
    titles = {column: html.escape(column) for column in table.columns}
    titles |= {column: title.replace("/", "/<br>") for column, title in titles.items() if column in table.right}
    head = "".join(f"<th{align[column]}>{titles[column]}</th>" for column in table.columns)
    body = ""
    for row in table.rows:
        cells = zip(table.columns, row, strict=True)
        texts = ((column, _html_cell(column, cell, column in table.right)) for column, cell in cells)
        body += f"<tr>{''.join(f'<td{align[column]}>{text}</td>' for column, text in texts)}</tr>\n"
    note = f'<p class="note">{html.escape(table.note)}</p>' if table.note else ""
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>{note}'


def to_rich(table: Table, box: Box | None = SIMPLE_HEAD) -> RichTable:
    """For a terminal, with the lines of `box`."""
    result = RichTable(title=table.title, title_justify="left", title_style="bold", box=box, pad_edge=False)
    result.caption, result.caption_justify = table.note or None, "left"
    for column in table.columns:
        result.add_column(column, justify="right" if column in table.right else "left", overflow="fold")
    for row in table.rows:
        result.add_row(
            *(
                Text(cell, style=_OUTCOME_STYLE.get(cell, "") if column == "verdict" else "")
                for column, cell in zip(table.columns, row, strict=True)
            )
        )
    return result


def to_csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Comma-separated values with a header line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def results_csv(report: RunReport) -> str:
    """Every metric of every stage and seed, scores as fractions, with the key that explains it."""
    run = (report.method, report.dataset, report.recipe)
    rows = [
        (*run, stage.seed, stage.name, stage.status, stage.key, name, repr(value))
        for stage in report.stages
        for name, value in stage.metrics.items()
    ]
    columns = ("method", "dataset", "recipe", "seed", "stage", "status", "key", "metric", "value")
    return to_csv(columns, rows)


def _oracle_names(metric: MetricName) -> dict[str, str]:
    """What masks may have chosen -> the metric that holds the choice."""
    return {kind: str(metric.of(f"oracle_{kind}")) for kind in ("threshold", "iterations")}


def _ends_range(report: RunReport, metric: str) -> bool:
    """Whether the best choice of a number is the first or the last of several that were scored, for some seed."""
    ending = f"_{variant}" if (variant := MetricName.parse(metric).variant) else ""
    for stage in report.stages:
        for table in (f"curve{ending}", f"iterations{ending}", "curve"):
            rows = stage.tables.get(table) if metric in stage.metrics else None
            if rows and len(rows) > 1:
                return bool(rows[0].get("oracle") or rows[-1].get("oracle"))
    return False


def _oracle_setting(by_seed: Sequence[Mapping[str, float]], metric: MetricName) -> str:
    for kind, name in _oracle_names(metric).items():
        value = _mean([each.get(name) for each in by_seed])
        if value is not None:
            return f"{value:.3g}" if kind == "threshold" else f"{value:.3g} {kind}"
    return "-"


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return statistics.fmean(present) if present else None


def _spread(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return statistics.stdev(present) if len(present) > 1 else None


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(markdown_text(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _html_cell(column: str, cell: str, right: bool) -> str:
    text = html.escape(cell)
    if right and len(cell) > _WIDE_NUMBER:
        return text.replace(" (", "<br>(", 1).replace(": ", ":<br>", 1)
    if column == "verdict":
        return f'<span class="outcome {text.replace(" ", "-")}">{text}</span>'
    return f"<code>{text}</code>" if column == "key" else text
