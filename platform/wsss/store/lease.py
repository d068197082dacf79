"""Holds a name in an object store, so that what two runs both need is computed once.

Object stores have no locks, so a lease stands in: an object that can only be created while absent
(`If-None-Match: *`) and that its owner rewrites regularly. A waiting run that sees no change for
`stale_seconds` of its own clock (clocks of two machines are never compared) removes the lease and competes
for a new one. What remains: a holder that was cut off for longer than that computes on while another takes
over. That costs time, never correctness: equal keys mean equal content, files are written whole, and the
manifest comes last and is written once.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from wsss.files import this_process
from wsss.store.backend import Backend, OnWait, StoreError

log = logging.getLogger(__name__)


class ConditionalWrites(Backend, Protocol):
    """A place that can create an object only while it is absent."""

    def write_if_absent(self, path: str, content: bytes) -> bool:
        """Put bytes at a path that holds nothing; False when it holds something."""
        ...


@contextmanager
def lease_single_flight(
    objects: ConditionalWrites, path: str, on_wait: OnWait | None, stale_seconds: float
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
            if _field(objects.read(path), "owner") == owner:
                objects.remove(path)
        except StoreError as error:  # what was computed counts; the lease goes stale by itself
            log.info("could not release the lease %s: %s", path, error.what)


def _lease(owner: str, beat: int) -> bytes:
    return json.dumps({"owner": owner, "holder": this_process(), "beat": beat}).encode()


def _field(lease: bytes | None, name: str) -> str | None:
    """What a lease says; None when there is none or somebody wrote something else there."""
    try:
        return None if lease is None else str(json.loads(lease)[name])
    except (ValueError, KeyError, TypeError):
        return None


def _acquire(objects: ConditionalWrites, path: str, owner: str, on_wait: OnWait | None, stale_seconds: float) -> None:
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
            if _field(objects.read(path), "owner") == owner:
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
            log.info("taking over the lease %s: no sign of life for %g s", path, stale_seconds)
            if objects.read(path) == lease:
                objects.remove(path)
            took_over = True
            continue
        time.sleep(pause)


def _beat(objects: ConditionalWrites, path: str, owner: str, stop: threading.Event, every: float) -> None:
    beat = 0
    while not stop.wait(every):
        beat += 1
        try:
            if _field(objects.read(path), "owner") != owner:
                log.warning("the lease %s was taken over by another run; both compute the same content", path)
                return
            objects.write(path, _lease(owner, beat))
        except StoreError as error:  # the next beat tries again; a store that stays away is told by the stage itself
            log.info("could not renew the lease %s: %s", path, error.what)
