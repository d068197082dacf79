"""Writes the report of a sweep: HTML with plots, Markdown and CSV beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from wsss.formatting import duration, percent, points
from wsss.reporting.page import Page, Section, new_report_folder, write_page
from wsss.reporting.plots import plot_threshold_curve
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
from wsss.reporting.tables import Table
from wsss.search.records import BEST_FILE, SweepRecord, TrialRecord, load_trials


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
    trials, shares = load_trials(folder), importances or {}
    target, figures_folder = new_report_folder(folder)
    page = Page(
        title=f"Search over {sweep.method}: {sweep.metric}",
        subtitle=f"{sweep.dataset}, recipe {sweep.recipe_name}, space {sweep.space_name}",
        lead=_headline(sweep, trials),
        notes=sweep.notes,
        blocks=[
            best_table(sweep, trials),
            *_draw(sweep, trials, shares, figures_folder),
            selected_table(sweep),
            selection_table(sweep, trials),
            confirmation_table(sweep),
            cost_table(sweep, trials),
            importance_table(shares),
            failed_table(sweep, trials),
        ],
        details=[top_table(sweep, trials), *_fact_tables(sweep)],
    )
    (target / "trials.csv").write_text(trials_csv(sweep, trials), encoding="utf-8")
    return write_page(page, target)[0]


def _draw(
    sweep: SweepRecord, trials: Sequence[TrialRecord], importances: Mapping[str, Mapping[str, float]], folder: Path
) -> list[Section]:
    if not finished(trials, sweep.metric):
        return []
    drawn = [Section("Search", [("Value by trial", plot_search_history(sweep, trials, folder / "history.png"))])]
    if any(importances.values()):
        path = plot_importance(importances, folder / "importance.png")
        drawn.append(Section("Importance", [("Importance", path)]))
    if any(key.level != "unused" for key in sweep.space):
        path = plot_slices(sweep, trials, folder / "slices.png")
        drawn.append(Section("Value against each key", [("Slices", path)]))
    if curves := _curves(sweep, trials):
        path = plot_threshold_curve(f"{sweep.metric} against threshold, all images", curves, folder / "curves.png")
        drawn.append(Section("mIoU against the background threshold", [("Curves", path)]))
    cost = plot_value_against_cost(sweep, trials, folder / "cost.png")
    reuse = plot_reuse(sweep, trials, folder / "reuse.png")
    return [*drawn, Section("Cost", [("Value against cost", cost), ("Reuse", reuse)])]


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
    state = f" The sweep is {sweep.status}{f': {sweep.error}' if sweep.error else ''}."
    state = "" if sweep.status == "finished" else state
    if sweep.best is None:
        return f"{done} of {sweep.trials} trials have a value; the sweep declares no best trial yet.{state}"
    best = sweep.best
    gain = best.reported - best.default_reported
    confirmed = sweep.confirmations if best.confirmed else ()
    basis = f"mean over {len(confirmed[0].seeds)} seeds" if confirmed else "one seed"
    if best.trial == 0:
        return f"No trial of {done} beats the recipe: {percent(best.default_reported)} ({basis}).{state}"
    return (
        f"{percent(best.reported)} with trial {best.trial} against {percent(best.default_reported)} with the recipe "
        f"({points(gain)}, {basis}), after {done} trials in {duration(sweep.wall_seconds)}. {BEST_FILE} is its recipe."
        f"{state}"
    )
