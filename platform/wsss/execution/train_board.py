"""Where the workers of a training write their progress and the driver reads it.

The board is an actor, a process of its own that every training starts. This module loads neither torch nor Ray Train,
so that the process is there at once: they would take it seconds, in which the training's own processes load them too.
"""

from __future__ import annotations

from wsss.errors import WsssError

# [(steps done, losses and learning rates)], every step once
Steps = list[tuple[int, dict[str, float]]]
# What the board has heard since it was last asked: steps of the whole stage, steps, where workers started, notes.
News = tuple[int, Steps, list[int], list[str]]


class TrainBoard:
    """An actor beside the driver: the workers of a training write their progress there, the driver reads it."""

    def __init__(self) -> None:
        self._total = 0
        self._steps: Steps = []
        self._starts: list[int] = []
        self._notes: list[str] = []
        self._failure: WsssError | None = None

    def start(self, step: int) -> None:
        """The workers start, or start again, after this step."""
        self._starts.append(step)

    def tell(self, total: int, steps: Steps) -> None:
        """Add the steps that rank 0 took since its last report."""
        self._total = total
        self._steps.extend(steps)

    def note(self, text: str) -> None:
        """Something that people should read."""
        self._notes.append(text)

    def news(self) -> News:
        """Steps of the whole stage, and what was reported since the last call."""
        steps, self._steps = self._steps, []
        starts, self._starts = self._starts, []
        notes, self._notes = self._notes, []
        return self._total, steps, starts, notes

    def fail(self, error: WsssError) -> None:
        """Keep an error with a remedy for the driver: another attempt would only raise it again."""
        self._failure = error

    def failure(self) -> WsssError | None:
        """The kept error, if any."""
        return self._failure
