"""Sends recorded events in the background: one thread per process, patient with a server that is away."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from wsss.tracking.location import bound_requests, check_uri, default_uri, uri_with_credentials
from wsss.tracking.redact import redact_text
from wsss.tracking.spool import (
    ROOT,
    Cursor,
    RecordLost,
    Spool,
    TrackingError,
    append_rejected,
    now_ms,
    read_cursor,
    read_events,
    write_cursor,
)

if TYPE_CHECKING:
    from wsss.tracking.delivery import Destination, RunDelivery

# Of one thread: (address, home folder) -> connection.
Connections: TypeAlias = "dict[tuple[str, Path], Destination]"

_log = logging.getLogger(__name__)

# Small enough that a chunk interrupted in the middle costs little to send again.
_CHUNK_BYTES = 1 << 18
_POLL_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0
# While somebody waits in close(), a server that is just coming back should be noticed at once.
_HURRIED_PAUSE_SECONDS = 1.0


@dataclass(frozen=True)
class TrackingReport:
    """What became of the recorded events.

    Attributes:
        address: where they go, without credentials.
        unsent: number of events that are only on disk.
        rejected: number of entries that the server refused for good, since the start of their runs.
        folders: the records of the runs with such events or entries.
        reason: why, "" when all is well.
    """

    address: str
    unsent: int
    rejected: int
    folders: tuple[Path, ...]
    reason: str
    home: Path

    @property
    def complete(self) -> bool:
        """Everything has arrived."""
        return not self.unsent and not self.rejected

    @property
    def message(self) -> str:
        """What, where and what to do, for the user; "" when everything has arrived."""
        if self.complete:
            return ""
        where = "\n".join(f"         {folder}" for folder in self.folders)
        lines = []
        if self.unsent:
            lines.append(f"{self.unsent} tracking events have not reached {self.address}; no number is lost.")
        if self.rejected:
            lines.append(f"{self.rejected} tracking entries were refused (see rejected.jsonl).")
        lines += [f"  why:   {self.reason}", f"  where: {where.strip()}"]
        if self.unsent:
            lines.append(f"  do:    wsss track sync --home {self.home}")
        return "\n".join(lines)


class Outbox:
    """What one run still has to send, and how the last attempt went. Used by one thread at a time."""

    def __init__(self, spool: Spool, home: Path, uri: str) -> None:
        self.spool = spool
        self.home = home
        self.uri = uri
        self.address = redact_text(uri)
        self.cursor = read_cursor(spool.folder)
        if self.cursor.uri != self.address or self.cursor.offset > spool.size:
            self.cursor = Cursor(self.address)
        self.reason = ""
        self.failures = 0
        self.failed_at = 0.0
        self._warned = False
        self.empty = threading.Event()
        self._delivery: RunDelivery | None = None

    def send(self, connections: Connections) -> bool:
        """Send one chunk; True when more is waiting, False when empty or failed (then `reason` says why)."""
        self.spool.sync_to_disk()
        if self.cursor.offset >= self.spool.size:
            self.empty.set()
            return False
        events, offset, damaged = read_events(self.spool.folder, self.cursor.offset, _CHUNK_BYTES)
        address = (self.uri, self.home)
        try:
            if self._delivery is None:
                # mlflow takes seconds to import: paid here, in the sender's thread, and never when nothing is tracked.
                from wsss.tracking.delivery import Destination, RunDelivery

                if address not in connections:
                    connections[address] = Destination(*address)
                self._delivery = RunDelivery(connections[address], self.spool.run_id, self.cursor)
            rejected = self._delivery.deliver(events)
        except Exception as error:
            # Whatever it is, the record stays and the run goes on; the reason reaches the user through close().
            self._failed(error)
            # Connect anew next time: the server may come back as another one.
            self._delivery = None
            connections.pop(address, None)
            return False
        if rejected:
            append_rejected(self.spool.folder, rejected)
        if rejected or damaged:
            self.reason = rejected[-1]["reason"].splitlines()[0] if rejected else "damaged lines in events.jsonl"
        else:
            self.reason = self.reason if self.cursor.rejected else ""
        self.cursor.offset = offset
        self.cursor.rejected += len(rejected) + damaged
        write_cursor(self.spool.folder, self.cursor)
        if self.failures:
            _log.info("tracking of %s reaches %s again", self.spool.run_id, self.address)
        self.failures = 0
        if self.cursor.offset < self.spool.size:
            return True
        self.empty.set()
        return False

    def seconds_to_wait(self, hurried: bool) -> float:
        """Seconds until the next attempt makes sense; 0 when the last one succeeded."""
        if not self.failures:
            return 0.0
        longest = _HURRIED_PAUSE_SECONDS if hurried else _LONGEST_PAUSE_SECONDS
        pause = min(2.0 ** min(self.failures - 1, 10), longest)
        return max(0.0, self.failed_at + pause - time.monotonic())

    def _failed(self, error: Exception) -> None:
        self.failures += 1
        self.failed_at = time.monotonic()
        self.reason = _first_line(error)
        if isinstance(error, RecordLost):
            self.cursor = Cursor(self.address)
        elif not self._warned:  # once; what is unsent is said at the end as well
            self._warned = True
            _log.warning(
                "tracking of %s cannot reach %s (%s); the run goes on, its numbers are in %s",
                self.spool.run_id,
                self.address,
                self.reason,
                self.spool.folder,
            )


class Sender:
    """The thread that empties the outboxes of this process; it lives while there is one."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._outboxes: list[Outbox] = []
        self._hurried: set[int] = set()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._connections: Connections = {}

    def add(self, outbox: Outbox) -> None:
        """Take an outbox into the rounds."""
        with self._mutex:
            self._outboxes.append(outbox)
            if self._thread is None:
                # A daemon: a call that hangs in the network must not keep a finished run's process alive.
                self._thread = threading.Thread(target=self._run, name="wsss-tracking", daemon=True)
                self._thread.start()

    def drain(self, outboxes: Iterable[Outbox], wait_seconds: float) -> None:
        """Wait until these outboxes are empty, for `wait_seconds` at most."""
        outboxes = list(outboxes)
        deadline = time.monotonic() + wait_seconds
        with self._mutex:
            for outbox in outboxes:
                outbox.empty.clear()
                outbox.failures = 0
                self._hurried.add(id(outbox))
        self._wake.set()
        for outbox in outboxes:
            outbox.empty.wait(max(0.0, deadline - time.monotonic()))
        with self._mutex:
            self._outboxes = [each for each in self._outboxes if each not in outboxes]
            self._hurried.difference_update(id(each) for each in outboxes)
        self._wake.set()

    def _run(self) -> None:
        while True:
            with self._mutex:
                if not self._outboxes:
                    self._thread = None
                    return
                outboxes = list(self._outboxes)
            for outbox in outboxes:
                self._empty(outbox)
            self._wake.wait(_POLL_SECONDS)
            self._wake.clear()

    def _empty(self, outbox: Outbox) -> None:
        if outbox.seconds_to_wait(id(outbox) in self._hurried):
            return
        try:
            while outbox in self._outboxes and outbox.send(self._connections):
                pass
        except (OSError, ValueError) as error:
            # The disk or the record itself; the writer sees the same and says so where it can be handled.
            outbox.reason = _first_line(error)


process_sender = Sender()


def _send_until(outboxes: list[Outbox], wait_seconds: float) -> None:
    """Send in the calling thread until all is sent or the time is over; every outbox gets one attempt."""
    connections: Connections = {}
    deadline = time.monotonic() + wait_seconds
    waiting = outboxes
    while waiting:
        for outbox in waiting:
            while outbox.send(connections):
                pass
        waiting = [each for each in waiting if not each.empty.is_set()]
        if not waiting or time.monotonic() >= deadline:
            return
        time.sleep(max(0.0, min(_HURRIED_PAUSE_SECONDS, deadline - time.monotonic())))


def sync(home: Path, uri: str | None = None, wait_seconds: float = 60.0) -> TrackingReport:
    """Send the leftovers of all runs under `home` (`wsss track sync`); calling it again changes nothing.

    Runs that a process is writing right now are left to it. A run whose process died is marked KILLED (it is
    RUNNING again when it is continued).

    Args:
        uri: send to this address instead of the recorded one; a run that was sent elsewhere is sent whole.
        wait_seconds: how long to keep trying when a server does not answer; every run gets one attempt.

    Raises:
        TrackingError: the address cannot work.
    """
    home = Path(home).absolute()
    bound_requests()
    if uri is not None:
        check_uri(uri)
    outboxes: list[Outbox] = []
    needs_credentials: list[Outbox] = []
    try:
        for record in sorted((home / "runs").glob("*/tracking/events.jsonl")):
            try:
                spool = Spool(home, record.parent.parent.name)
            except TrackingError:  # its own process sends it
                continue
            for key, run in list(spool.runs.items()):
                if run.uri and run.status is None:
                    spool.append({"kind": "finish", "run": key, "time": now_ms(), "status": "KILLED"})
            runs = [spool.recorded(ROOT), *spool.runs.values()]
            recorded = next((run.uri for run in runs if run.uri), default_uri(home))
            address = uri or uri_with_credentials(recorded)
            outbox = Outbox(spool, home, address or recorded)
            if outbox.cursor.offset >= spool.size:
                spool.close()
            elif address is None:
                remedy = "set MLFLOW_TRACKING_URI or pass --tracking"
                outbox.reason = f"the credentials of {recorded} are not recorded: {remedy}"
                needs_credentials.append(outbox)
            else:
                outboxes.append(outbox)
        _send_until(outboxes, wait_seconds)
        everything = outboxes + needs_credentials
        addresses = dict.fromkeys(outbox.address for outbox in everything)
        return report(everything, ", ".join(addresses) or redact_text(uri or default_uri(home)), home)
    finally:
        for outbox in outboxes + needs_credentials:
            outbox.spool.close()


def report(outboxes: Iterable[Outbox], address: str, home: Path) -> TrackingReport:
    """The state of these outboxes as one report."""
    found = [(outbox, len(read_events(outbox.spool.folder, outbox.cursor.offset, None)[0])) for outbox in outboxes]
    concerned = [(outbox, unsent) for outbox, unsent in found if unsent or outbox.cursor.rejected]
    silent, refused = "the server did not answer in time", "refused earlier, the reasons are in rejected.jsonl"
    reasons = [outbox.reason or (silent if unsent else refused) for outbox, unsent in concerned]
    return TrackingReport(
        address=address,
        unsent=sum(unsent for _, unsent in found),
        rejected=sum(outbox.cursor.rejected for outbox, _ in found),
        folders=tuple(outbox.spool.folder for outbox, _ in concerned),
        reason="; ".join(dict.fromkeys(reasons)),
        home=home,
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    # SQLAlchemy begins with advice to programmers; what the database said stands behind the name of its error.
    lines = [line for line in lines if re.match(r"\([\w.]+\) ", line)] or lines
    return redact_text(f"{type(error).__name__}: {lines[0] if lines else 'no message'}")[:400]
