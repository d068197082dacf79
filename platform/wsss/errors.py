"""The one shape of error that people see: what happened, where, and what to do about it."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable


class WsssError(Exception):
    """An expected failure with a remedy.

    Args:
        what: what is wrong, in one sentence.
        where: the file, key, stage or address that is concerned.
        remedy: what the user can do now.
    """

    def __init__(self, what: str, where: str = "", remedy: str = "") -> None:
        super().__init__(what, where, remedy)
        self.what = what
        self.where = where
        self.remedy = remedy

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.remedy:
            lines.append(f"  do:    {self.remedy}")
        return "\n".join(lines)


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """`; did you mean 'cam'?` with the known name most like `name`, or nothing below the likeness `cutoff` (0 to 1)."""
    if len(name) > 200:  # no typo; and the comparison would take long
        return ""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {near[0]!r}?" if near else ""


def interrupted(error: BaseException) -> bool:
    """Whether Ctrl-C is behind it: compiled modules turn an interruption of their import into an ImportError."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, KeyboardInterrupt):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def ended_while_loading(error: BaseException) -> tuple[int, str] | None:
    """Exit code and words for a program that ended while its modules loaded. None: the fault is the program's own."""
    if interrupted(error):
        return 130, "\nStopped before it began."
    if not isinstance(error, ModuleNotFoundError) or (error.name or "").startswith("wsss"):
        return None
    remedy = "run `make reproduce`, or `pip install -e .` into the environment you use"
    return 2, str(WsssError(f"error: the Python package {error.name!r} is not installed", sys.executable, remedy))
