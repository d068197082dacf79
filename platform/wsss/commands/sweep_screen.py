"""What a sweep shows: its plan, a line a trial, and at the end the recipe against the best trial."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from wsss.commands.conclusion import track_files
from wsss.commands.screen import print_downloads, print_table
from wsss.formatting import count, duration, interval, mean_and_spread, percent
from wsss.search.records import BEST_FILE, SweepRecord, TrialRecord, load_trials, value_text
from wsss.search.request import PreparedSweep
from wsss.search.sweep import SweepObserver
from wsss.tracking import ui_command
from wsss.tracking.names import sweep_experiment

NEWS_SECONDS = 15.0


def print_sweep_plan(prepared: PreparedSweep) -> None:
    """Keys with their stages, and how often every stage is expected to run."""
    metric, plan = prepared.request.metric, prepared.plan
    rows = []
    for key in prepared.keys:
        stages = (key.stage or "none of this metric", ", ".join(key.trains))
        rows.append((key.key, key.text, value_text(key.default), key.level, *stages))
    columns = ["key", "range", "recipe", "level", "first stage", "trains again"]
    print_table(f"Search space {prepared.space.name}", columns, rows)
    print()
    expected = prepared.expected()
    rows = []
    for each in expected:
        together = None if each.seconds is None else each.seconds * each.executions
        costs = (each.executions, each.independent, duration(each.seconds), duration(together))
        rows.append((each.stage.name, each.stage.kind, *costs))
    columns = ["stage", "kind", "executions", "independent", "each", "together"]
    print_table(f"Stages until {metric}, expected", columns, rows, right="executions independent each together")
    print_downloads(prepared.run.plan)
    ours, independent = sum(each.executions for each in expected), sum(each.independent for each in expected)
    if any(key.level == "outer" for key in prepared.keys) and not plan.flat:
        print(f"\n{prepared.outer_trials} outer trials, {plan.inner_trials} trials under each, {plan.trials} in all;")
    else:
        print(f"\n{plan.trials} trials;")
    print(f"{ours} stage executions expected, {independent} if every trial ran on its own.")
    executed = [each for each in expected if each.executions]
    timed = [each for each in executed if each.seconds is not None]
    if timed:
        total = duration(sum((each.seconds or 0.0) * each.executions for each in timed))
        alone = duration(sum((each.seconds or 0.0) * each.independent for each in expected))
        unknown = len(executed) - len(timed)
        others = f" without {count(unknown, 'stage')} that never ran on this machine" if unknown else ""
        print(
            f"At most {total} expected{others}, less where trials share work or lose a race; "
            f"{alone} if every trial ran on its own."
        )
    if prepared.rungs:
        print(f"Outer trials that fall behind stop at {', '.join(rung.text for rung in prepared.rungs)}.")
    print(f"metric {metric}, chosen by {prepared.request.select}; sweep {prepared.sweep_id}\n")


class LineSweepObserver(SweepObserver):
    """A line for every trial; news of running stages at most every few seconds; the report at the end.

    Attributes:
        report: its first page, once the sweep has ended.
    """

    def __init__(self, prepared: PreparedSweep) -> None:
        self.report = Path()
        self._prepared = prepared
        self._metric, self._total = prepared.request.metric, prepared.plan.trials
        self._unmasked = prepared.request.select == "label_free"
        ended = [trial for trial in load_trials(prepared.folder) if trial.status != "running"]
        self._ended = len(ended)
        values = [trial.values[self._metric] for trial in ended if trial.status == "finished"]
        self._best = max(values, default=float("-inf"))
        self._told = 0.0

    def trial(self, trial: TrialRecord, record: SweepRecord) -> None:
        """One line: value, best so far, what it executed."""
        self._ended += 1
        head = f"{self._ended} of {self._total}: trial {trial.number}"
        if trial.status != "finished":
            reason = trial.reason.splitlines()[0] if trial.reason else ""
            print(f"{head} {trial.status}: {reason}", flush=True)
            return
        value = trial.values[self._metric]
        mark = " *" if value > self._best else ""
        self._best = max(self._best, value)
        executed = sum(stage.executed for stage in trial.stages)
        print(
            f"{head} {self._shown(value)} (best {self._shown(self._best)}){mark}, "
            f"{executed} of {len(trial.stages)} stages computed, {duration(trial.spent_seconds)}",
            flush=True,
        )

    def _shown(self, value: float) -> str:
        return f"criterion {value:.4f}" if self._unmasked else f"{percent(value)} %"

    def message(self, text: str) -> None:
        """News of a stage."""
        now = time.monotonic()
        if " of " not in text or now - self._told > NEWS_SECONDS:
            self._told = now
            print(f"  {text}", flush=True)

    def ended(self, record: SweepRecord) -> None:
        """Write the report."""
        self.report = report_sweep(record, self._prepared.folder, self._prepared.request.tracking_uri)


def report_sweep(record: SweepRecord, folder: Path, tracking_uri: str | None) -> Path:
    """Write the sweep's report, hand it to MLflow, and return its first page."""
    from wsss.reporting.sweep_report import write_sweep_report
    from wsss.search.study.importance import importances

    index = write_sweep_report(record, folder, importances=importances(record, load_trials(folder)))
    if record.status == "running":  # its own process tracks it
        return index
    paths = [path for path in (index.parent, folder / BEST_FILE) if path.exists()]
    status = "FINISHED" if record.status == "finished" else "FAILED"
    experiment = sweep_experiment(record.dataset, record.sweep_id)
    if message := track_files(
        paths, f"sweep {record.sweep_id}", record.sweep_id, experiment, folder.parents[1], tracking_uri, status
    ):
        print(message)
    return index


def print_outcome(record: SweepRecord, folder: Path, report: Path, tracking_uri: str | None) -> None:
    """The recipe against the best trial, what it cost, and where everything lies."""
    best = record.best
    assert best is not None
    defaults = {key.key: key.default for key in record.space}
    rows: list[tuple[Any, ...]] = [
        (key, value_text(defaults.get(key)), value_text(value)) for key, value in best.settings.items()
    ]
    rows.append((_number_in_words(record), percent(best.default_reported), percent(best.reported)))
    print_table(
        f"Recipe {record.recipe_name} against the best setting", ["", "recipe", "best"], rows, right="recipe best"
    )
    if best.gain_low is not None and best.gain_high is not None:
        bounds = interval(best.gain_low, best.gain_high, signed=True)
        seeds = ", ".join(map(str, record.seeds))
        print(f"gain over the recipe under seed {seeds}: {bounds}, 95 % interval over images, paired")
    for each in record.confirmations:
        name = "recipe" if each.trial == 0 else f"trial {each.trial}"
        print(
            f"{name}: {mean_and_spread(each.mean, each.spread)} over seeds {', '.join(map(str, each.seeds))}, "
            f"95 % interval {interval(each.low, each.high)}"
        )
    if not best.confirmed:
        print("One seed: --confirm-seeds 0,1,2 runs the best trials and the recipe under more.")
    for note in record.notes:
        print(note)
    if not best.settings:
        print("Nothing beat the recipe itself.")
    spent = record.executed_seconds
    saved = f" ({record.independent_seconds / spent:.1f} times as long)" if spent > 0 else ""
    print(
        f"\nstages:  {record.asked} asked for, {record.executed} executed, {record.served} served\n"
        f"time:    {duration(record.wall_seconds)}; stages executed {duration(spent)}, "
        f"independent trials would have taken {duration(record.independent_seconds)}{saved}\n"
        f"report:  {report}\n"
        f"best:    {folder / BEST_FILE}\n"
        f"sweep:   {folder}\n"
        f"study:   optuna-dashboard {record.study_url}\n"
        f"MLflow:  {ui_command(folder.parents[1], tracking_uri)}"
    )
    print(f"run it:  python reproduce.py --method {record.method} --recipe {folder / BEST_FILE}")


def _number_in_words(record: SweepRecord) -> str:
    how = {
        "held_out": "%, on the half that chose nothing",
        "oracle": "%, chosen by these masks",
        "default_threshold": "%, trials chosen by these masks",
        "label_free": f"%, chosen without masks by {record.criterion}",
    }[record.select]
    return f"{record.metric} {'%' if record.notes else how}"
