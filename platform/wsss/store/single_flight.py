"""Hold a name exclusively, so that what two runs both need is computed once.

Local folders use `flock`: the system itself frees it when the holder dies, so a waiting run takes over at
once.

Object stores have no locks, so a lease stands in: an object that can only be created while absent
(`If-None-Match: *`) and that its owner rewrites regularly. A waiting run that sees no change for
`stale_seconds` of its own clock (clocks of two machines are never compared) removes the lease and competes
for a new one. What remains: a holder that was cut off for longer than that computes on while another takes
over. That costs time, never correctness: equal keys mean equal content, files are written whole, and the
manifest comes last and is written once.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from wsss.store.backend import OnWait, StoreError

log = logging.getLogger(__name__)

_held: set[int] = set()


def _close_inherited() -> None:
    # A forked child shares the lock; if it outlived a killed parent, nobody could take over.
    for descriptor in list(_held):
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_inherited)


def whoami() -> str:
    """The process, for people: host and process id."""
    return f"process {os.getpid()} on {socket.gethostname()}"


@contextmanager
def flock_single_flight(lock: Path, on_wait: OnWait | None) -> Iterator[None]:
    """Hold a lock file. Works between processes and between threads of one process; not re-entrant.

    The file itself stays: removing a lock file would let two holders lock two different files of one name.

    Raises:
        StoreError: the lock file can not be created, or its file system has no locks.
    """
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise StoreError(
            f"can not create a lock file: {error.strerror}",
            str(lock),
            "choose a store folder that you may write to",
        ) from error
    _held.add(descriptor)
    try:
        _lock(descriptor, lock, on_wait)
        yield
    finally:
        if descriptor in _held:  # not in a forked child, which has closed it already
            _held.discard(descriptor)
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


def _lock(descriptor: int, lock: Path, on_wait: OnWait | None) -> None:
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if on_wait is not None:
                on_wait(os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        raise StoreError(
            f"can not lock a file here: {error.strerror}",
            str(lock),
            "put the store on a local disk, on NFS 4, or in an object store (s3://...)",
        ) from error
    with suppress(OSError):  # only told to those who wait; a full disk must not stop anybody here
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, whoami().encode(), 0)


class LeaseObjects(Protocol):
    """What a lease needs of an object store."""

    def read(self, path: str) -> bytes | None: ...
    def write_if_absent(self, path: str, content: bytes) -> bool: ...
    def write(self, path: str, content: bytes) -> None: ...
    def remove(self, path: str) -> None: ...


@contextmanager
def lease_single_flight(
    objects: LeaseObjects, path: str, on_wait: OnWait | None, stale_seconds: float
) -> Iterator[None]:
    """Hold a lease object at `path`, renewed by a thread every quarter of `stale_seconds`."""
    owner = uuid.uuid4().hex
    _acquire(objects, path, owner, on_wait, stale_seconds)
    stop = threading.Event()
    heart = threading.Thread(
        target=_beat, args=(objects, path, owner, stop, stale_seconds / 4), name="wsss-lease", daemon=True
    )
    heart.start()
    try:
        yield
    finally:
        stop.set()
        heart.join()
        try:
            if _owner(objects.read(path)) == owner:
                objects.remove(path)
        except StoreError as error:  # what was computed counts; the lease goes stale by itself
            log.warning("could not release the lease %s: %s", path, error.what)


def _lease(owner: str, beat: int) -> bytes:
    return json.dumps({"owner": owner, "holder": whoami(), "beat": beat}).encode()


def _field(lease: bytes | None, name: str) -> str | None:
    """What a lease says; None when there is none or somebody wrote something else there."""
    try:
        return None if lease is None else str(json.loads(lease)[name])
    except (ValueError, KeyError, TypeError):
        return None


def _owner(lease: bytes | None) -> str | None:
    return _field(lease, "owner")


def _acquire(objects: LeaseObjects, path: str, owner: str, on_wait: OnWait | None, stale_seconds: float) -> None:
    pause = min(1.0, stale_seconds / 10)
    told = took_over = False
    seen: bytes | None = None
    changed_at = time.monotonic()
    while True:
        if objects.write_if_absent(path, _lease(owner, 0)):
            # Two waiting runs may both have removed a stale lease, the second one that of the first: after a
            # pause the content tells who stays. Also read back for stores that ignore the condition.
            if took_over:
                time.sleep(pause)
            if _owner(objects.read(path)) == owner:
                return
        lease = objects.read(path)
        if lease is None:
            continue
        if not told and on_wait is not None:
            on_wait(_field(lease, "holder") or "another run")
        told = True
        if lease != seen:
            seen, changed_at = lease, time.monotonic()
        elif time.monotonic() - changed_at > stale_seconds:
            log.warning("taking over the lease %s: no sign of life for %g s", path, stale_seconds)
            if objects.read(path) == lease:
                objects.remove(path)
            took_over = True
            continue
        time.sleep(pause)


def _beat(objects: LeaseObjects, path: str, owner: str, stop: threading.Event, every: float) -> None:
    beat = 0
    while not stop.wait(every):
        beat += 1
        try:
            if _owner(objects.read(path)) != owner:
                log.warning("the lease %s was taken over by another run; both compute the same content", path)
                return
            objects.write(path, _lease(owner, beat))
        except StoreError as error:  # a hiccup: the next beat tries again
            log.warning("could not renew the lease %s: %s", path, error.what)
