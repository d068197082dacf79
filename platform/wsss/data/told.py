"""Tells people of long work on files that they did not ask for, with the time that it will still take."""

from __future__ import annotations

import sys
import time

from wsss.formatting import duration

_SILENT_SECONDS = 5.0


class Told:
    """A `Progress` that writes a line to standard error every few seconds, and nothing for short work.

    Args:
        what: the work, in words.
        remark: said once, after the first line.
    """

    def __init__(self, what: str, remark: str = "") -> None:
        self._what, self._remark = what, remark
        self._started = self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """`done` of `total` is finished."""
        now = time.monotonic()
        if done == 1:  # further work of the same kind
            self._started = now
        if done >= total or now - self._last < _SILENT_SECONDS:
            return
        left = duration((now - self._started) / done * (total - done))
        remark = f" ({self._remark})" if self._remark else ""
        print(f"{self._what}: {done} of {total}, about {left} left{remark}", file=sys.stderr, flush=True)
        self._last, self._remark = now, ""
