"""What was once found out about a file (its hash, the classes in it), remembered by size and time."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsss.data.errors import DataError, Problem
from wsss.data.layout import Progress
from wsss.files import write_file

# A file that changed this recently may change again within one tick of its clock.
_SETTLED_NS = 2_000_000_000
# So many files are at most decoded again after an interruption.
_SAVED_FILES = 2000


@dataclass
class FileFacts:
    """Facts by path, and the errors of the files that could not be read."""

    facts: dict[Path, Any] = field(default_factory=dict)
    errors: dict[Path, DataError] = field(default_factory=dict)

    @property
    def problems(self) -> list[Problem]:
        """The errors as findings of a check."""
        return [Problem.of(error) for error in self.errors.values()]


def file_facts(paths: Iterable[Path], kind: str, compute: Callable[[Path], Any], cache: Path | None) -> FileFacts:
    """`compute(path)` for each file, taken from the cache where size and modification time agree.

    Args:
        kind: names the fact and its version; another kind never sees this one's cache.
        compute: returns plain JSON values; a DataError is collected, anything else propagates.
        cache: folder of the cache; None computes all anew. Several processes may use it at once.
    """
    result = FileFacts()
    folders: dict[Path, list[Path]] = {}
    for path in dict.fromkeys(paths):
        folders.setdefault(path.parent, []).append(path)
    for folder, members in folders.items():
        _facts_of_folder(folder, members, kind, compute, cache, result)
    return result


def content_facts(
    kinds: Mapping[Path, str],
    computes: Mapping[str, Callable[[Path], Any]],
    cache: Path | None,
    progress: Progress | None = None,
    afresh: bool = False,
) -> FileFacts:
    """`computes[kind](path)` for each file of a kind, from the cache where the content is known, wherever it lies.

    Args:
        kinds: file -> kind, which names the fact and its version.
        computes: as `compute` of `file_facts`; errors are not remembered.
        progress: called with (files done, files in all), of those that are computed.
        afresh: compute all, and remember them.
    """
    hashes = file_facts(kinds, "sha256", sha256_of_file, cache)
    stores = {kind: None if cache is None else cache / "content_facts" / f"{kind}.json" for kind in computes}
    known = {kind: {} if afresh else _contents(store) for kind, store in stores.items()}
    result = FileFacts()
    unknown: list[Path] = []  # with those that cannot be read, of which `computes` says more
    for path, kind in kinds.items():
        if (digest := hashes.facts.get(path)) in known[kind]:
            result.facts[path] = known[kind][digest]
        else:
            unknown.append(path)

    def computed(path: Path) -> Any:
        try:
            return computes[kinds[path]](path)
        except DataError as error:
            return error

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(unknown), _SAVED_FILES):
            part = unknown[start : start + _SAVED_FILES]
            fresh: dict[str, dict[str, Any]] = {kind: {} for kind in computes}
            for done, (path, value) in enumerate(zip(part, pool.map(computed, part), strict=True), start=start + 1):
                if isinstance(value, DataError):
                    result.errors[path] = value
                else:
                    result.facts[path] = value
                    if path in hashes.facts:
                        fresh[kinds[path]][hashes.facts[path]] = value
                if progress is not None:
                    progress(done, len(unknown))
            for kind, store in stores.items():
                if store is not None and fresh[kind]:
                    store.parent.mkdir(parents=True, exist_ok=True)
                    # Read again, as in `_facts_of_folder`.
                    write_file(store, json.dumps({**_contents(store), **fresh[kind]}, separators=(",", ":")))
    return result


def sha256_of_file(path: Path) -> str:
    """Hex digest of a file's content."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"the file cannot be read: {error.strerror}", str(path), "check that it is there") from error


def _facts_of_folder(
    folder: Path,
    members: list[Path],
    kind: str,
    compute: Callable[[Path], Any],
    cache: Path | None,
    result: FileFacts,
) -> None:
    store = None
    if cache is not None:
        identity = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:24]
        store = cache / "file_facts" / kind / f"{identity}.json"
    known = _load(store)
    fresh: dict[str, list[Any]] = {}

    def fact(path: Path) -> None:
        try:
            status = path.stat()
        except OSError as error:
            result.errors[path] = DataError(
                "the file is missing" if isinstance(error, FileNotFoundError) else f"{error.strerror}",
                str(path),
                "copy it there, or take the name out of the list that has it",
            )
            return
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
            remedy = "put the file itself there"
            result.errors[path] = DataError("a folder, pipe or device lies in place of the file", str(path), remedy)
            return
        entry = known.get(path.name)
        if entry is not None and entry[:2] == [status.st_size, status.st_mtime_ns]:
            result.facts[path] = entry[2]
            return
        try:
            result.facts[path] = value = compute(path)
        except DataError as error:
            result.errors[path] = error
            return
        if time.time_ns() - status.st_mtime_ns > _SETTLED_NS:
            fresh[path.name] = [status.st_size, status.st_mtime_ns, value]

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(fact, members))
    if store is not None and fresh:
        store.parent.mkdir(parents=True, exist_ok=True)
        # Read again: another process may have added its own meanwhile. A lost entry is only work.
        content = {"folder": str(folder.resolve()), "files": {**_load(store), **fresh}}
        write_file(store, json.dumps(content, separators=(",", ":")))


def _contents(store: Path | None) -> dict[str, Any]:
    if store is None:
        return {}
    try:
        content = json.loads(store.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # absent or damaged: it is only a cache
    return content if isinstance(content, dict) else {}


def _load(store: Path | None) -> Mapping[str, list[Any]]:
    if store is None:
        return {}
    try:
        files = json.loads(store.read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # absent or damaged: it is only a cache
    if not isinstance(files, dict):
        return {}
    return {name: entry for name, entry in files.items() if isinstance(entry, list) and len(entry) == 3}
