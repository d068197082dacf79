"""Computes one stage of a prepared run on the cluster and publishes its artifact."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ray.exceptions import RayError

from wsss.errors import WsssError
from wsss.execution.cluster import ClusterError
from wsss.execution.growth import current_cluster
from wsss.execution.import_stage import run_import_stage
from wsss.execution.map_stage import run_map_stage, run_reduce_stage
from wsss.execution.node_data import check_nodes
from wsss.execution.nodes import Resources
from wsss.execution.observer import RunObserver, StageLog
from wsss.execution.prepare import PreparedRun
from wsss.execution.scheduling import stage_resources, tasks_of
from wsss.execution.stage_job import StageJob, bind_job, load_metrics, publish_stage, remove_checkpoints
from wsss.execution.store_outage import through_outages
from wsss.execution.tasks import last_line
from wsss.execution.train_loop import LoopSettings
from wsss.execution.train_stage import TrainPlan, run_train_stage
from wsss.execution.waiting import wait_for_first_node
from wsss.formatting import percent
from wsss.metric_name import MetricName
from wsss.pipeline import ImportStage, MapStage, ReduceStage, Stage, TrainStage
from wsss.plan import CostHistory, PlannedStage
from wsss.store import Artifact
from wsss.weights import fetch_missing


class StageError(WsssError):
    """The code of a stage failed in a way that nobody foresaw."""


def compute_stage(
    prepared: PreparedRun,
    planned: PlannedStage,
    artifacts: Mapping[str, Artifact],
    observer: RunObserver,
    tracked: StageLog,
    run_id: str,
    code: Mapping[str, Any],
) -> Artifact:
    """Compute and publish one stage. The caller holds its single flight and has looked for it in the store.

    Args:
        artifacts: stage name -> artifact, of all that the stage reads.
        run_id, code: who computes it, and the provenance of the code, for the artifact's manifest.

    Raises:
        WsssError, OSError, MemoryError: what the stage raised.
        ClusterError: Ray itself failed.
        StageError: the stage raised something else.
    """
    with _as_one_message(planned.stage.name):
        stage, execution = planned.stage, prepared.execution
        fetch_missing(stage.files.values(), observer.message)  # a setting of a sweep may need a file of its own
        job = bind_job(stage, planned.key, prepared.dataset, prepared.store, artifacts, execution.mode)
        started = time.monotonic()
        if isinstance(stage, ImportStage):
            observer.start(stage.name, 1, "file")
            artifact = run_import_stage(job, prepared.dataset, run_id)
            tracked.finish("FINISHED")
            observer.finish(stage.name, time.monotonic() - started, "released model taken in")
            return artifact
        workers, resources = stage_resources(stage, execution, current_cluster())
        gpu = resources.gpus > 0
        if not isinstance(stage, TrainStage):
            workers = tasks_of(stage, workers, planned.images)
            wait_for_first_node(stage.name, workers, resources, observer.message)
        check_nodes(stage.name, prepared.dataset, tuple(stage.files.values()), observer.message)
        started = time.monotonic()  # what nodes and data take to come is no cost of the stage
        facts: dict[str, Any] = {}
        if isinstance(stage, TrainStage):
            facts = _train(prepared, job, workers, resources, observer, tracked)
        elif isinstance(stage, MapStage):
            observer.start(stage.name, len(job.view.names), "images")
            facts = run_map_stage(
                job, workers, gpu, lambda done, total: observer.update(stage.name, done), observer.message
            )
        else:
            observer.start(stage.name, 1, "pass")
            run_reduce_stage(job, observer.message)
        seconds = time.monotonic() - started - facts.get("waited_seconds", 0.0)
        artifact = publish_stage(job, seconds, workers, gpu, facts, run_id, code)
        metrics = load_metrics(artifact) if isinstance(stage, ReduceStage) else {}
        tracked.metrics(metrics)
        preview = stage.preview if isinstance(stage, TrainStage) else None
        if isinstance(stage, TrainStage) and preview is None:
            remove_checkpoints(prepared.checkpoints, prepared.store, stage, planned.key)
        if not facts.get("resumed_images") and not facts.get("resumed_steps") and preview is None:
            CostHistory(prepared.request.home.absolute() / "costs.json").record(stage, planned.images, seconds)
        tracked.metrics({"seconds": seconds, **{name: float(value) for name, value in facts.items()}})
        tracked.finish("FINISHED")
        observer.finish(stage.name, seconds, _summary(stage, facts, metrics))
        return artifact


@contextmanager
def _as_one_message(stage: str) -> Iterator[None]:
    """Raise what Ray, or the code of a stage, raises without a remedy as an error that has one."""
    kept = "finished shards and checkpoints are kept"
    try:
        yield
    except WsssError:
        raise
    except RayError as error:  # before OSError: some of Ray's are both
        raise ClusterError(
            f"Ray failed: {last_line(error)}",
            f"stage {stage}",
            f"run the same command again: {kept}; `WSSS_DEBUG=1` shows more",
        ) from error
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise StageError(
            f"{type(error).__name__}: {error}",
            f"stage {stage}",
            f"`WSSS_DEBUG=1` shows where in the program it was; {kept}",
        ) from error


def _train(
    prepared: PreparedRun, job: StageJob, workers: int, resources: Resources, observer: RunObserver, tracked: StageLog
) -> dict[str, Any]:
    execution = prepared.execution
    gpu = resources.gpus > 0
    plan = TrainPlan(
        workers=workers,
        gpu=gpu,
        threads=resources.cpus,
        settings=LoopSettings(
            micro_batch=execution.micro_batch,
            loader_workers=execution.loader_workers,
            checkpoint_steps=execution.checkpoint_steps,
            channels_last=execution.mode == "fast",
        ),
        max_failures=execution.max_failures,
        checkpoints=prepared.checkpoints,
        forbidden_folders=() if "masks" in job.stage.reads else prepared.dataset.mask_folders,
    )
    observer.start(job.stage.name, 0, "steps")

    def show(total: int, steps: list[tuple[int, dict[str, float]]]) -> None:
        done, losses = steps[-1]
        observer.start(job.stage.name, total, "steps")
        observer.update(job.stage.name, done, f"loss {losses['loss']:.4f}")
        names = {name for _, values in steps for name in values}
        tracked.series({name: [(step, values[name]) for step, values in steps if name in values] for name in names})

    return through_outages(
        lambda: run_train_stage(job, plan, show, observer.message), prepared.store, job.stage.name, observer.message
    )


def _summary(stage: Stage, facts: Mapping[str, Any], metrics: Mapping[str, float]) -> str:
    mious = [f"{name} {percent(value)} %" for name, value in metrics.items() if MetricName.parse(name).is_main_miou][:2]
    if mious:
        return ", ".join(mious)
    rate = facts.get("images_per_second")
    return f"{rate:.1f} images/s" if rate else ""
