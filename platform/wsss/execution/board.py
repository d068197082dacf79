"""An actor through which the workers of a training report their progress to the driver."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import ray

from wsss.errors import WsssError


@dataclass
class Told:
    """What a training stage has reported since the driver last asked.

    Attributes:
        steps: (steps done, losses of that step) in order, every step once.
    """

    total: int = 0
    steps: list[tuple[int, dict[str, float]]] = field(default_factory=list)


class Board:
    """Reports of one running training stage. Workers write, the driver reads."""

    def __init__(self) -> None:
        self._told = Told()
        self._failure: WsssError | None = None

    def tell(self, total: int, steps: list[tuple[int, dict[str, float]]]) -> None:
        """Add the steps that rank 0 took since its last report."""
        self._told.total = total
        self._told.steps.extend(steps)

    def news(self) -> Told:
        """What was reported since the last call."""
        told, self._told = self._told, Told(total=self._told.total)
        return told

    def fail(self, error: WsssError) -> None:
        """Keep an error with a remedy for the driver: another attempt would only raise it again."""
        self._failure = error

    def failure(self) -> WsssError | None:
        """The kept error, if any."""
        return self._failure


def create_board() -> Any:
    """Start the actor beside the driver; it takes no CPU."""
    return ray.remote(num_cpus=0)(Board).remote()
