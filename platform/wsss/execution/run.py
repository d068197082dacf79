"""Runs a pipeline: plan, preflight, one stage after the other, everything recorded.

Whatever a stage finished is in the store; whatever a run learned is in its `run.json`. The same command
after a crash continues the same run.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from wsss.execution.bookkeeping import open_record, run_tags, stage_result, stage_tags
from wsss.execution.observer import RunObserver
from wsss.execution.prepare import PreparedRun
from wsss.execution.scheduling import check_schedulable, growth_in_words
from wsss.plan import PlannedStage
from wsss.recipe import flat_dict
from wsss.run_record import RunRecord, StageResult
from wsss.store import Artifact
from wsss.tracking.tracker import TrackedRun, open_tracker
from wsss.weights import fetch_missing


@dataclass(frozen=True)
class RunResult:
    """A finished run."""

    folder: Path
    record: RunRecord
    untracked: str = ""


def execute_run(prepared: PreparedRun, observer: RunObserver) -> RunResult:
    """Compute what is missing, record everything, and return the record.

    Raises:
        WsssError: the cluster can not hold a stage, or a stage failed; those before it are in the store and the record.
    """
    request = prepared.request
    home = request.home.absolute()
    if prepared.plan.needed:
        from wsss.execution.cluster import connect

        # Before anything is written down: what is refused here leaves no failed run.
        fetch_missing(prepared.plan.downloads, observer.message)
        cluster = connect()
        check_schedulable(prepared.plan, prepared.execution, cluster)
        for line in growth_in_words(prepared.plan, prepared.execution, cluster):
            observer.message(line)
    record, folder = open_record(prepared)
    experiment = f"{prepared.dataset.name}/{request.method.name}"
    tracker = open_tracker(request.tracking_uri, home, experiment)
    parent = tracker.run(
        key=record.run_id,
        name=f"{request.recipe_name}, seed {record.seed}",
        tags=run_tags(prepared, record),
        params=flat_dict(request.recipe),
        dataset=(prepared.dataset.name, str(prepared.dataset.root), record.data_digest),
    )
    artifacts: dict[str, Artifact] = {}
    try:
        for planned in prepared.plan.stages:
            result = _settle_stage(prepared, planned, artifacts, observer, record, tracker, parent)
            record.stages = [stage for stage in record.stages if stage.name != result.name] + [result]
            record.save(folder)
            parent.metrics(result.metrics)
        record.status, record.ended = "finished", time.time()
        record.save(folder)
        parent.finish("FINISHED")
    except BaseException as error:
        record.status, record.ended = "failed", time.time()
        record.error = str(error) or type(error).__name__
        record.save(folder)
        parent.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        tracker.close(wait_seconds=5)
        raise
    return RunResult(folder=folder, record=record, untracked=tracker.close(wait_seconds=20).message)


def _settle_stage(
    prepared: PreparedRun,
    planned: PlannedStage,
    artifacts: dict[str, Artifact],
    observer: RunObserver,
    record: RunRecord,
    tracker: Any,
    parent: TrackedRun,
) -> StageResult:
    stage, artifact = planned.stage, planned.artifact
    status: Literal["executed", "cached"] = "cached"
    if artifact is None and not planned.needed:
        return stage_result(prepared.pipeline, planned, None, status)
    if artifact is None:
        from wsss.execution.compute import compute_stage

        with prepared.store.single_flight(
            stage.name,
            planned.key,
            on_wait=lambda holder: observer.message(f"{stage.name}: another run computes it ({holder}); waiting"),
        ):
            artifact = prepared.store.find(stage.name, planned.key)  # it may have been computed while we waited
            if artifact is None:
                tracked = tracker.run(
                    key=f"{record.run_id}/{stage.name}",
                    name=stage.name,
                    tags={**stage_tags(planned), "run_id": record.run_id},
                    parent=parent,
                )
                try:
                    artifact = compute_stage(
                        prepared, planned, artifacts, observer, tracked, record.run_id, record.provenance
                    )
                except BaseException:
                    tracked.finish("FAILED")
                    raise
                status = "executed"
    artifacts[stage.name] = artifact
    return stage_result(prepared.pipeline, planned, artifact, status)
