"""Runs map and reduce stages as Ray tasks.

Tasks, not actors: a task gives its CPU back between shards, Ray starts a lost one again by itself, and the
worker process stays warm, so the per-image function is built once per process and stage.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayTaskError, WorkerCrashedError

from wsss.errors import WsssError
from wsss.execution.cluster import ClusterError
from wsss.execution.stage_job import StageJob
from wsss.pipeline import Arrays, MapStage, ReduceStage, Reduction

METRICS_FILE = "metrics.json"
TABLES_FILE = "tables.json"
ARRAYS_FILE = "arrays.npz"
_RETRIES = 3

_loaded: tuple[str, Callable[[str], Arrays]] | None = None


def shard_size(images: int) -> int:
    """Images in one shard: from the number of images alone, so that any run cuts them alike."""
    return int(np.clip(-(-images // 32), 8, 256))


def run_map_stage(job: StageJob, workers: int, gpu: bool, on_progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Compute every shard that is not finished yet. Progress counts images.

    Raises:
        WsssError: what a worker raised, with the shards finished by then kept.
        ClusterError: a shard's worker died more often than Ray retries it.
    """
    names = job.view.names
    size = shard_size(len(names))
    shards = [tuple(names[start : start + size]) for start in range(0, len(names), size)]
    writer = job.writer()
    finished = {
        index: images
        for index, images in writer.finished_images().items()
        if index < len(shards) and sorted(images) == sorted(shards[index])
    }
    for index in set(writer.finished_images()) - set(finished):
        writer.discard_shard(index)
    done = sum(len(shards[index]) for index in finished)
    resumed = done
    on_progress(done, len(names))
    waiting = [index for index in range(len(shards)) if index not in finished]
    job_reference = ray.put(job)
    task = _run_shard.options(num_gpus=1 if gpu else 0)
    running: dict[Any, int] = {}
    failure: WsssError | None = None
    started = time.monotonic()
    try:
        # After a failure nothing new starts, but what is under way is finished and kept.
        while (waiting and failure is None) or running:
            while waiting and failure is None and len(running) <= workers:  # one more than fits: no worker waits
                index = waiting.pop(0)
                running[task.remote(job_reference, index, shards[index], gpu)] = index
            ready, _ = ray.wait(list(running), num_returns=1, timeout=1.0)
            for reference in ready:
                index = running.pop(reference)
                try:
                    _get(reference, job)
                except WsssError as error:
                    failure = failure or error
                    continue
                done += len(shards[index])
                on_progress(done, len(names))
    finally:
        for reference in running:
            ray.cancel(reference)
    if failure is not None:
        raise failure
    seconds = time.monotonic() - started
    return {
        "images": len(names),
        "shards": len(shards),
        "resumed_images": resumed,
        "images_per_second": (done - resumed) / seconds if seconds > 0 else 0.0,
    }


def run_reduce_stage(job: StageJob) -> Reduction:
    """Compute a reduce stage in one task and store its metrics, tables and arrays."""
    return _get(_run_reduction.remote(job), job)


def load_reduction(artifact: Any) -> Reduction:
    """Metrics and tables of a published reduce stage (arrays stay in the file)."""
    return Reduction(metrics=artifact.json(METRICS_FILE), tables=artifact.json(TABLES_FILE))


def _get(reference: Any, job: StageJob) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, WsssError):
            raise error.cause from None
        raise
    except WorkerCrashedError as error:
        raise ClusterError(
            f"a worker died {_RETRIES + 1} times in a row",
            f"stage {job.stage.name}",
            "it may need more memory: lower execution.map_workers; finished shards are kept",
        ) from error


@ray.remote(num_cpus=1, max_retries=_RETRIES, max_calls=0)
def _run_shard(job: StageJob, index: int, names: Sequence[str], gpu: bool) -> int:
    global _loaded
    stage = job.stage
    assert isinstance(stage, MapStage)
    identity = f"{stage.name}/{job.key}"
    if _loaded is None or _loaded[0] != identity:
        _loaded = None  # free the models of the stage before
        torch.set_num_threads(1)
        torch.manual_seed(0)
        _loaded = (identity, stage.build(job.context("cuda:0" if gpu else "cpu")))
    per_image = _loaded[1]
    with torch.inference_mode():
        records = {name: per_image(name) for name in names}
    job.writer().add_shard(index, records)
    return index


@ray.remote(num_cpus=1, max_retries=_RETRIES)
def _run_reduction(job: StageJob) -> Reduction:
    return compute_reduction(job)


def compute_reduction(job: StageJob) -> Reduction:
    """Compute a reduce stage in this process, store it, and return its metrics and tables."""
    stage = job.stage
    assert isinstance(stage, ReduceStage)
    torch.set_num_threads(1)
    result = stage.compute(job.context("cpu"))
    writer = job.writer()
    writer.add_file(METRICS_FILE, json.dumps(result.metrics, sort_keys=True).encode())
    writer.add_file(TABLES_FILE, json.dumps(result.tables, sort_keys=True).encode())
    if result.arrays:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **result.arrays)
        writer.add_file(ARRAYS_FILE, buffer.getvalue())
    return Reduction(metrics=result.metrics, tables=result.tables)
