"""What a store holds that no reader sees: of writers that died, of removals that stopped, set aside as damaged."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from wsss.files import UNFINISHED
from wsss.store.backend import Backend, Entry
from wsss.store.local import PROBE, REMOVED, VERIFIED
from wsss.store.store import CHECKPOINTS, DAMAGED

_WRITING = "of a writer that died"
# A file or folder whose name begins so, wherever it lies.
_BY_NAME = {UNFINISHED: _WRITING, REMOVED: "of a removal that was stopped", PROBE: "of a check that was stopped"}
_LEASES = ".leases"


@dataclass(frozen=True)
class Leftover:
    """A file, or a folder with all that is in it, relative to the store.

    Attributes:
        size: bytes of all of it.
        age: seconds since it last changed.
        what: what it is, in words.
    """

    path: str
    size: int
    age: float
    what: str
    is_file: bool


def find_leftovers(backend: Backend) -> list[Leftover]:
    """Everything hidden that may be removed once it is old, by path."""
    entries = backend.entries()
    artifacts = {tuple(path.split("/")[:2]) for path in entries if path.count("/") >= 2}
    found: dict[str, tuple[str, list[Entry]]] = {}
    for path, entry in entries.items():
        parts = path.split("/")
        named = _named(parts, artifacts)
        if named is not None:
            depth, what = named
            found.setdefault("/".join(parts[:depth]), (what, []))[1].append(entry)
    now = time.time()
    return [
        Leftover(path, sum(e.size for e in files), now - max(e.modified for e in files), what, path in entries)
        for path, (what, files) in sorted(found.items())
    ]


def remove_leftover(backend: Backend, leftover: Leftover) -> None:
    """Remove what `find_leftovers` found; the unfinished file of a writer that lives after all stays."""
    if leftover.what == _WRITING:
        backend.remove_leftovers(leftover.path.rpartition("/")[0])
        return
    (backend.remove if leftover.is_file else backend.remove_folder)(leftover.path)


def checkpoints_in(entries: Mapping[str, Entry]) -> dict[tuple[str, str], list[Entry]]:
    """Stage and key of a training -> the files of its checkpoints.

    Args:
        entries: of a store or of a home; what is not below CHECKPOINTS is passed over.
    """
    found: dict[tuple[str, str], list[Entry]] = {}
    for path, entry in entries.items():
        parts = path.split("/")
        if parts[0] == CHECKPOINTS and len(parts) > 2:
            stage, _, key = parts[1].rpartition("-")
            found.setdefault((stage, key), []).append(entry)
    return found


def _named(parts: list[str], artifacts: set[tuple[str, ...]]) -> tuple[int, str] | None:
    """How many parts of the path are the leftover, and what it is; None for what is none."""
    if parts[0] == DAMAGED:
        return min(4, len(parts)), "set aside as damaged"
    if parts[0] == _LEASES:
        return len(parts), "lease of a run that died"
    if parts[0] == VERIFIED:
        stage, key = parts[-2], parts[-1].removesuffix(".json")
        return None if (stage, key) in artifacts else (len(parts), "note on an artifact that is gone")
    for depth, part in enumerate(parts, 1):
        for start, what in _BY_NAME.items():
            if part.startswith(start):
                return depth, what
    return None
