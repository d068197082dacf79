"""Tables and short texts on the terminal; plain lines when the output is a file or a job log."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from rich.console import Console

from wsss.formatting import byte_count, duration
from wsss.plan import Plan, PlannedStage
from wsss.reporting.tables import Table, to_rich

LOG_WIDTH = 140


def console() -> Console:
    """Standard output; a log file has no width of its own: it gets that of COLUMNS, else one that tables fit into."""
    known = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit()
    return Console(width=None if known else LOG_WIDTH, highlight=False, soft_wrap=False)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], right: str = "") -> None:
    """Print rows under a title. `right` names the right-aligned columns, separated by spaces."""
    texts = tuple(tuple("" if cell is None else str(cell) for cell in row) for row in rows)
    console().print(to_rich(Table(title, tuple(columns), texts, frozenset(right.split())), box=None))


def print_plan(plan: Plan, title: str, resources: Mapping[str, str] | None = None) -> None:
    """The plan of a run, one line a stage, and what it is expected to cost."""
    wanted = resources or {}
    rows = []
    for planned in plan.stages:
        name, expected = planned.stage.name, duration(planned.expected_seconds) if planned.needed else ""
        stage = (name, planned.stage.kind, planned.key[:12], _state(planned))
        rows.append((*stage, planned.images or "", wanted.get(name, ""), expected))
    columns = ["stage", "kind", "key", "state", "images", "resources", "expected"]
    print_table(title, columns, rows, right="images expected")
    to_run = len(plan.needed)
    if not to_run:
        print("\nEverything is there already: nothing will be computed.")
        return
    print(f"\n{to_run} of {len(plan.stages)} stages to compute; {_cost(plan)}.")
    print_downloads(plan)


def _cost(plan: Plan) -> str:
    known, total = len(plan.timed), duration(plan.expected_seconds)
    if not known:
        return "no expected time yet: none of them has run on this machine before"
    if known == len(plan.needed):
        return f"expected {total} in all, from earlier runs on this machine"
    return f"expected at least {total}, the time of the {known} of them that ran on this machine before"


def print_downloads(plan: Plan) -> None:
    """The weight files that a run would download first."""
    for path, row in plan.downloads.items():
        print(f"to download: {row.file}, {byte_count(1e6 * row.megabytes)}, {row.source}, to {path.parent}")


def _state(planned: PlannedStage) -> str:
    if planned.cached:
        imported = planned.artifact is not None and planned.artifact.provenance.get("imported")
        return "cached (imported)" if imported else "cached"
    state = "to compute" if planned.needed else "not needed"
    return f"{state} (damaged: {planned.damage})" if planned.damage else state
