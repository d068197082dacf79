"""The record of one run on disk: every tracking event is a line of `events.jsonl` before anything is sent.

Layout under `<home>/runs/<run_id>/tracking/`:

    events.jsonl    one JSON object a line, append-only; the record that outlives every server
    artifacts/      copies of logged files, `<digest>/<file name>`, so a later send finds what was logged
    cursor.json     how far the record has been sent, and to which address; losing it only causes a re-send
    rejected.jsonl  what the server refused for good, with its reason
    lock            held by the process that writes the run (released by the system when it dies)

A run id holds one root run and its nested runs ("seed-0/cam"), told apart by `run` in every event.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsss.errors import WsssError
from wsss.files import LockHeld, finish, locked, unfinished, write_json

# What events of the root run carry as "run"; no key of a nested run can be this.
ROOT = "."
Event = dict[str, Any]
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


class TrackingError(WsssError):
    """Tracking was asked for something it cannot do (a wrong address, a run in use, a full disk)."""


class RecordLost(Exception):
    """The MLflow run of a cursor is gone (a new database, a deleted run): send the record from its start."""


@dataclass
class Cursor:
    """How far a run's events have been sent.

    Attributes:
        uri: address they were sent to, without credentials; another address means starting over.
        offset: bytes of `events.jsonl` that are sent.
        runs: run key -> MLflow run id.
        rejected: count of entries the server refused for good.
    """

    uri: str = ""
    offset: int = 0
    runs: dict[str, str] = field(default_factory=dict)
    rejected: int = 0


@dataclass
class RecordedRun:
    """What is already on disk of one run key; the writer uses it to continue without doubling anything."""

    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    values: dict[tuple[str, int | None], float] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)
    datasets: set[tuple[str, str]] = field(default_factory=set)
    status: str | None = None
    uri: str = ""

    def apply(self, event: Mapping[str, Any]) -> None:
        """Take one event into the picture."""
        kind = event["kind"]
        if kind == "open":
            self.uri, self.status = event["uri"], None
            self.tags.update(event["tags"])
        elif kind == "params":
            self.params.update(event["params"])
        elif kind == "tags":
            self.tags.update(event["tags"])
        elif kind == "metrics":
            self.values.update({(name, step): float(value) for name, value, step in event["points"]})
        elif kind == "artifact":
            self.artifacts[f"{event['folder']}/{event['name']}"] = event["sha256"]
        elif kind == "dataset":
            self.datasets.add((event["name"], event["digest"]))
        elif kind == "finish":
            self.status = event["status"]


class Spool:
    """Appends the events of one run id; only one process at a time may hold it.

    Raises:
        TrackingError: the run id is no folder name, another process writes this run, or the disk refuses.
    """

    def __init__(self, home: Path, run_id: str) -> None:
        self.run_id = run_id
        self.folder = tracking_folder(home, run_id)
        self.runs: dict[str, RecordedRun] = {}
        # Held around a read-decide-append sequence of several threads.
        self.mutex = threading.RLock()
        self._unsynced = False
        self._lock = ExitStack()
        try:
            self._lock.enter_context(locked(self.folder / "lock", wait=False))
            self._file = (self.folder / "events.jsonl").open("ab", buffering=0)
        except LockHeld as error:
            raise TrackingError(
                f"The run {run_id} is being written by another process: {error}.",
                str(self.folder),
                "Wait for that process to end, then run the same command again.",
            ) from error
        except OSError as error:
            raise _disk_error(self.folder, error) from error
        events, self.size, _ = read_events(self.folder, 0, None)
        # A line that a killed process left half written is no event: drop it before the next event is appended.
        os.ftruncate(self._file.fileno(), self.size)
        for event in events:
            self.recorded(event["run"]).apply(event)

    def recorded(self, run: str) -> RecordedRun:
        """The picture of one run key, empty when nothing is recorded yet."""
        return self.runs.setdefault(run, RecordedRun())

    def append(self, event: Event) -> None:
        """Write one event through to the system (safe against SIGKILL); `sync_to_disk` makes it power-safe."""
        line = (json.dumps(event, separators=(",", ":")) + "\n").encode()
        with self.mutex:
            try:
                written = self._file.write(line)
                if written != len(line):
                    raise OSError(f"the disk is full, {written} of {len(line)} bytes were written")
            except OSError as error:
                with suppress(OSError):  # a disk that refuses everything; half a line is dropped at the next start
                    os.ftruncate(self._file.fileno(), self.size)
                raise _disk_error(self.folder, error) from error
            self.size += len(line)
            self._unsynced = True
            self.recorded(event["run"]).apply(event)

    def sync_to_disk(self) -> None:
        """fsync what was appended since the last call. TrackingError: the disk refuses."""
        with self.mutex:
            if self._unsynced and not self._file.closed:
                try:
                    os.fsync(self._file.fileno())
                except OSError as error:
                    raise _disk_error(self.folder, error) from error
                self._unsynced = False

    def keep_file(self, source: Path) -> str:
        """Copy a file into the record; returns its sha256 (hex).

        Raises:
            TrackingError: the file cannot be read or copied.
        """
        try:
            with unfinished(self.folder / "artifacts" / source.name) as partial:
                # Hash the copy, not the source: a source that is still being written must not get a wrong digest.
                shutil.copyfile(source, partial)
                with partial.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                target = kept_file(self.folder, digest, source.name)
                target.parent.mkdir(exist_ok=True)
                finish(partial, target, durable=True)
        except OSError as error:
            raise TrackingError(
                f"An artifact could not be kept for tracking: {error}",
                str(source),
                "Write the file completely before logging it, and check the free space of the home folder.",
            ) from error
        return digest

    def close(self) -> None:
        """Flush, and let other processes write this run."""
        with self.mutex:
            self.sync_to_disk()
            self._file.close()
            self._lock.close()


def tracking_folder(home: Path, run_id: str) -> Path:
    """The folder of a run's events.

    Raises:
        TrackingError: the run id is not usable as a folder name.
    """
    if not _RUN_ID.fullmatch(run_id):
        raise TrackingError(
            f"The run id {run_id!r} is no folder name.", "", "Use letters, digits, '.', '_' and '-', 200 at most."
        )
    return home / "runs" / run_id / "tracking"


def kept_file(folder: Path, sha256: str, name: str) -> Path:
    """Where `Spool.keep_file` put a file."""
    return folder / "artifacts" / sha256[:16] / name


def read_events(folder: Path, offset: int, limit: int | None) -> tuple[list[Event], int, int]:
    """Whole events from a byte offset on.

    Args:
        limit: bytes after which reading stops, at the end of a line; None reads all.

    Returns:
        events, the offset after the last one read, and how many complete lines could not be parsed.
        A last line without its newline is not read: its writer may still be at it, or died in it.
    """
    events: list[Event] = []
    damaged, start = 0, offset
    path = folder / "events.jsonl"
    if not path.exists():
        return events, offset, damaged
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                break
            offset += len(line)
            try:
                events.append(json.loads(line))
            except ValueError:
                damaged += 1
            if limit is not None and offset - start >= limit:
                break
    return events, offset, damaged


def read_cursor(folder: Path) -> Cursor:
    """The cursor, or one at the start when there is none that can be read (sending again changes nothing)."""
    try:
        found = json.loads((folder / "cursor.json").read_text(encoding="utf-8"))
        return Cursor(str(found["uri"]), int(found["offset"]), dict(found["runs"]), int(found["rejected"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Cursor()


def write_cursor(folder: Path, cursor: Cursor) -> None:
    """Replace the cursor in one step."""
    write_json(folder / "cursor.json", vars(cursor))


def append_rejected(folder: Path, entries: list[Mapping[str, Any]]) -> None:
    """Note what the server refused for good; the numbers themselves stay in `events.jsonl`."""
    with (folder / "rejected.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)


def now_ms() -> int:
    """Milliseconds since 1970, the resolution MLflow keeps."""
    return time.time_ns() // 1_000_000


def _disk_error(folder: Path, error: OSError) -> TrackingError:
    return TrackingError(
        f"The tracking record cannot be written: {error}",
        str(folder),
        "Check the free space and the permissions of the home folder; the run continues where it stopped.",
    )
