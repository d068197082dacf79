"""The tracking that the rest of the platform calls: runs, metrics, parameters, tags, artifacts.

Every call writes to disk and returns; a background thread brings it to MLflow (see `spool` and `sender`).
Call it from the driver process only: a run has one writer.
"""

from __future__ import annotations

import getpass
import math
import os
import re
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from wsss.tracking.location import bound_requests, check_uri, default_uri
from wsss.tracking.names import NOTE_TAG, flatten_params, metric_name, tag_texts
from wsss.tracking.redact import redact_text
from wsss.tracking.sender import Outbox, TrackingReport, process_sender, report
from wsss.tracking.spool import ROOT, Event, Spool, TrackingError, now_ms
from wsss.tracking.view import ExperimentView

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]
_POINTS_PER_EVENT = 500
_CLOSE_SECONDS = 15.0


def open_tracker(
    uri: str | None, home: Path, experiment: str, note: str = "", view: ExperimentView | None = None
) -> Tracker:
    """A tracker for one experiment (`wsss.tracking.names`).

    Args:
        uri: an MLflow address; None is the database `<home>/mlflow.db` with artifacts in `<home>/mlartifacts`.
        home: folder of runs and records.
        experiment: MLflow experiment; created when missing.
        note: what people read above the list of its runs, Markdown; written when the experiment is created.
        view: what its page shows first, behind what runs before asked for.

    Raises:
        TrackingError: the address cannot work (whether its server answers is not asked here), or no experiment name.
    """
    home = Path(home).absolute()
    if not experiment.strip() or len(experiment) > 250:
        raise TrackingError(
            f"The experiment name {experiment!r} is not usable.", "", "Use a name of 1 to 250 characters."
        )
    bound_requests()
    return Tracker(check_uri(uri or default_uri(home)), home, experiment, note, view)


class Tracker:
    """Runs of one experiment at one address; call `close` at the end."""

    def __init__(
        self, uri: str, home: Path, experiment: str, note: str = "", view: ExperimentView | None = None
    ) -> None:
        self.uri = uri
        self.home = home
        self.experiment = experiment
        self.note = note
        self.view = view
        self._outboxes: dict[str, Outbox] = {}
        self._mutex = threading.RLock()

    def run(
        self,
        name: str,
        tags: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        parent: TrackedRun | str | None = None,
        *,
        key: str | None = None,
        dataset: tuple[str, str, str] | None = None,
        note: str = "",
    ) -> TrackedRun:
        """Start a run, or continue the one with the same key after an interruption.

        Args:
            name: what the MLflow table shows.
            tags: method, dataset, split, stage, stage_key, recipe, selection, git_commit, ...; None is left out.
            params: a recipe as nested mappings; flattened to dotted keys.
            parent: the run this one is nested in, or its key.
            key: identity of the run. Its first part is the run id, the folder of the record, which one process at a
                time may write: "20260101-1" is a run, "20260101-1/seed-0/cam" one nested in its record. A trial
                of another process has a run id of its own and names its `parent`. Made from `name` by default.
            dataset: (name, folder or address, content hash) of the data that it reads.
            note: what people read on the run's page, Markdown.

        Raises:
            TrackingError: another process writes this run, or the key is not usable.
        """
        parent_key = parent.key if isinstance(parent, TrackedRun) else parent
        own = _identity(name if key is None else key)
        full = own if key is not None or parent_key is None else f"{parent_key}/{own}"
        run_id, _, part = full.partition("/")
        if parent_key is None and part:
            parent_key = run_id
        parent_id, _, parent_part = (parent_key or "").partition("/")
        with self._mutex:
            run = TrackedRun(self._outbox(run_id).spool, part or ROOT)
            opened = {
                "name": name,
                "experiment": self.experiment,
                "experiment_note": self.note,
                "experiment_view": None if self.view is None or parent_id else asdict(self.view),
                "uri": redact_text(self.uri),
                "parent": {"run_id": parent_id, "run": parent_part or ROOT} if parent_id else None,
                "tags": _source_tags(tags or {}) | tag_texts({**(tags or {}), NOTE_TAG: note}),
            }
            run._write("open", opened)
            run.params(params or {})
            if dataset is not None and dataset[::2] not in run._spool.recorded(run._part).datasets:
                source = redact_text(dataset[1])
                run._write("dataset", {"name": dataset[0], "source": source, "digest": dataset[2]})
        return run

    def close(self, wait_seconds: float = _CLOSE_SECONDS) -> TrackingReport:
        """Send what is left, for `wait_seconds` at most, and let other processes write the runs.

        Returns:
            what is unsent; print its `message` when it is not empty.
        """
        with self._mutex:
            outboxes = list(self._outboxes.values())
            self._outboxes.clear()
        for outbox in outboxes:
            outbox.spool.sync_to_disk()
        process_sender.drain(outboxes, wait_seconds)
        result = report(outboxes, redact_text(self.uri), self.home)
        for outbox in outboxes:
            outbox.spool.close()
        return result

    def _outbox(self, run_id: str) -> Outbox:
        if run_id not in self._outboxes:
            outbox = Outbox(Spool(self.home, run_id), self.home, self.uri)
            self._outboxes[run_id] = outbox
            process_sender.add(outbox)
        return self._outboxes[run_id]


class TrackedRun:
    """One MLflow run; all methods return as soon as the event is on disk. Safe to call from several threads."""

    def __init__(self, spool: Spool, part: str) -> None:
        self._spool = spool
        self._part = part

    @property
    def key(self) -> str:
        """Identity: the run id, and for a nested run its part of the record after a slash."""
        return self._spool.run_id if self._part == ROOT else f"{self._spool.run_id}/{self._part}"

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers.

        Args:
            values: metric name -> value; names like "cam/miou_train", odd characters become "_".
            step: iteration or epoch of a curve. A step that is already recorded is not sent again (a resumed run
                passes it twice); a differing value is kept in the record as "repeat". None is a summary: the last
                value counts.

        Raises:
            TrackingError: a value is no number, or the disk refuses.
        """
        self._points([(name, value, step) for name, value in values.items()])

    def series(self, curves: Mapping[str, Sequence[tuple[int, float]]]) -> None:
        """Log whole curves: metric name -> [(step, value), ...]; the rules of `metrics` hold."""
        self._points([(name, value, int(step)) for name, curve in curves.items() for step, value in curve])

    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters, nested mappings as dotted keys.

        MLflow never changes a parameter; a value that differs from the recorded one becomes the tag
        `changed_param.<key>`.
        """
        with self._spool.mutex:
            known = self._spool.recorded(self._part).params
            flat = flatten_params(values)
            new = {key: value for key, value in flat.items() if key not in known}
            changed = {key: value for key, value in flat.items() if known.get(key, value) != value}
            if new:
                self._write("params", {"params": new})
            self.tags({f"changed_param.{key}": value for key, value in changed.items()})

    def tags(self, values: Mapping[str, Any]) -> None:
        """Set tags; None values are left out."""
        with self._spool.mutex:
            known = self._spool.recorded(self._part).tags
            new = {key: value for key, value in tag_texts(values).items() if known.get(key) != value}
            if new:
                self._write("tags", {"tags": new})

    def artifact(self, path: Path, folder: str = "") -> None:
        """Log a file, or all files below a folder, into the artifact folder `folder`; copied at once.

        Raises:
            TrackingError: the path does not exist or cannot be copied, or `folder` leaves the artifact root.
        """
        path = Path(path)
        if folder.startswith("/") or ".." in folder.split("/"):
            raise TrackingError(f"The artifact folder {folder!r} is not inside the run.", str(path), "Use a/b.")
        if not path.is_dir():
            self._file(path, folder.strip("/"))
            return
        for file in sorted(each for each in path.rglob("*") if each.is_file()):
            inner = file.parent.relative_to(path.parent).as_posix()
            self._file(file, "/".join(part for part in (folder.strip("/"), inner) if part))

    def finish(self, status: RunStatus = "FINISHED") -> None:
        """End the run. Opening it again continues it."""
        self._write("finish", {"status": status})
        self._spool.sync_to_disk()

    def _points(self, points: Iterable[tuple[str, float, int | None]]) -> None:
        with self._spool.mutex:
            known = self._spool.recorded(self._part).values
            fresh: list[tuple[str, float | str, int | None]] = []
            repeats: list[tuple[str, float | str, int | None]] = []
            seen: set[tuple[str, int | None]] = set()
            for raw_name, raw_value, step in points:
                name, value = metric_name(raw_name), _number(raw_name, raw_value)
                before = known.get((name, step))
                if before is not None and str(before) == str(value):
                    continue
                is_repeat = step is not None and (before is not None or (name, step) in seen)
                (repeats if is_repeat else fresh).append((name, value, step))
                seen.add((name, step))
            for kind, found in (("metrics", fresh), ("repeat", repeats)):
                for start in range(0, len(found), _POINTS_PER_EVENT):
                    self._write(kind, {"points": found[start : start + _POINTS_PER_EVENT]})

    def _file(self, path: Path, folder: str) -> None:
        digest = self._spool.keep_file(path)
        with self._spool.mutex:
            if self._spool.recorded(self._part).artifacts.get(f"{folder}/{path.name}") != digest:
                self._write("artifact", {"folder": folder, "name": path.name, "sha256": digest})

    def _write(self, kind: str, facts: Mapping[str, Any]) -> None:
        event: Event = {"kind": kind, "run": self._part, "time": now_ms(), **facts}
        self._spool.append(event)


def _identity(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._/-]+", "-", text).strip("-/.") or "run"


def _number(name: str, value: Any) -> float | str:
    """A value for JSON: non-finite ones as text ("nan", "inf"), which `float()` reads back."""
    try:
        value = float(value)
    except (TypeError, ValueError) as error:
        raise TrackingError(f"The metric {name} is no number: {value!r}", "", "Log texts as tags or params.") from error
    return value if math.isfinite(value) else str(value)


def _source_tags(tags: Mapping[str, Any]) -> dict[str, str]:
    """What MLflow's own columns show: user, source and version."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = str(os.getuid())
    source = {
        "mlflow.user": user,
        "mlflow.source.name": Path(sys.argv[0]).name or "python",
        "mlflow.source.type": "LOCAL",
    }
    commit = str(tags.get("git_commit") or "").removesuffix("-dirty")
    return source | ({"mlflow.source.git.commit": commit} if commit and commit != "unknown" else {})
