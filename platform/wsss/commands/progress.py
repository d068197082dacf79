"""What a running pipeline shows: a live tree on a terminal, plain lines in a job log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable

from rich.console import RenderableType
from rich.progress import BarColumn, Progress, Task, TaskID
from rich.table import Column, Table
from rich.text import Text

from wsss.commands.screen import console
from wsss.formatting import duration
from wsss.plan import PlannedStage

LINE_SECONDS = 15.0
_RATE_SECONDS = 600.0  # a rate is the mean over the last 10 minutes: shards of slow stages are minutes apart
_STYLES = {"running": "bold", "done": "green"}


class StageTasks(Progress):
    """The stages of a run as tasks of `rich.progress`, which measures their rates and draws them as a tree.

    A task's fields: `state` ("waiting", "cached", "not needed", "running" or "done"), `unit`, `note`, and `took`, the
    seconds of a stage that is done.
    """

    def __init__(self, title: str, planned: tuple[PlannedStage, ...]) -> None:
        self._title, self._began, self._newest = title, time.monotonic(), ""
        self._bar = BarColumn(bar_width=24)
        # Standard error stays untouched, so that an error message is not torn by the live display.
        super().__init__(console=console(), refresh_per_second=4, speed_estimate_period=_RATE_SECONDS)
        self._ids: dict[str, TaskID] = {}
        for stage in planned:
            state = "cached" if stage.cached else "waiting" if stage.needed else "not needed"
            self._ids[stage.stage.name] = self.add_task(
                stage.stage.name, start=False, total=None, state=state, unit="", note="", took=0.0
            )

    def stage(self, name: str) -> Task:
        """The task of a stage."""
        return self._tasks[self._ids[name]]

    def begin(self, stage: str, total: int, unit: str) -> bool:
        """(Re)state what there is to do; returns whether the stage begins now. The clock starts at the first call."""
        task, task_id = self.stage(stage), self._ids[stage]
        begins = task.fields["state"] != "running"
        if begins:
            self.start_task(task_id)
        self.update(task_id, total=total or None, state="running", unit=unit)
        return begins

    def advance_to(self, stage: str, done: int, note: str) -> None:
        """`done` of the total is finished. The first call may report what an earlier process did: no rate counts it."""
        self.update(self._ids[stage], completed=done, note=note)

    def end(self, stage: str, seconds: float, summary: str) -> None:
        """A stage is in the store."""
        self.stop_task(self._ids[stage])
        self.update(self._ids[stage], state="done", took=seconds, note=summary)
        self._newest = summary if "/miou" in summary else self._newest

    def get_renderables(self) -> Iterable[RenderableType]:
        """The run's line with its newest score, and a line for each stage."""
        needed = [task for task in self.tasks if task.fields["state"] not in ("cached", "not needed")]
        done = sum(task.fields["state"] == "done" for task in needed)
        facts = (f"{done} of {len(needed)} stages", duration(time.monotonic() - self._began), self._newest)
        shown = ", ".join(fact for fact in facts if fact)
        yield Text.assemble((self._title, "bold"), "  ", shown, no_wrap=True, overflow="ellipsis")
        columns = [Column(no_wrap=True), Column(), *(Column(no_wrap=True) for _ in range(3))]
        notes = Column(no_wrap=True, overflow="ellipsis", ratio=1)
        table = Table.grid(*columns, notes, padding=(0, 1), expand=True)
        for task in self.tasks:
            state = task.fields["state"]
            style = _STYLES.get(state, "dim")
            branch = Text.assemble("└─ " if task is self.tasks[-1] else "├─ ", (task.description, style))
            bar = self._bar.render(task) if state == "running" else Text(state, style)
            texts = (position(task), rate(task), timing(task), task.fields["note"])
            table.add_row(branch, bar, *(Text(text) for text in texts))
        yield table


class LineObserver:
    """One line when a stage begins and ends, and now and then between: for files and job logs.

    Args:
        every: least seconds between two lines of a stage; a long stage prints one after each further tenth of its time.
    """

    def __init__(self, planned: tuple[PlannedStage, ...], every: float = LINE_SECONDS) -> None:
        self._tasks = StageTasks("", planned)
        self._every = every
        self._last = 0.0

    def start(self, stage: str, total: int, unit: str) -> None:
        """A stage begins, or learns how much it has to do."""
        if self._tasks.begin(stage, total, unit):
            self.message(f"{stage}: started" + (f", {total} {unit}" if total > 1 else ""))
            self._last = time.monotonic()

    def update(self, stage: str, done: int, note: str = "") -> None:
        """`done` of the total is finished."""
        self._tasks.advance_to(stage, done, note)
        task, now = self._tasks.stage(stage), time.monotonic()
        if now - self._last >= max(self._every, (task.elapsed or 0.0) / 10):
            self._last = now
            self.message(
                f"{stage}: " + ", ".join(part for part in (position(task), rate(task), timing(task), note) if part)
            )

    def finish(self, stage: str, seconds: float, summary: str) -> None:
        """A stage is in the store."""
        self._tasks.end(stage, seconds, summary)
        self.message(f"{stage}: done in {duration(seconds)}" + (f", {summary}" if summary else ""))

    def message(self, text: str) -> None:
        """Something worth a line."""
        print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


class TreeObserver:
    """All stages with their state, bar, rate, time left and numbers, redrawn in place. A context manager."""

    def __init__(self, title: str, planned: tuple[PlannedStage, ...]) -> None:
        self.tasks = StageTasks(title, planned)

    def __enter__(self) -> TreeObserver:
        self.tasks.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.tasks.stop()

    def start(self, stage: str, total: int, unit: str) -> None:
        """A stage begins, or learns how much it has to do."""
        self.tasks.begin(stage, total, unit)

    def update(self, stage: str, done: int, note: str = "") -> None:
        """`done` of the total is finished."""
        self.tasks.advance_to(stage, done, note)

    def finish(self, stage: str, seconds: float, summary: str) -> None:
        """A stage is in the store."""
        self.tasks.end(stage, seconds, summary)

    def message(self, text: str) -> None:
        """Something worth a line; it stays above the tree."""
        self.tasks.console.print(text)


def position(task: Task) -> str:
    """`120/438 images` of a running stage, as far as it is known."""
    if task.fields["state"] != "running" or not task.total:
        return ""
    return f"{task.completed:.0f}/{task.total:.0f} {task.fields['unit']}"


def rate(task: Task) -> str:
    """`3.2/s`, or `4.1 s each` of a slow stage."""
    if task.fields["state"] != "running" or not task.speed:
        return ""
    return f"{task.speed:.1f}/s" if task.speed >= 1 else f"{duration(1 / task.speed)} each"


def timing(task: Task) -> str:
    """The time left of a running stage, or the time so far while no rate is known; what a finished stage took."""
    if task.fields["state"] == "done":
        return duration(task.fields["took"])
    if task.fields["state"] != "running":
        return ""
    if task.speed and task.remaining is not None:
        return f"{duration(task.remaining / task.speed)} left"
    return duration(task.elapsed or 0.0)


def wants_tree() -> bool:
    """Whether standard output is a terminal that can redraw."""
    return sys.stdout.isatty() and not console().is_dumb_terminal
