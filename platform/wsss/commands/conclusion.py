"""The end of a run for people: stages, results, verdict, where the report lies and how to look at MLflow."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from wsss.changed_settings import name_of_run
from wsss.commands.artifacts import selection_of
from wsss.commands.gather import gather_report
from wsss.commands.screen import console
from wsss.execution.run import RunResult
from wsss.reporting.report import write_report
from wsss.reporting.run_report import RunReport
from wsss.reporting.tables import common_obstacles, result_table, short_verdicts, stage_table, to_rich
from wsss.tracking import open_tracker, ui_command
from wsss.tracking.names import reproductions
from wsss.tracking.tracker import RunStatus


def conclude(results: Sequence[RunResult], home: Path, tracking_uri: str | None, with_verdict: bool) -> None:
    """Write the report, hand it to MLflow and print what matters of it."""
    records = [result.record for result in results]
    report = gather_report(records, home)
    files = write_report(results[-1].folder, report, home)
    untracked = [result.untracked for result in results if result.untracked]
    last = records[-1]
    selection = selection_of(last)
    name, experiment = name_of_run(last, selection.method, selection.recipe), reproductions(last.dataset)
    untracked.append(track_files([files.folder], name, last.run_id, experiment, home, tracking_uri))
    print_report(report, with_verdict)
    print(f"\nreport:  {files.html}")
    print(f"run:     {results[-1].folder}")
    print(f"MLflow:  {_ui(home, tracking_uri)}")
    metric = next((name for name in (*report.headline, *records[-1].metrics) if name in records[-1].metrics), None)
    if metric is not None:
        print(f"explain: wsss explain {records[-1].run_id} {metric}")
    for message in filter(None, dict.fromkeys(untracked)):
        print(message)


def print_report(report: RunReport, with_verdict: bool) -> None:
    """Stages, results and, when there are numbers to judge, the verdict."""
    verdicts = report.verdicts if with_verdict and any(stage.metrics for stage in report.stages) else ()
    obstacles = common_obstacles(report)
    for table in (stage_table(report), result_table(report), short_verdicts(() if obstacles else verdicts)):
        if table.rows:
            print()
            console().print(to_rich(table))
    if obstacles and verdicts:
        print(f"\nverdict: {obstacles} (the report has each number with its protocol)")


def track_files(
    paths: Sequence[Path],
    name: str,
    key: str,
    experiment: str,
    home: Path,
    tracking_uri: str | None,
    status: RunStatus = "FINISHED",
) -> str:
    """Log files of a run that has ended, by its name and key in MLflow; returns what to tell the user, or nothing."""
    tracker = open_tracker(tracking_uri, home, experiment)
    run = tracker.run(name, key=key)
    for path in paths:
        run.artifact(path)
    run.finish(status)
    return tracker.close().message


def _ui(home: Path, tracking_uri: str | None) -> str:
    command = ui_command(home, tracking_uri)
    program = Path(sys.executable).parent / "mlflow"
    if command.startswith("mlflow ") and program.is_file():
        command = f"{shlex.quote(str(program))} {command.removeprefix('mlflow ')}"
    return command
