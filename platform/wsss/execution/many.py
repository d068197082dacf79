"""Computes one map or reduce stage for many settings at once.

The jobs share the image list, so each task takes one shard through all of its jobs: one task instead of one a
setting, upstream files opened by one process, and every CPU busy although a single setting has few shards. A job
that fails leaves the others alone. Shards are written one by one as in `map_stage`, so nothing finished is lost.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
import torch
from ray.exceptions import OutOfMemoryError, RayError, WorkerCrashedError

from wsss.errors import WsssError
from wsss.execution.map_stage import compute_reduction, shard_size
from wsss.execution.stage_job import StageJob
from wsss.pipeline import Arrays, MapStage

log = logging.getLogger(__name__)
_RETRIES = 2
_built: dict[str, Callable[[str], Any]] = {}


@dataclass
class JobOutcome:
    """What became of one job: `error` is empty, or the reason why its artifact can not be published.

    Attributes:
        seconds: work of all its shards, as if its own workers had done it in parallel.
        facts: as `run_map_stage` returns them.
    """

    error: str = ""
    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)


def run_map_jobs(jobs: Sequence[StageJob], workers: int, use_gpu: bool) -> list[JobOutcome]:
    """Compute every unfinished shard of every job; the jobs are of one stage and one image list.

    Args:
        workers: tasks at a time, about; the work is cut into enough of them.
        use_gpu: each task takes a GPU.
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

    def start(part: Sequence[int], index: int) -> Any:
        task = _run_shard_of.options(num_gpus=1 if use_gpu else 0)
        return task.remote([references[number] for number in part], index, shards[index], use_gpu)

    for part, answer in _gather(pieces, start, workers):
        for number, told in zip(part, answer, strict=True):
            outcomes[number].error = outcomes[number].error or (told if isinstance(told, str) else "")
            outcomes[number].seconds += 0.0 if isinstance(told, str) else told
    for number, outcome in enumerate(outcomes):
        outcome.seconds /= min(workers, len(shards)) or 1
        done = len(names) - resumed[number]
        outcome.facts = {
            "images": len(names),
            "shards": len(shards),
            "resumed_images": resumed[number],
            "images_per_second": done / outcome.seconds if outcome.seconds > 0 else 0.0,
        }
    return outcomes


def run_reduce_jobs(jobs: Sequence[StageJob], cpus: int) -> list[JobOutcome]:
    """Compute reduce stages and store their metrics, tables and arrays."""
    references = [ray.put(job) for job in jobs]
    outcomes = [JobOutcome() for _ in jobs]
    pieces = [(part, 0) for part in parts(list(range(len(jobs))), len(jobs), max(1, cpus))]

    def start(part: Sequence[int], index: int) -> Any:
        return _run_reductions.remote([references[number] for number in part])

    for part, answer in _gather(pieces, start, max(1, cpus)):
        for number, told in zip(part, answer, strict=True):
            if isinstance(told, str):
                outcomes[number].error = told
            else:
                outcomes[number].seconds = told
    return outcomes


def call_many(
    function: Callable[[Any], Any], arguments: Sequence[Any], workers: int, use_gpu: bool = False
) -> list[Any]:
    """`function` of each argument, in tasks of one CPU; an exception comes back as its text in a RuntimeError."""
    pieces = [(part, 0) for part in parts(list(range(len(arguments))), len(arguments), max(1, workers))]
    task = _call.options(num_gpus=1 if use_gpu else 0)
    found: list[Any] = [None] * len(arguments)

    def start(part: Sequence[int], index: int) -> Any:
        return task.remote(function, [arguments[number] for number in part])

    for part, answer in _gather(pieces, start, max(1, workers)):
        for number, told in zip(part, answer, strict=True):
            found[number] = RuntimeError(told) if isinstance(told, str) else told[0]
    return found


def describe(error: BaseException) -> str:
    """The reason of a failed job in a line or a few."""
    if isinstance(error, WsssError):
        return str(error)
    if isinstance(error, OutOfMemoryError):
        return "out of memory: Ray ended the worker because the machine had none left"
    if isinstance(error, WorkerCrashedError):
        return f"its worker died {_RETRIES + 1} times in a row (killed, or out of memory)"
    return f"{type(error).__name__}: {error}"


def parts(numbers: Sequence[int], work: int, workers: int) -> list[list[int]]:
    """Cut jobs into parts so that `work` pieces of work make about two tasks a worker, or as many as there are."""
    size = max(1, min(len(numbers), work // (2 * workers)))
    return [list(numbers[start : start + size]) for start in range(0, len(numbers), size)]


def _gather(pieces: list[tuple[list[int], int]], start: Callable[[Sequence[int], int], Any], workers: int) -> Any:
    """Run tasks, a few more than fit at a time, and yield (jobs, what the task told of each of them).

    A task whose worker died is cut into its jobs: one of them is to blame, the others must not fail with it.
    """
    waiting = list(pieces)
    running: dict[Any, tuple[list[int], int]] = {}
    try:
        while waiting or running:
            while waiting and len(running) <= workers:
                part, index = waiting.pop(0)
                running[start(part, index)] = (part, index)
            ready, _ = ray.wait(list(running), num_returns=1)
            for reference in ready:
                part, index = running.pop(reference)
                try:
                    answer = ray.get(reference)
                except RayError as error:
                    if len(part) > 1:
                        waiting += [([number], index) for number in part]
                        continue
                    answer = [describe(error)]
                yield part, answer
    finally:
        for reference in running:
            ray.cancel(reference)


def _finished_shards(job: StageJob, shards: Sequence[tuple[str, ...]]) -> set[int]:
    writer = job.writer()
    found = writer.finished_images()
    finished = {
        index for index, images in found.items() if index < len(shards) and sorted(images) == sorted(shards[index])
    }
    for index in set(found) - finished:
        writer.discard_shard(index)
    return finished


# DEFAULT: inside a Tune trial Ray would else look for a CPU among what the trial itself reserved, which is none.
@ray.remote(num_cpus=1, max_retries=_RETRIES, scheduling_strategy="DEFAULT")
def _run_shard_of(jobs: Sequence[Any], index: int, names: Sequence[str], gpu: bool) -> list[float | str]:
    return shard_of_jobs(_present(jobs), index, names, gpu)


def shard_of_jobs(jobs: Sequence[StageJob], index: int, names: Sequence[str], gpu: bool) -> list[float | str]:
    """Compute and store one shard of every job in this process; seconds of each, or why it failed."""
    stage = jobs[0].stage
    assert isinstance(stage, MapStage)
    if len(jobs) > 1 and stage.build_many is not None:
        try:
            return _shared_seconds(jobs, index, names, gpu)
        except Exception as error:  # one of the settings is to blame: each on its own tells which
            log.info("stage %s: %s; its settings are computed one by one", stage.name, describe(error))
    return [_shard_seconds(job, index, names, gpu) for job in jobs]


@ray.remote(num_cpus=1, max_retries=_RETRIES, scheduling_strategy="DEFAULT")
def _run_reductions(jobs: Sequence[Any]) -> list[float | str]:
    return [_reduction_seconds(job) for job in _present(jobs)]


@ray.remote(num_cpus=1, max_retries=_RETRIES, scheduling_strategy="DEFAULT")
def _call(function: Callable[[Any], Any], arguments: Sequence[Any]) -> list[Any]:
    answers: list[Any] = []
    for argument in arguments:
        try:
            answers.append((function(argument),))
        except Exception as error:  # told to the caller, who names the trial
            answers.append(describe(error))
    return answers


def _present(jobs: Sequence[Any]) -> list[StageJob]:
    present = ray.get(list(jobs))
    identities = {_identity(job) for job in present} | {_identities(present)}
    for identity in set(_built) - identities:  # models of earlier stages and settings
        del _built[identity]
    torch.set_num_threads(1)
    return present


def _identity(job: StageJob) -> str:
    return f"{job.stage.name}/{job.key}"


def _identities(jobs: Sequence[StageJob]) -> str:
    return "+".join(_identity(job) for job in jobs)


def _shared_seconds(jobs: Sequence[StageJob], index: int, names: Sequence[str], gpu: bool) -> list[float | str]:
    """All jobs image by image; each is told an equal share of the time."""
    stage = jobs[0].stage
    assert isinstance(stage, MapStage) and stage.build_many is not None
    started = time.monotonic()
    identity = _identities(jobs)
    if identity not in _built:
        torch.manual_seed(0)
        _built[identity] = stage.build_many([job.context("cuda:0" if gpu else "cpu") for job in jobs])
    records: list[dict[str, Arrays]] = [{} for _ in jobs]
    with torch.inference_mode():
        for name in names:
            for record, arrays in zip(records, _built[identity](name), strict=True):
                record[name] = arrays
    for job, record in zip(jobs, records, strict=True):
        job.writer().add_shard(index, record)
    return [(time.monotonic() - started) / len(jobs)] * len(jobs)


def _shard_seconds(job: StageJob, index: int, names: Sequence[str], gpu: bool) -> float | str:
    stage = job.stage
    assert isinstance(stage, MapStage)
    started = time.monotonic()
    try:
        if _identity(job) not in _built:
            torch.manual_seed(0)
            _built[_identity(job)] = stage.build(job.context("cuda:0" if gpu else "cpu"))
        per_image = _built[_identity(job)]
        with torch.inference_mode():
            records = {name: per_image(name) for name in names}
        job.writer().add_shard(index, records)
    except Exception as error:
        return describe(error)
    return time.monotonic() - started


def _reduction_seconds(job: StageJob) -> float | str:
    started = time.monotonic()
    try:
        compute_reduction(job)
    except Exception as error:
        return describe(error)
    return time.monotonic() - started
