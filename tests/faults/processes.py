"""Processes of a command of a test, wherever they hang: all of them inherit a mark in their environment."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

MARK = "WSSS_TEST_MARK"


def marked(mark: str) -> dict[int, str]:
    """Process id -> command line of the living processes with that mark, this one apart."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):
            process = int(folder.name)
            if process != os.getpid() and f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                found[process] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return {process: words for process, words in found.items() if words}  # what has ended has no words


def named(mark: str, word: str) -> list[int]:
    """Of the marked processes those whose command line holds a word, such as `ray::_run_shard` or `/raylet`."""
    return sorted(process for process, words in marked(mark).items() if word in words)


def parent_of(process: int) -> int:
    """Id of the parent."""
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def kill(process: int, number: signal.Signals = signal.SIGKILL) -> bool:
    """Send a signal; False when the process has ended already."""
    try:
        os.kill(process, number)
    except ProcessLookupError:
        return False
    return True


def all_ended(mark: str, seconds: float) -> dict[int, str]:
    """Wait for the end of all marked processes. Returns those that are left, and kills them."""
    deadline = time.monotonic() + seconds
    while (left := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.2)
    for process in left:
        kill(process)
    return left
