"""What a running pipeline shows: a live tree on a terminal, plain lines in a job log."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from wsss.commands.screen import console
from wsss.execution.observer import RunObserver
from wsss.formatting import duration
from wsss.plan import PlannedStage

LINE_SECONDS = 15.0


@dataclass
class StageProgress:
    """How far one stage is. `resumed` is where it stood when this process first heard of it."""

    name: str
    unit: str = ""
    total: int = 0
    done: int = 0
    resumed: int | None = None
    note: str = ""
    state: str = "waiting"
    seconds: float = 0.0
    began: float = 0.0
    summary: str = ""

    def begin(self, total: int, unit: str, now: float) -> None:
        """(Re)state what there is to do; the clock starts at the first call."""
        if self.state != "running":
            self.state, self.began = "running", now
        self.total, self.unit = total, unit

    def advance(self, done: int, note: str) -> None:
        """So much is done in all."""
        if self.resumed is None:
            self.resumed = done
        self.done, self.note = done, note

    def remaining(self, now: float) -> float | None:
        """Seconds left at the pace of this process; None until there is a pace."""
        fresh = self.done - (self.resumed or 0)
        if self.state != "running" or fresh <= 0 or self.total <= 0:
            return None
        return (now - self.began) / fresh * max(self.total - self.done, 0)

    def position(self) -> str:
        """`120/438 images`, as far as it is known."""
        if not self.total:
            return ""
        return f"{self.done}/{self.total} {self.unit}"


class LineObserver:
    """One line when a stage begins and ends, and every few seconds between: for files and job logs."""

    def __init__(self, planned: tuple[PlannedStage, ...], every: float = LINE_SECONDS) -> None:
        self._stages = {stage.stage.name: StageProgress(stage.stage.name) for stage in planned}
        self._every = every
        self._last = 0.0

    def start(self, stage: str, total: int, unit: str) -> None:
        """A stage begins, or learns how much it has to do."""
        progress, now = self._stages[stage], time.monotonic()
        if progress.state != "running":
            self._print(f"{stage}: started" + (f", {total} {unit}" if total > 1 else ""))
            self._last = now
        progress.begin(total, unit, now)

    def update(self, stage: str, done: int, note: str = "") -> None:
        """A stage has done so much."""
        progress, now = self._stages[stage], time.monotonic()
        progress.advance(done, note)
        if now - self._last >= self._every:
            self._last = now
            left = progress.remaining(now)
            parts = [progress.position(), f"{duration(left)} left" if left is not None else "", note]
            self._print(f"{stage}: " + ", ".join(part for part in parts if part))

    def finish(self, stage: str, seconds: float, summary: str) -> None:
        """A stage is in the store."""
        self._stages[stage].state = "done"
        self._print(f"{stage}: done in {duration(seconds)}" + (f", {summary}" if summary else ""))

    def message(self, text: str) -> None:
        """Something worth a line."""
        self._print(text)

    def _print(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


class TreeObserver:
    """All stages with their state, bar, time left and numbers, redrawn in place. A context manager."""

    def __init__(self, title: str, planned: tuple[PlannedStage, ...]) -> None:
        self._title = title
        self._stages = {stage.stage.name: StageProgress(stage.stage.name) for stage in planned}
        for stage in planned:
            if stage.cached:
                self._stages[stage.stage.name].state = "cached"
            elif not stage.needed:
                self._stages[stage.stage.name].state = "not needed"
        # Standard error stays untouched, so that an error message is not torn by the live display.
        self._live = Live(get_renderable=self._draw, console=console(), refresh_per_second=4, transient=False)

    def __enter__(self) -> TreeObserver:
        self._live.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.refresh()
        self._live.stop()

    def start(self, stage: str, total: int, unit: str) -> None:
        """A stage begins, or learns how much it has to do."""
        self._stages[stage].begin(total, unit, time.monotonic())

    def update(self, stage: str, done: int, note: str = "") -> None:
        """A stage has done so much."""
        self._stages[stage].advance(done, note)

    def finish(self, stage: str, seconds: float, summary: str) -> None:
        """A stage is in the store."""
        progress = self._stages[stage]
        progress.state, progress.seconds, progress.summary = "done", seconds, summary

    def message(self, text: str) -> None:
        """Something worth a line; it stays above the tree."""
        self._live.console.print(text)

    def _draw(self) -> Group:
        now = time.monotonic()
        grid = Table.grid(padding=(0, 1))
        last = len(self._stages) - 1
        for index, progress in enumerate(self._stages.values()):
            branch = "└─" if index == last else "├─"
            style = {"running": "bold", "done": "green"}.get(progress.state, "dim")
            grid.add_row(branch, Text(progress.name, style=style), *self._cells(progress, now))
        return Group(Text(self._title, style="bold"), grid)

    def _cells(self, progress: StageProgress, now: float) -> tuple[RenderableType, Text, Text]:
        if progress.state == "running":
            left = progress.remaining(now)
            bar = ProgressBar(total=progress.total or None, completed=progress.done, pulse=not progress.total, width=24)
            timing = f"{duration(left)} left" if left is not None else duration(now - progress.began)
            words = [progress.position(), progress.note]
            return bar, Text(timing), Text("  ".join(word for word in words if word))
        if progress.state == "done":
            return Text("done", style="green"), Text(duration(progress.seconds)), Text(progress.summary)
        return Text(progress.state, style="dim"), Text(""), Text("")


def wants_tree() -> bool:
    """Whether standard output is a terminal that can redraw."""
    return sys.stdout.isatty() and not console().is_dumb_terminal


def as_observer(observer: LineObserver | TreeObserver) -> RunObserver:
    """Checked by the type checker: both kinds satisfy the protocol of the execution layer."""
    return observer
