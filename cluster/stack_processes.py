"""Processes that must not outlive the one that started them: ended with it, found and killed after it. Linux."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

STOP_SECONDS = 30.0
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def end_with_parent(signal_number: signal.Signals) -> None:
    """Have this process sent a signal when its parent ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal_number))


def inherit_orphans() -> None:
    """Make this process the parent of its descendants whose parents have ended."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def kill_descendants() -> None:
    """Kill every process that stems from this one. As their reaper it inherits those whose parents have ended."""
    deadline = time.monotonic() + STOP_SECONDS
    while (found := descendants()) and time.monotonic() < deadline:
        for process in found:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.05)


def kill_orphans(children: Collection[int]) -> None:
    """Kill what children left that have ended: processes that this one inherited, all but its own `children`."""
    while orphans := [
        process for process in descendants() if _parent(process) == os.getpid() and process not in children
    ]:
        for process in orphans:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(process, 0)


def _parent(process: int) -> int | None:
    """Process id of its parent; none when it has just ended."""
    with suppress(OSError):
        return int(Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    return None


def descendants() -> list[int]:
    """Process ids of all that stem from this process and have not been waited for."""
    parents = {int(process.name): _parent(int(process.name)) for process in Path("/proc").glob("[0-9]*")}
    found, wanted = [], [os.getpid()]
    while wanted:
        parent = wanted.pop()
        children = [process for process, its in parents.items() if its == parent]
        found += children
        wanted += children
    return found
