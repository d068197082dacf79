"""Brings recorded events to MLflow; the only module that imports mlflow.

Everything here may run twice over the same events without changing the result: metrics carry the time at which
they were recorded (MLflow keeps one row for equal name, time, step and value), runs are found again through the
tags `wsss.run_id` and `wsss.run_key`, artifacts have fixed paths, and tags, parameters and datasets are sets.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, LifecycleStage, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INVALID_PARAMETER_VALUE,
    PERMISSION_DENIED,
    RESOURCE_ALREADY_EXISTS,
    RESOURCE_DOES_NOT_EXIST,
    ErrorCode,
)
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from wsss.files import finish, locked, unfinished
from wsss.tracking.location import artifact_root, sqlite_path, sqlite_uri
from wsss.tracking.names import NOTE_TAG
from wsss.tracking.redact import redact_text
from wsss.tracking.spool import ROOT, Cursor, Event, RecordLost, kept_file, tracking_folder
from wsss.tracking.view import VIEW_TAG, ExperimentView, page_of, view_of

RUN_ID_TAG = "wsss.run_id"
RUN_KEY_TAG = "wsss.run_key"
_METRICS_PER_BATCH = 500
# 50 texts of up to 8000 characters stay under MLflow's 1 MB a request even in two-byte characters.
_TEXTS_PER_BATCH = 50
# Enough to tell data apart in a column of the UI; the whole digest is in the tag data_manifest.
_DIGEST_CHARACTERS = 12
_REFUSED_UPLOADS = (400, 413, 415, 422)
_INVALID = ErrorCode.Name(INVALID_PARAMETER_VALUE)
_MISSING = ErrorCode.Name(RESOURCE_DOES_NOT_EXIST)
_DENIED = ErrorCode.Name(PERMISSION_DENIED)
_EXISTS = ErrorCode.Name(RESOURCE_ALREADY_EXISTS)


class Destination:
    """One MLflow address: its client and the experiments already looked up.

    Building it connects: it creates and migrates a missing SQLite file, which takes seconds.
    """

    def __init__(self, uri: str, home: Path) -> None:
        # Migrations and retries are our business: their progress lines do not belong in a run's output.
        for logger in ("alembic", "urllib3.connectionpool"):
            logging.getLogger(logger).setLevel(logging.ERROR)
        # Of a database that refuses MLflow prints a traceback and raises; what it raises is the reason that people see.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        # A server's client prints the address of every run that ends.
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        self.home = home
        database = sqlite_path(uri)
        if database is not None:
            _create_database(database, artifact_root(home))
        # A server stores artifacts itself; beside a bare database they go to the home folder, never to the
        # working folder as MLflow would have it.
        proxied = uri.lower().startswith(("http://", "https://"))
        self._artifacts = None if proxied else artifact_root(home).as_uri()
        self.client = MlflowClient(tracking_uri=uri)
        self._experiments: dict[str, str] = {}

    def experiment_id(self, name: str, note: str = "") -> str:
        """The id of the experiment, created (with the note) or restored when needed."""
        if name not in self._experiments:
            found = self.client.get_experiment_by_name(name)
            if found is None:
                try:
                    tags = {NOTE_TAG: note} if note else None
                    self._experiments[name] = self.client.create_experiment(name, self._artifacts, tags)
                except MlflowException as error:
                    if error.error_code != _EXISTS:
                        raise
                    found = self.client.get_experiment_by_name(name)
            if found is not None:
                if found.lifecycle_stage == LifecycleStage.DELETED:
                    self.client.restore_experiment(found.experiment_id)
                self._experiments[name] = found.experiment_id
        return self._experiments[name]

    def show(self, experiment_id: str, view: ExperimentView, note: str) -> None:
        """Let the page of an experiment show this too, and its note lead there unless somebody has changed the note."""
        tags = self.client.get_experiment(experiment_id).tags
        before = view_of(tags.get(VIEW_TAG, ""))
        shown = before.joined(view)
        changed = {VIEW_TAG: shown.text()} if shown != before else {}
        if note and tags.get(NOTE_TAG, "") == note:
            # First of all: of a folded note the page shows one line.
            changed[NOTE_TAG] = f"[The main numbers as charts]({page_of(experiment_id)}). {note}"
        try:
            for tag, text in changed.items():
                self.client.set_experiment_tag(experiment_id, tag, text)
        except MlflowException as error:
            # Of a server with shorter tags, or that lets nobody change an experiment: the numbers count.
            if error.error_code not in (_INVALID, _DENIED):
                raise


class RunDelivery:
    """Sends the events of one run id and keeps `cursor.runs` up to date."""

    def __init__(self, destination: Destination, run_id: str, cursor: Cursor) -> None:
        self._destination = destination
        self._client = destination.client
        self._run_id = run_id
        self._cursor = cursor
        self._verified: set[str] = set()
        self._pending: dict[str, _Batch] = {}
        self._rejected: list[Mapping[str, Any]] = []

    def deliver(self, events: Sequence[Event]) -> list[Mapping[str, Any]]:
        """Send events in order; returns those the server refused for good, each with a "reason".

        Raises:
            RecordLost: the run is no longer there.
            Exception: whatever MLflow, the network or the database raised; nothing is lost, send again.
        """
        self._pending.clear()
        self._rejected = []
        try:
            for event in events:
                self._take(event)
            for run in list(self._pending):
                self._flush(run)
        except MlflowException as error:
            if error.error_code == _MISSING:
                raise RecordLost(str(error)) from error
            raise
        return self._rejected

    def _take(self, event: Event) -> None:
        kind, run = event["kind"], event["run"]
        if kind == "open":
            self._flush(run)
            self._open(event)
            return
        batch = self._pending.setdefault(run, _Batch())
        if kind == "metrics":
            batch.metrics += [
                Metric(name, float(value), event["time"], step or 0) for name, value, step in event["points"]
            ]
        elif kind == "params":
            batch.params.update(event["params"])
        elif kind == "tags":
            batch.tags.update(event["tags"])
        elif kind == "artifact":
            self._artifact(event)
        elif kind == "dataset":
            self._guarded(event, lambda: self._client.log_inputs(self._mlflow_id(run), [_dataset_input(event)]))
        elif kind == "finish":
            self._flush(run)
            self._client.set_terminated(self._mlflow_id(run), event["status"], event["time"])
            self._remove_twins(run)

    def _open(self, event: Event) -> None:
        run = event["run"]
        experiment_id = self._destination.experiment_id(event["experiment"], event.get("experiment_note", ""))
        if view := event.get("experiment_view"):
            shown = ExperimentView(tuple(view["metrics"]), tuple(view["params"]))
            self._destination.show(experiment_id, shown, event["experiment_note"])
        tags = event["tags"] | _identity_tags(self._run_id, run)
        if event["parent"]:
            tags["mlflow.parentRunId"] = self._parent_id(event["parent"], experiment_id)
        if run in self._cursor.runs:
            found = self._mlflow_id(run)
        else:
            with _creation_lock(self._destination.home, self._run_id):
                found = self._find(experiment_id, self._run_id, run)
                if found is None:
                    found = self._create(experiment_id, event["time"], event["name"], tags)
            self._cursor.runs[run] = found
            self._verified.add(run)
        # Also for a run that was just created: another process may have created it as a bare parent.
        self._client.update_run(found, status="RUNNING", name=event["name"])
        self._pending.setdefault(run, _Batch()).tags.update(tags)

    def _parent_id(self, parent: Mapping[str, str], experiment_id: str) -> str:
        owner, run = parent["run_id"], parent["run"]
        if owner == self._run_id:
            return self._mlflow_id(run)
        # The parent is written by another process, which may be later than this one: whoever comes first creates
        # it, the owner fills it in.
        with _creation_lock(self._destination.home, owner):
            found = self._find(experiment_id, owner, run)
            return found or self._create(experiment_id, None, owner, _identity_tags(owner, run))

    def _find(self, experiment_id: str, run_id: str, run: str) -> str | None:
        return next(iter(self._twins(experiment_id, run_id, run)), None)

    def _twins(self, experiment_id: str, run_id: str, run: str) -> list[str]:
        query = " and ".join(f"tags.`{tag}` = '{value}'" for tag, value in _identity_tags(run_id, run).items())
        found = self._client.search_runs([experiment_id], query)
        return [each.info.run_id for each in sorted(found, key=lambda each: (each.info.start_time, each.info.run_id))]

    def _create(self, experiment_id: str, start: int | None, name: str, tags: Mapping[str, str]) -> str:
        return self._client.create_run(experiment_id, start, dict(tags), name).info.run_id

    def _remove_twins(self, run: str) -> None:
        # A request that timed out here may still have created its run on a slow server.
        kept = self._mlflow_id(run)
        experiment_id = self._client.get_run(kept).info.experiment_id
        for twin in self._twins(experiment_id, self._run_id, run):
            if twin != kept:
                self._client.delete_run(twin)

    def _mlflow_id(self, run: str) -> str:
        found = self._cursor.runs.get(run)
        if found is None:
            raise RecordLost(f"the run {run} has no MLflow run in the cursor")
        if run not in self._verified:
            self._check_alive(found)
            self._verified.add(run)
        return found

    def _check_alive(self, mlflow_id: str) -> None:
        if self._client.get_run(mlflow_id).info.lifecycle_stage == LifecycleStage.DELETED:
            raise RecordLost(f"the MLflow run {mlflow_id} was deleted")

    def _artifact(self, event: Event) -> None:
        folder = tracking_folder(self._destination.home, self._run_id)
        path = kept_file(folder, event["sha256"], event["name"])
        if not path.exists():
            self._rejected.append({**event, "reason": "the kept copy is no longer there"})
            return
        mlflow_id = self._mlflow_id(event["run"])
        self._guarded(event, lambda: self._client.log_artifact(mlflow_id, str(path), event["folder"] or None))

    def _flush(self, run: str) -> None:
        batch = self._pending.pop(run, None)
        if batch is None or not (batch.metrics or batch.params or batch.tags):
            return
        mlflow_id = self._mlflow_id(run)
        entries: dict[str, list[Any]] = {
            "tags": [RunTag(key, value) for key, value in batch.tags.items()],
            "params": [Param(key, value) for key, value in batch.params.items()],
            "metrics": batch.metrics,
        }
        for kind, values in entries.items():
            size = _METRICS_PER_BATCH if kind == "metrics" else _TEXTS_PER_BATCH
            for start in range(0, len(values), size):
                self._log(run, mlflow_id, kind, values[start : start + size])

    def _log(self, run: str, mlflow_id: str, kind: str, values: list[Any]) -> None:
        """One log_batch call; when the server refuses it, halves, until the refused entries stand alone."""
        try:
            entries: dict[str, Any] = {kind: values}
            self._client.log_batch(mlflow_id, **entries)
        except MlflowException as error:
            if error.error_code != _INVALID:
                raise
            if len(values) == 1:
                self._check_alive(mlflow_id)
                self._rejected.append({"run": run, "kind": kind, **dict(values[0]), "reason": redact_text(str(error))})
                return
            middle = len(values) // 2
            self._log(run, mlflow_id, kind, values[:middle])
            self._log(run, mlflow_id, kind, values[middle:])

    def _guarded(self, event: Event, send: Callable[[], None]) -> None:
        """Run `send`; an entry that the server will never take is noted and does not stop the entries after it."""
        try:
            send()
        except MlflowException as error:
            if error.error_code != _INVALID:
                raise
            self._check_alive(self._mlflow_id(event["run"]))
            self._rejected.append({**event, "reason": redact_text(str(error))})
        except requests.HTTPError as error:
            if error.response is None or error.response.status_code not in _REFUSED_UPLOADS:
                raise
            self._rejected.append({**event, "reason": redact_text(str(error))})


@dataclass
class _Batch:
    metrics: list[Metric] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


def _identity_tags(run_id: str, run: str) -> dict[str, str]:
    return {RUN_ID_TAG: run_id, RUN_KEY_TAG: run_id if run == ROOT else f"{run_id}/{run}"}


def _dataset_input(event: Event) -> DatasetInput:
    source = event["source"]
    scheme = source.partition("://")[0].lower() if "://" in source else "local"
    is_web = scheme in {"http", "https"}
    dataset = Dataset(
        name=event["name"],
        digest=event["digest"].rpartition(":")[2][:_DIGEST_CHARACTERS],
        source_type="http" if is_web else scheme,
        source=json.dumps({"url" if is_web else "uri": source}),
    )
    return DatasetInput(dataset, [])


def _create_database(path: Path, artifacts: Path) -> None:
    """Create a missing SQLite file, which appears complete.

    MLflow migrates a new file table by table; a process killed in between would leave one that never opens again.
    """
    if path.exists():
        return
    with locked(path.with_name(f"{path.name}.creating")):
        if path.exists():
            return
        with unfinished(path) as partial:
            SqlAlchemyStore(sqlite_uri(partial), artifacts.as_uri()).engine.dispose()
            finish(partial, path)


def _creation_lock(home: Path, run_id: str) -> contextlib.AbstractContextManager[None]:
    """Held while a run is looked up and created, so that two processes of one home never create it twice."""
    return locked(tracking_folder(home, run_id) / "creation.lock")
