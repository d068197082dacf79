"""One kind of fault: what happens, and what a user must see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tests.faults.scene import Scene, Seen

Needs = Literal[
    "",
    "store disk",
    "home disk",
    "database disk",
    "object store",
    "nodes",
    "server",
    "sweep",
    "sweep on a small home",
    "sweep on nodes",
]


def nothing(scene: Scene) -> None:
    """Nothing has to be mended before the same command."""


@dataclass(frozen=True)
class Kind:
    """One kind of fault.

    Attributes:
        fault: in words.
        act: starts the command, lets the fault happen and returns what was seen.
        code: exit code that a shell shows.
        message: what the one message must say; empty: nothing is said on standard error.
        within: seconds from the fault to the end of the command, at most.
        there: stages that the store holds before the command begins.
        needs: what stands around the command.
        remedy: what the message tells people to do, done before the same command is given again.
        on_screen: what standard output must say.
        lost: whether the fault itself takes what was published, so that it is computed again.
    """

    fault: str
    act: Callable[[Scene], Seen]
    code: int = 0
    message: str = ""
    within: float = 90.0
    there: tuple[str, ...] = ("toy_train",)
    needs: Needs = ""
    remedy: Callable[[Scene], None] = nothing
    on_screen: str = ""
    lost: bool = False
