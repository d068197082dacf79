"""A clock of a process that a test can move: the file `clock` in the folder of faults says by how many seconds."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

_true_time, _true_time_ns = time.time, time.time_ns
_LOOK_SECONDS = 0.1


class MovedClock:
    """What `time.time` and `time.time_ns` answer; the time that only ever grows (`time.monotonic`) stays true."""

    def __init__(self, folder: Path) -> None:
        self._file, self._offset, self._looked = folder / "clock", 0, 0.0

    @property
    def offset(self) -> int:
        """Seconds, looked up now and then."""
        if time.monotonic() - self._looked > _LOOK_SECONDS:
            self._looked = time.monotonic()
            with suppress(OSError, ValueError):
                self._offset = int(self._file.read_text())
        return self._offset

    def seconds(self) -> float:
        """In place of `time.time`."""
        return _true_time() + self.offset

    def nanoseconds(self) -> int:
        """In place of `time.time_ns`."""
        return _true_time_ns() + self.offset * 1_000_000_000


def follow(folder: Path) -> None:
    """Let the clock of this process follow the file, once; nothing happens without the folder."""
    if folder.is_dir() and time.time is _true_time:
        clock = MovedClock(folder)
        time.time, time.time_ns = clock.seconds, clock.nanoseconds
