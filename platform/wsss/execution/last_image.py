"""Which image a worker process was at when it died: it cannot tell, so it writes each down before it begins.

The note lies on the worker's own disk. The driver finds it when both are on one machine.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def noted(names: Sequence[str], key: str, shard: int) -> Iterator[Iterator[str]]:
    """The names in turn, each written down before it is handed out. The note stays only if the process dies."""
    path = _note(key, shard)

    def each() -> Iterator[str]:
        for name in names:
            with suppress(OSError):  # a full disk must not stop the work
                path.write_text(name, encoding="utf-8")
            yield name

    try:
        yield each()
    finally:  # which a process that dies does not reach
        with suppress(OSError):
            path.unlink()


def last_image(key: str, shard: int) -> str:
    """The image that the dead worker of a shard had begun; empty where nothing says so. The note is removed."""
    path = _note(key, shard)
    with suppress(OSError, UnicodeDecodeError):
        name = path.read_text(encoding="utf-8")
        path.unlink()
        return name
    return ""


def _note(key: str, shard: int) -> Path:
    return Path(tempfile.gettempdir()) / f"wsss-{os.getuid()}-{key}-{shard}"
