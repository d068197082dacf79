"""Who follows a run while it computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from wsss.tracking.tracker import RunStatus


class RunObserver(Protocol):
    """Who is shown the progress of a run."""

    def start(self, stage: str, total: int, unit: str) -> None: ...
    def update(self, stage: str, done: int, note: str = "") -> None: ...
    def finish(self, stage: str, seconds: float, summary: str) -> None: ...
    def message(self, text: str) -> None: ...


class StageLog(Protocol):
    """Where the numbers of a stage execution go; a `TrackedRun` is one."""

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None: ...
    def series(self, curves: Mapping[str, Sequence[tuple[int, float]]]) -> None: ...
    def finish(self, status: RunStatus = "FINISHED") -> None: ...
