"""Packed data sets on this machine: each is fetched once, checked, kept within a bound, and never removed while in use.

Below `<home>/data/fetched`:

    <digest of the index>/index.json      what belongs there
    <digest of the index>/files/...       the data set, like a folder that somebody unpacked
    <digest of the index>.lock            held by every process that uses it; its time is that of the last use
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from wsss.data.errors import DataError
from wsss.data.packed import INDEX, PackedFile, PackedIndex, decode_index, read_index, unpack
from wsss.files import locked, remove_unfinished, write_file
from wsss.formatting import byte_count
from wsss.store import open_store
from wsss.store.s3 import S3Files

LIMIT_VARIABLE = "WSSS_DATA_GIGABYTES"
_FILES = "files"
# Room that is left to everything else on the disk.
_SPARE_BYTES = 500_000_000

# Called with (bytes done, bytes to fetch).
Progress = Callable[[int, int], None]

# Locks of the data sets that this process uses, until it ends.
_used: dict[Path, IO[str]] = {}


@dataclass(frozen=True)
class Fetched:
    """A packed data set on this machine. `received`: bytes that were fetched now."""

    root: Path
    index: PackedIndex
    received: int


def packed_files(address: str) -> S3Files:
    """The objects of a packed data set. DataError when the address is none of an object store."""
    backend = open_store(address, Path()).backend
    if not isinstance(backend, S3Files):
        raise DataError(
            "packed data sets lie in an object store", address, "give an address such as s3://bucket/prefix"
        )
    return backend


def fetch_packed(
    address: str, home: Path, digest: str | None = None, progress: Progress | None = None, spare: int = _SPARE_BYTES
) -> Fetched:
    """The packed data set in a folder of this machine, fetched as far as it is not there.

    Every file is checked against the index when it comes; its size each time. An interrupted fetch continues. Of
    several processes one fetches, the others wait. From here on until this process ends the folder stays.

    Args:
        home: folder of this machine (`WSSS_HOME`).
        digest: of the index that is meant; where the folder is there already, the object store is then not asked.
        spare: bytes that must stay free on the disk.

    Raises:
        DataError: nothing is packed there, it is damaged, or disk or bound do not hold it; with this machine's name.
        StoreError: the object store does not answer.
    """
    place = home.absolute() / "data" / "fetched"
    source = packed_files(address)
    index = _known_index(place, digest) or read_index(source)
    if digest is not None and index.digest != digest:
        raise DataError(
            "the packed data set is another than the run began with",
            source.url,
            "push to an address of its own, or start the run again",
        )
    folder = place / index.digest
    try:
        place.mkdir(parents=True, exist_ok=True)
        _use(folder)
        with locked(place / f".{index.digest}.fetching"):
            received = _complete(source, index, folder, progress, spare)
    except OSError as error:
        raise DataError(
            f"the data set cannot be kept on {machine()}: {error.strerror or error}",
            str(folder),
            "check free space and permissions there, or set WSSS_HOME on that machine to another folder",
        ) from error
    return Fetched(folder / _FILES, index, received)


def machine() -> str:
    """This machine's name, for people."""
    return f"node {socket.gethostname()}"


def _known_index(place: Path, digest: str | None) -> PackedIndex | None:
    if digest is None:
        return None
    path = place / digest / INDEX
    with suppress(OSError, DataError):
        index = decode_index(path.read_bytes(), str(path))
        return index if index.digest == digest else None
    return None


def _use(folder: Path) -> None:
    """Keep the folder from being removed until this process ends."""
    lock_file = folder.with_name(f"{folder.name}.lock")
    if folder not in _used:
        lock = lock_file.open("a")
        fcntl.flock(lock, fcntl.LOCK_SH)  # waits while somebody removes it
        _used[folder] = lock
    os.utime(lock_file)


def _complete(source: S3Files, index: PackedIndex, folder: Path, progress: Progress | None, spare: int) -> int:
    """Fetch what is missing of the folder. Returns how many bytes. The caller holds its lock."""
    root = folder / _FILES
    there = _sizes(root)
    missing = {
        pack: wanted
        for pack in index.packs
        if (wanted := [file for file in pack.files if there.get(file.path) != file.size])
    }
    total = sum(file.size for wanted in missing.values() for file in wanted)
    if not missing and (folder / INDEX).is_file():
        return 0
    if folder.is_dir():
        remove_unfinished(folder)
    _make_room(folder, index, total, spare)
    write_file(folder / INDEX, index.encoded())
    done = 0

    def save(file: PackedFile, content: bytes) -> None:
        nonlocal done
        write_file(root / file.path, content)
        done += file.size
        if progress is not None:
            progress(done, total)

    for pack, wanted in missing.items():
        unpack(source, pack, wanted, save)
    return total


def _sizes(root: Path) -> dict[str, int]:
    """Path below the root -> bytes, of all files that are there."""
    found: dict[str, int] = {}
    for at, _, _ in os.walk(root):
        with suppress(OSError), os.scandir(at) as entries:
            for entry in entries:
                if entry.is_file(follow_symlinks=False):
                    found[Path(entry.path).relative_to(root).as_posix()] = entry.stat().st_size
    return found


def _make_room(folder: Path, index: PackedIndex, missing: int, spare: int) -> None:
    """Remove what was used longest ago until the data set fits bound and disk. Raises DataError if it never does."""
    limit = data_limit()
    others = {path: _size_of(path) for path in folder.parent.iterdir() if path.is_dir() and path != folder}
    for path in [path for path in others if path.name.startswith(".removed-")]:  # of a removal that was killed
        shutil.rmtree(path, ignore_errors=True)
        del others[path]
    by_age = sorted(others, key=_last_use)

    def fault() -> str:
        free = shutil.disk_usage(folder.parent).free
        if limit is not None and sum(others.values()) + index.size > limit:
            kept = sum(others.values())
            beside = f" beside {byte_count(kept)} of others in use" if kept else ""
            return f"{byte_count(limit)} are what {LIMIT_VARIABLE} allows{beside}"
        return f"{byte_count(free)} are free on its disk" if missing + spare > free else ""

    while (short := fault()) and by_age:
        oldest = by_age.pop(0)
        with _unused(oldest) as unused:
            if unused:
                away = oldest.with_name(f".removed-{oldest.name}-{uuid.uuid4().hex[:8]}")
                oldest.rename(away)
                shutil.rmtree(away, ignore_errors=True)
                del others[oldest]
    if short:
        raise DataError(
            f"{machine()} has no room for the data set: it takes {byte_count(index.size)}, {byte_count(missing)} of "
            f"them are missing, and {short}",
            str(folder),
            f"free some space there, raise {LIMIT_VARIABLE}, or set WSSS_HOME to a folder on a larger disk",
        )


def data_limit() -> int | None:
    """Bytes that fetched data sets may take on this machine, from WSSS_DATA_GIGABYTES; None: as the disk holds.

    Raises:
        DataError: the variable is no number above 0.
    """
    text = os.environ.get(LIMIT_VARIABLE, "")
    if not text:
        return None
    try:
        limit = float(text)
    except ValueError:
        limit = 0.0
    if not 0 < limit < float("inf"):
        raise DataError(
            f"{text[:80]!r} is no number of gigabytes above 0",
            LIMIT_VARIABLE,
            "give the gigabytes that fetched data sets may take, for example 200, or leave it out",
        )
    return int(1e9 * limit)


@contextmanager
def _unused(folder: Path) -> Iterator[bool]:
    """Whether no process uses the folder; then none begins to within the context."""
    with folder.with_name(f"{folder.name}.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _size_of(folder: Path) -> int:
    try:
        return decode_index((folder / INDEX).read_bytes(), str(folder)).size
    except (OSError, DataError):
        return sum(_sizes(folder).values())


def _last_use(folder: Path) -> float:
    try:
        return folder.with_name(f"{folder.name}.lock").stat().st_mtime
    except OSError:
        return 0.0
