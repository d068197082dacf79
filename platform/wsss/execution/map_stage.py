"""Computes a map or reduce stage on Ray: for one job, or for many that share their image list.

Each task takes one shard of the images through several jobs: upstream files are opened by one process, and every CPU
is busy although a single job may have few shards. The function of an image is built once per process and job.
Shards are stored one by one, so nothing finished is lost. A job that fails leaves the others alone.
"""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from wsss.execution.cluster import ClusterError
from wsss.execution.last_image import last_image, noted
from wsss.execution.nodes import Resources
from wsss.execution.numeric_mode import numeric_mode
from wsss.execution.space import SpaceError, check_rest
from wsss.execution.stage_job import ARRAYS_FILE, METRICS_FILE, TABLES_FILE, StageJob, shard_size
from wsss.execution.tasks import TASK_OPTIONS, Piece, describe, parts, portable, run_tasks
from wsss.execution.waiting import NodeWatch, Tell
from wsss.pipeline import Arrays, MapStage, ReduceStage

log = logging.getLogger(__name__)
_built: dict[str, Callable[[str], Any]] = {}

OnProgress = Callable[[int, int], None]
# Seconds that a job took, or why it failed.
Told = float | Exception


@dataclass
class JobOutcome:
    """What became of one job.

    Attributes:
        error: why its artifact cannot be published; None when it can.
        seconds: wall time of a job that runs alone; among others, the sum over its shards divided by the workers.
        facts: images, shards, resumed_images, images_per_second of a map job.
    """

    error: Exception | None = None
    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)


def run_map_stage(job: StageJob, workers: int, use_gpu: bool, on_progress: OnProgress, tell: Tell) -> dict[str, Any]:
    """Compute every shard of a job that is not finished yet, and return its facts. Progress counts images.

    Raises:
        Exception: the first that a worker raised, as it was. No shard starts after it; those under way are kept.
        ClusterError: the worker of a shard died more often than Ray retries it.
        SpaceError: after a shard, the others will not fit on the disk of the store.
    """
    (outcome,) = run_map_jobs([job], workers, use_gpu, tell, on_progress)
    if outcome.error is not None:
        raise outcome.error
    return outcome.facts


def run_map_jobs(
    jobs: Sequence[StageJob],
    workers: int,
    use_gpu: bool,
    tell: Tell,
    on_progress: OnProgress = lambda done, total: None,
) -> list[JobOutcome]:
    """Compute every unfinished shard of every job; the jobs are of one stage and one image list.

    Args:
        workers: tasks at a time; the work is cut into enough of them.
        use_gpu: each task takes a GPU.
        tell: told of lost nodes, of waiting for others and of tasks that start again.
        on_progress: called with (images done, images in total), both over all jobs.
    """
    names = jobs[0].view.names
    size = shard_size(len(names))
    shards = [tuple(names[start : start + size]) for start in range(0, len(names), size)]
    outcomes = [JobOutcome() for _ in jobs]
    unfinished: dict[int, list[int]] = {}
    resumed = [0] * len(jobs)
    for number, job in enumerate(jobs):
        finished = _finished_shards(job, shards)
        resumed[number] = sum(len(shards[index]) for index in finished)
        for index in set(range(len(shards))) - finished:
            unfinished.setdefault(index, []).append(number)
    pieces = [
        (part, index)
        for index, numbers in sorted(unfinished.items())
        for part in parts(numbers, len(numbers) * len(unfinished), workers)
    ]
    references = [ray.put(job) for job in jobs]

    def start(numbers: Sequence[int], index: int, options: dict[str, Any]) -> Any:
        task = _run_shard.options(num_gpus=int(use_gpu), **options)
        return task.remote([references[number] for number in numbers], index, shards[index], use_gpu)

    started, done = time.monotonic(), sum(resumed)
    on_progress(done, len(jobs) * len(names))
    watch = NodeWatch(jobs[0].stage.name, 1, Resources(gpus=int(use_gpu)), tell)
    answers = run_tasks(pieces, start, workers, watch, tell, wanted=lambda number: outcomes[number].error is None)
    for turn, ((numbers, index), answer) in enumerate(answers):
        answer = [
            _with_image(told, jobs[number], index, shards[index]) for number, told in zip(numbers, answer, strict=True)
        ]
        _note(outcomes, numbers, answer)
        done += len(shards[index]) * sum(not isinstance(told, Exception) for told in answer)
        on_progress(done, len(jobs) * len(names))
        if turn == 0 and len(jobs) == 1 and outcomes[0].error is None:
            outcomes[0].error = _shortage(jobs[0], len(names) - done)
    for number, outcome in enumerate(outcomes):
        parallel = min(workers, len(shards)) or 1
        outcome.seconds = time.monotonic() - started if len(jobs) == 1 else outcome.seconds / parallel
        computed = len(names) - resumed[number]
        outcome.facts = {
            "images": len(names),
            "shards": len(shards),
            "resumed_images": resumed[number],
            "images_per_second": computed / outcome.seconds if outcome.seconds > 0 else 0.0,
        }
    return outcomes


def run_reduce_stage(job: StageJob, tell: Tell) -> None:
    """Compute one reduce job and store its metrics, tables and arrays. Raises what the worker raised, as it was."""
    (outcome,) = run_reduce_jobs([job], 1, tell)
    if outcome.error is not None:
        raise outcome.error


def run_reduce_jobs(jobs: Sequence[StageJob], workers: int, tell: Tell) -> list[JobOutcome]:
    """Compute reduce jobs and store their metrics, tables and arrays."""
    references = [ray.put(job) for job in jobs]
    outcomes = [JobOutcome() for _ in jobs]
    pieces: list[Piece] = [(part, 0) for part in parts(list(range(len(jobs))), len(jobs), max(1, workers))]

    def start(numbers: Sequence[int], index: int, options: dict[str, Any]) -> Any:
        return _run_reductions.options(**options).remote([references[number] for number in numbers])

    watch = NodeWatch(jobs[0].stage.name, 1, Resources(), tell)
    for (numbers, _), answer in run_tasks(pieces, start, max(1, workers), watch, tell):
        _note(outcomes, numbers, answer)
    return outcomes


def shard_of_jobs(jobs: Sequence[StageJob], index: int, names: Sequence[str], use_gpu: bool) -> list[Told]:
    """Compute and store one shard of every job in this process."""
    stage = jobs[0].stage
    assert isinstance(stage, MapStage)
    with numeric_mode(jobs[0].mode):
        if len(jobs) > 1 and stage.build_many is not None:
            try:
                return _shared_seconds(jobs, index, names, use_gpu)
            except Exception as error:  # one of the jobs is to blame: each on its own tells which
                log.info("stage %s: %s; its settings are computed one by one", stage.name, describe(error))
        return [_seconds(lambda job=job: _compute_shard(job, index, names, use_gpu)) for job in jobs]


def compute_reduction(job: StageJob) -> None:
    """Compute a reduce job in this process and store its metrics, tables and arrays."""
    stage = job.stage
    assert isinstance(stage, ReduceStage)
    torch.set_num_threads(1)
    with numeric_mode(job.mode):
        result = stage.compute(job.context("cpu"))
    writer = job.writer()
    writer.add_file(METRICS_FILE, json.dumps(result.metrics, sort_keys=True).encode())
    writer.add_file(TABLES_FILE, json.dumps(result.tables, sort_keys=True).encode())
    if result.arrays:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **result.arrays)
        writer.add_file(ARRAYS_FILE, buffer.getvalue())


@ray.remote(**TASK_OPTIONS)
def _run_shard(jobs: Sequence[Any], index: int, names: Sequence[str], use_gpu: bool) -> list[Told]:
    return shard_of_jobs(_present(jobs), index, names, use_gpu)


@ray.remote(**TASK_OPTIONS)
def _run_reductions(jobs: Sequence[Any]) -> list[Told]:
    return [_seconds(lambda job=job: compute_reduction(job)) for job in _present(jobs)]


def _present(jobs: Sequence[Any]) -> list[StageJob]:
    present = ray.get(list(jobs))
    identities = {_identity([job]) for job in present} | {_identity(present)}
    for identity in set(_built) - identities:  # models of earlier stages and settings
        del _built[identity]
    torch.set_num_threads(1)
    return present


def _identity(jobs: Sequence[StageJob]) -> str:
    return "+".join(f"{job.stage.name}/{job.key}/{job.mode}" for job in jobs)


def _shared_seconds(jobs: Sequence[StageJob], index: int, names: Sequence[str], use_gpu: bool) -> list[Told]:
    """All jobs image by image; each is told an equal share of the time."""
    stage = jobs[0].stage
    assert isinstance(stage, MapStage) and stage.build_many is not None
    started, build_many = time.monotonic(), stage.build_many
    compute = _warm(jobs, lambda: build_many([job.context(_device(use_gpu)) for job in jobs]))
    records: list[dict[str, Arrays]] = [{} for _ in jobs]
    with torch.inference_mode():
        for name in names:
            for record, arrays in zip(records, compute(name), strict=True):
                record[name] = arrays
    for job, record in zip(jobs, records, strict=True):
        job.writer().add_shard(index, record)
    return [(time.monotonic() - started) / len(jobs)] * len(jobs)


def _compute_shard(job: StageJob, index: int, names: Sequence[str], use_gpu: bool) -> None:
    stage = job.stage
    assert isinstance(stage, MapStage)
    compute = _warm([job], lambda: stage.build(job.context(_device(use_gpu))))
    with torch.inference_mode(), noted(names, job.key, index) as each:
        records = {name: compute(name) for name in each}
    job.writer().add_shard(index, records)


def _warm(jobs: Sequence[StageJob], build: Callable[[], Callable[[str], Any]]) -> Callable[[str], Any]:
    identity = _identity(jobs)
    if identity not in _built:
        torch.manual_seed(0)
        _built[identity] = build()
    return _built[identity]


def _seconds(compute: Callable[[], None]) -> Told:
    started = time.monotonic()
    try:
        compute()
    except Exception as error:
        return portable(error)
    return time.monotonic() - started


def _device(use_gpu: bool) -> str:
    return "cuda:0" if use_gpu else "cpu"


def _note(outcomes: Sequence[JobOutcome], numbers: Sequence[int], answer: Sequence[Told]) -> None:
    for number, told in zip(numbers, answer, strict=True):
        outcome = outcomes[number]
        if isinstance(told, Exception):
            outcome.error = outcome.error or told
        else:
            outcome.seconds += told


def _shortage(job: StageJob, images: int) -> SpaceError | None:
    """Why the images that are left will not fit on the store's disk; None when they will."""
    if not images or "://" in job.store.url:  # an object store has no such limit
        return None
    try:
        check_rest(job.stage.name, job.writer().bytes_per_image(), images, Path(job.store.url))
    except SpaceError as error:
        return error
    return None


def _with_image(told: Told, job: StageJob, index: int, names: Sequence[str]) -> Told:
    """What a task told; where its worker died, with the image that it was at, or the shard."""
    if not isinstance(told, ClusterError):
        return told
    image = last_image(job.key, index)
    where = f"image {image}" if image else f"one of the images {names[0]} to {names[-1]}"
    remedy = f"look at that image and at the settings of the stage; where memory was short, {told.remedy}"
    return ClusterError(told.what, f"stage {job.stage.name}, {where}", remedy)


def _finished_shards(job: StageJob, shards: Sequence[tuple[str, ...]]) -> set[int]:
    writer = job.writer()
    found = writer.finished_images()
    finished = {
        index for index, images in found.items() if index < len(shards) and sorted(images) == sorted(shards[index])
    }
    for index in set(found) - finished:
        writer.discard_shard(index)
    return finished
