"""Writes the report of a sweep: HTML with plots, Markdown and CSV beside it."""

from __future__ import annotations

import html
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from wsss.formatting import duration, percent, points
from wsss.reporting.page import figure, page
from wsss.reporting.plots import plot_threshold_curve
from wsss.reporting.report import REPORT_FOLDER
from wsss.reporting.sweep_plots import (
    plot_importance,
    plot_reuse,
    plot_search_history,
    plot_slices,
    plot_value_against_cost,
)
from wsss.reporting.sweep_tables import (
    best_table,
    confirmation_table,
    cost_table,
    failed_table,
    importance_table,
    selected_table,
    selection_table,
    top_table,
    trials_csv,
)
from wsss.reporting.sweep_values import best_trial, finished, recipe_trial, shown_value
from wsss.reporting.tables import Table, to_html, to_markdown
from wsss.search.records import BEST_FILE, SweepRecord, TrialRecord, load_trials

Figures = list[tuple[str, Path]]


def write_sweep_report(
    sweep: SweepRecord,
    folder: Path,
    *,
    importances: Mapping[str, Mapping[str, float]] | None = None,
) -> Path:
    """Write `<folder>/report/`: index.html, report.md, trials.csv and figures/*.png; an earlier report is replaced.

    Args:
        sweep: finished or not; without a finished trial the report has no plots.
        folder: of the sweep, with the trials' records in it.
        importances: way of computing it ("fANOVA") -> key -> share 0 to 1.

    Returns:
        The path of index.html.
    """
    trials = load_trials(folder)
    target = folder / REPORT_FOLDER
    shutil.rmtree(target / "figures", ignore_errors=True)
    figures_folder = target / "figures"
    figures_folder.mkdir(parents=True)
    figures = _draw(sweep, trials, importances or {}, figures_folder)
    tables = _tables(sweep, trials, importances or {})
    details = [top_table(sweep, trials), *_fact_tables(sweep)]
    index = target / "index.html"
    index.write_text(_html_page(sweep, trials, tables, figures, details, target), encoding="utf-8")
    markdown = _markdown_page(sweep, trials, tables, figures, details, target)
    (target / "report.md").write_text(markdown, encoding="utf-8")
    (target / "trials.csv").write_text(trials_csv(sweep, trials), encoding="utf-8")
    return index


def _draw(
    sweep: SweepRecord,
    trials: Sequence[TrialRecord],
    importances: Mapping[str, Mapping[str, float]],
    folder: Path,
) -> dict[str, Figures]:
    """Section -> figures."""
    if not finished(trials, sweep.metric):
        return {}
    drawn: dict[str, Figures] = {
        "Search": [("Value by trial", plot_search_history(sweep, trials, folder / "history.png"))]
    }
    if any(importances.values()):
        drawn["Importance"] = [("Importance", plot_importance(importances, folder / "importance.png"))]
    if any(key.level != "unused" for key in sweep.space):
        drawn["Value against each key"] = [("Slices", plot_slices(sweep, trials, folder / "slices.png"))]
    curves = _curves(sweep, trials)
    if curves:
        path = plot_threshold_curve(f"{sweep.metric} against threshold, all images", curves, folder / "curves.png")
        drawn["mIoU against the background threshold"] = [("Curves", path)]
    drawn["Cost"] = [
        ("Value against cost", plot_value_against_cost(sweep, trials, folder / "cost.png")),
        ("Reuse", plot_reuse(sweep, trials, folder / "reuse.png")),
    ]
    return drawn


def _curves(sweep: SweepRecord, trials: Sequence[TrialRecord]) -> dict[str, list[dict[str, object]]]:
    """Rows as `plot_threshold_curve` draws them, of the recipe and of the best trial."""
    recipe, best = recipe_trial(finished(trials, sweep.metric)), best_trial(sweep, trials)
    default = next((key.default for key in sweep.space if key.level == "curve"), None)
    found: dict[str, list[dict[str, object]]] = {}
    for name, trial in (("recipe", recipe), ("best trial", best)):
        if trial is None or not trial.curve or (trial is recipe and found):
            continue
        top = max(point.value for point in trial.curve)
        first = next(point.threshold for point in trial.curve if point.value == top)
        own = default if default is not None and trial is recipe else trial.threshold
        found[name] = [
            {
                "threshold": point.threshold,
                "miou": point.value,
                "default": own is not None and abs(point.threshold - own) < 1e-9,
                "oracle": point.threshold == first,
            }
            for point in trial.curve
        ]
    return found


def _tables(
    sweep: SweepRecord,
    trials: Sequence[TrialRecord],
    importances: Mapping[str, Mapping[str, float]],
) -> list[Table]:
    tables = [
        best_table(sweep, trials),
        selected_table(sweep),
        selection_table(sweep, trials),
        confirmation_table(sweep),
        cost_table(sweep, trials),
        importance_table(importances),
        failed_table(sweep, trials),
    ]
    return [table for table in tables if table.rows]


def _fact_tables(sweep: SweepRecord) -> list[Table]:
    facts = {
        "sweep": sweep.sweep_id,
        "metric": f"{sweep.metric}, stage {sweep.metric_stage}",
        "rule": sweep.select + (f", {sweep.criterion}" if sweep.criterion else ""),
        "objectives": ", ".join(f"{name} ({mode})" for name, mode in sweep.objectives.items()),
        "sampler": f"{sweep.sampler}, seed {sweep.seed}, concurrency {sweep.concurrency}, batch {sweep.batch}",
        "scheduler": sweep.scheduler
        + (f", rungs {', '.join(rung.text for rung in sweep.rungs)}" if sweep.rungs else ""),
        "budget": f"{sweep.trials} trials, {sweep.inner_trials} under each outer one",
        "training seeds": ", ".join(str(seed) for seed in sweep.seeds),
        "store": sweep.store_url,
        "study": sweep.study_url,
        "data": sweep.data_digest,
        **{name: str(value) for name, value in sweep.provenance.items()},
    }
    space = tuple((key.key, key.text, shown_value(key.default), key.stage, key.level) for key in sweep.space)
    return [
        Table("Search space", ("key", "range", "recipe", "stage", "level"), space),
        Table(
            "Where the numbers come from",
            ("fact", "value"),
            tuple((name, text) for name, text in facts.items() if text),
            note="With a concurrency above 1 the order of results, and so the suggestions, differ between repetitions.",
        ),
    ]


def _headline(sweep: SweepRecord, trials: Sequence[TrialRecord]) -> str:
    """One sentence that says what came out."""
    done = len(finished(trials, sweep.metric))
    state = (
        ""
        if sweep.status == "finished"
        else f" The sweep is {sweep.status}{f': {sweep.error}' if sweep.error else ''}."
    )
    if sweep.best is None:
        return f"{done} of {sweep.trials} trials have a value; the sweep declares no best trial yet.{state}"
    best = sweep.best
    gain = best.reported - best.default_reported
    basis = (
        f"mean over {len(sweep.confirmations[0].seeds)} seeds" if best.confirmed and sweep.confirmations else "one seed"
    )
    if best.trial == 0:
        return f"No trial of {done} beats the recipe: {percent(best.default_reported)} ({basis}).{state}"
    return (
        f"{percent(best.reported)} with trial {best.trial} against {percent(best.default_reported)} with the recipe "
        f"({points(gain)}, {basis}), after {done} trials in {duration(sweep.wall_seconds)}. {BEST_FILE} is its recipe."
        f"{state}"
    )


def _title(sweep: SweepRecord) -> str:
    return f"Search over {sweep.method}: {sweep.metric}"


def _subtitle(sweep: SweepRecord) -> str:
    return f"{sweep.dataset}, recipe {sweep.recipe_name}, space {sweep.space_name}"


def _html_page(
    sweep: SweepRecord,
    trials: Sequence[TrialRecord],
    tables: Sequence[Table],
    figures: Mapping[str, Figures],
    details: Sequence[Table],
    target: Path,
) -> str:
    parts = [f"<h1>{html.escape(_title(sweep))}</h1>", f'<p class="subtitle">{html.escape(_subtitle(sweep))}</p>']
    parts.append(f"<p>{html.escape(_headline(sweep, trials))}</p>")
    parts += [f'<p class="note">{html.escape(note)}</p>' for note in sweep.notes]
    first, rest = tables[:1], tables[1:]
    parts += [f"<h2>{html.escape(table.title)}</h2>\n{to_html(table)}" for table in first]
    for title, drawn in figures.items():
        parts.append(f"<h2>{html.escape(title)}</h2>")
        parts += [figure(name, path, target) for name, path in drawn]
    parts += [f"<h2>{html.escape(table.title)}</h2>\n{to_html(table)}" for table in rest]
    parts += [
        f"<details><summary>{html.escape(table.title)}</summary>{to_html(table)}</details>"
        for table in details
        if table.rows
    ]
    return page(f"{_title(sweep)}: {_subtitle(sweep)}", parts)


def _markdown_page(
    sweep: SweepRecord,
    trials: Sequence[TrialRecord],
    tables: Sequence[Table],
    figures: Mapping[str, Figures],
    details: Sequence[Table],
    target: Path,
) -> str:
    parts = [f"# {_title(sweep)}\n", f"{_subtitle(sweep)}\n", f"{_headline(sweep, trials)}\n"]
    parts += [f"{note}\n" for note in sweep.notes]
    parts += [to_markdown(table) for table in tables[:1]]
    for title, drawn in figures.items():
        parts.append(f"## {title}\n")
        parts += [f"![{name}]({path.relative_to(target).as_posix()})\n" for name, path in drawn]
    parts += [to_markdown(table) for table in [*tables[1:], *details] if table.rows]
    return "\n".join(parts)
