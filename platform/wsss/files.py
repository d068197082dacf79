"""Writes files that other processes may read at the same time, and locks between processes.

A file is filled beside its target and renamed, so that a reader sees the old content or the new one, never a part. The
writer holds a lock on the unfinished file. When the writer dies, the lock is free, and `remove_unfinished` removes it.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

UNFINISHED = ".writing-"
# Of these the system does not say which file it was, when an open file is written.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)


class LockHeld(Exception):
    """Another process or thread holds the lock; the text says which."""


def write_file(target: Path, content: bytes | str | Path, *, durable: bool = False) -> None:
    """Put bytes, text (UTF-8) or the content of a file at a path; folders are created.

    Args:
        durable: the content survives a power cut after the return. Slower: the disk is waited for.

    Raises:
        OSError: nothing has changed at the target.
    """
    with unfinished(target) as path:
        if isinstance(content, Path):
            shutil.copyfile(content, path)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        finish(path, target, durable=durable)


def write_json(target: Path, content: Any, *, sort_keys: bool = False) -> None:
    """Put a value at a path as JSON."""
    write_file(target, json.dumps(content, indent=1, sort_keys=sort_keys))


@contextmanager
def unfinished(target: Path) -> Iterator[Path]:
    """A new, empty file beside `target`, to be filled and handed to `finish`; without that it is removed at the end.

    Raises:
        OSError: also that of the block; it names the target when the disk refuses.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    path = target.with_name(f"{UNFINISHED}{target.name}-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    alive = _lock(path)
    try:
        with suppress(OSError):  # where a file system has no locks, the rubbish of a dead writer stays
            alive.acquire(timeout=0)  # creates the file
        yield path
    except OSError as error:
        if error.errno in _DISK_ERRORS and error.filename is None:
            error.filename = str(target)
        raise
    finally:
        with suppress(OSError):
            path.unlink()
        alive.release()


def finish(path: Path, target: Path, *, durable: bool = False) -> None:
    """Move a filled file to its target in one step. `durable` as in `write_file`."""
    if durable:
        _to_disk(path)
    path.replace(target)
    if durable:
        with suppress(OSError):  # some network file systems cannot sync a folder
            _to_disk(target.parent)


def remove_unfinished(folder: Path) -> None:
    """Remove what dead writers left anywhere below a folder."""
    for path in folder.rglob(f"{UNFINISHED}*"):
        with suppress(OSError), _lock(path).acquire(timeout=0):  # Timeout is an OSError: its writer lives
            path.unlink()


@contextmanager
def locked(path: Path, on_wait: Callable[[str], None] | None = None, *, wait: bool = True) -> Iterator[None]:
    """Hold a lock file against all processes and threads; the system frees it when its holder dies. Not re-entrant.

    The file stays: if it were removed, two holders could lock two different files of one name.

    Args:
        on_wait: called once, with a description of the holder, if this has to wait.
        wait: whether to wait for another holder.

    Raises:
        LockHeld: another one holds it, and `wait` is off.
        OSError: the file cannot be created, or its file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = _lock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        holder = _holder(path)
        if not wait:
            raise LockHeld(holder) from None
        if on_wait is not None:
            on_wait(holder)
        lock.acquire()
    try:
        with suppress(OSError):  # only for those who wait; a full disk must not stop anybody here
            path.write_text(this_process())
        yield
    finally:
        lock.release()


def this_process() -> str:
    """This process, for people: process id and host."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def _lock(path: Path) -> FileLock:
    # Without `fallback_to_soft=False` a file system without locks gets markers that outlive a dead holder.
    return FileLock(path, thread_local=False, fallback_to_soft=False)


def _holder(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(errors="replace").strip() or "another process"
    return "another process"


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
