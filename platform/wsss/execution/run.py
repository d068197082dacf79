"""Runs a pipeline: plan, preflight, one stage after the other, everything recorded.

Whatever a stage finished is in the store; whatever a run learned is in its `run.json`. The same command
after a crash continues the same run. What is found damaged in the store is set aside and computed again.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from wsss.changed_settings import name_of_run
from wsss.execution.bookkeeping import (
    curves_of,
    open_record,
    run_note,
    run_tags,
    stage_params,
    stage_result,
    stage_tags,
)
from wsss.execution.observer import RunObserver
from wsss.execution.prepare import PreparedRun, plan_again
from wsss.execution.scheduling import check_schedulable, growth_in_words
from wsss.plan import PlannedStage
from wsss.recipe import flat_dict
from wsss.run_record import RunRecord, RunRecordError, StageResult
from wsss.store import Artifact, DamagedArtifact
from wsss.tracking.names import reproductions
from wsss.tracking.spool import TrackingError
from wsss.tracking.tracker import TrackedRun, Tracker, open_tracker
from wsss.tracking.view import ExperimentView
from wsss.weights import fetch_missing

# Times that a run computes damaged inputs again: a disk that damages all that is written would never end.
_DAMAGES = 5


@dataclass(frozen=True)
class RunResult:
    """A finished run."""

    folder: Path
    record: RunRecord
    untracked: str = ""


@dataclass(frozen=True)
class _RunLog:
    """Where the outcome of each stage goes."""

    record: RunRecord
    folder: Path
    tracker: Tracker
    parent: TrackedRun
    observer: RunObserver
    executed: set[str] = field(default_factory=set)

    def add(self, result: StageResult) -> None:
        """Write down the outcome of a stage; one that this run executed stays executed when it is found again."""
        if result.status == "executed":
            self.executed.add(result.name)
        elif result.name in self.executed:
            result = replace(result, status="executed")
        record = self.record
        record.stages = [stage for stage in record.stages if stage.name != result.name] + [result]
        record.save(self.folder)
        self.parent.metrics(result.metrics)


def execute_run(prepared: PreparedRun, observer: RunObserver) -> RunResult:
    """Compute what is missing, record everything, and return the record.

    Raises:
        WsssError: the cluster can not hold a stage, or a stage failed; those before it are in the store and the record.
    """
    request = prepared.request
    home = request.home.absolute()
    _get_ready(prepared, observer)  # before anything is written down: what is refused here leaves no failed run
    record, folder = open_record(prepared)
    tracker = open_tracker(
        request.tracking_uri,
        home,
        reproductions(prepared.dataset.name),
        note=f"All reproductions on {prepared.dataset.name}, one run for each method, recipe and seed; its stages are "
        "nested in it. Choose runs and press Compare. The same table with paired differences: `wsss compare`.",
        view=ExperimentView(prepared.pipeline.headline),
    )
    parent = tracker.run(
        key=record.run_id,
        name=name_of_run(record, request.method, request.recipe),
        note=run_note(record),
        tags=run_tags(prepared, record),
        params=flat_dict(request.recipe),
        dataset=(prepared.dataset.name, prepared.dataset.source, record.data_digest),
    )
    log = _RunLog(record, folder, tracker, parent, observer)
    try:
        damages = 0
        while (damaged := _settle_stages(prepared, log)) is not None:
            damages += 1
            if damages > _DAMAGES:
                raise damaged
            prepared = plan_again(prepared)
            _get_ready(prepared, observer)
        record.status, record.ended = "finished", time.time()
        record.save(folder)
        parent.finish("FINISHED")
    except BaseException as error:
        record.status, record.ended = "failed", time.time()
        record.error = str(error) or type(error).__name__
        with suppress(RunRecordError):  # of a full disk, the first error tells
            record.save(folder)
        with suppress(TrackingError, OSError):
            parent.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            tracker.close(wait_seconds=5)
        raise
    return RunResult(folder=folder, record=record, untracked=tracker.close(wait_seconds=20).message)


def _get_ready(prepared: PreparedRun, observer: RunObserver) -> None:
    """Download what the stages to compute need, and join a cluster that can hold them."""
    if not prepared.plan.needed:
        return
    from wsss.execution.cluster import connect

    fetch_missing(prepared.plan.downloads, observer.message)
    cluster = connect()
    check_schedulable(prepared.plan, prepared.execution, cluster)
    for line in growth_in_words(prepared.plan, prepared.execution, cluster):
        observer.message(line)


def _settle_stages(prepared: PreparedRun, log: _RunLog) -> DamagedArtifact | None:
    """Settle one stage after the other. When a stage finds an input damaged, that one is set aside.

    Returns:
        What the stage said of its input; another plan computes the input again. None at the end of all stages.
    """
    artifacts: dict[str, Artifact] = {}
    for planned in prepared.plan.stages:
        try:
            result = _settle_stage(prepared, planned, artifacts, log)
        except DamagedArtifact as error:
            keys = {each.stage.name: each.key for each in prepared.plan.stages}
            for name in (*planned.stage.inputs.values(), planned.stage.name):
                with _flight(prepared, name, keys[name], log):
                    prepared.store.set_aside(name, keys[name], log.observer.message)
            return error
        log.add(result)
    return None


def _settle_stage(
    prepared: PreparedRun, planned: PlannedStage, artifacts: dict[str, Artifact], log: _RunLog
) -> StageResult:
    stage, artifact = planned.stage, planned.artifact
    status: Literal["executed", "cached"] = "cached"
    if artifact is None and not planned.needed:
        if planned.damage:
            with _flight(prepared, stage.name, planned.key, log):
                prepared.store.find_or_set_aside(stage.name, planned.key, log.observer.message)
        return stage_result(prepared.pipeline, planned, None, status)
    if artifact is None:
        from wsss.execution.compute import compute_stage

        with _flight(prepared, stage.name, planned.key, log):
            # It may have been computed while we waited.
            artifact = prepared.store.find_or_set_aside(stage.name, planned.key, log.observer.message)
            if artifact is None:
                record = log.record
                tracked = log.tracker.run(
                    key=f"{record.run_id}/{stage.name}",
                    name=f"{stage.name}, {name_of_run(record, prepared.request.method, prepared.request.recipe)}",
                    tags={**stage_tags(planned), "run_id": record.run_id},
                    params=stage_params(stage),
                    note=f"Stage `{stage.name}` of the run `{record.run_id}`, key `{planned.key}`. A stage that the "
                    "store has already is not computed again and has no run here.",
                    parent=log.parent,
                )
                try:
                    artifact = compute_stage(
                        prepared, planned, artifacts, log.observer, tracked, record.run_id, record.provenance
                    )
                except BaseException:
                    with suppress(TrackingError, OSError):  # of a full disk, the first error tells
                        tracked.finish("FAILED")
                    raise
                status = "executed"
    artifacts[stage.name] = artifact
    log.parent.series(curves_of(stage, artifact))
    return stage_result(prepared.pipeline, planned, artifact, status)


def _flight(prepared: PreparedRun, stage: str, key: str, log: _RunLog) -> AbstractContextManager[None]:
    def wait(holder: str) -> None:
        log.observer.message(f"{stage}: another run computes it ({holder}); waiting")

    return prepared.store.single_flight(stage, key, on_wait=wait)
