"""Runs Ray tasks that each take several items, and says of every item what became of it.

Tasks, not actors: a task gives its CPU back when it ends, Ray starts a lost one again by itself, and the worker
process stays warm for the next one.
"""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayError, RaySystemError, WorkerCrashedError

from wsss.errors import WsssError
from wsss.execution.cluster import ClusterError
from wsss.execution.nodes import Resources
from wsss.execution.waiting import NodeWatch, Tell

RETRIES = 3
# DEFAULT: inside a Tune trial Ray would else look for a CPU among what the trial itself reserved, which is none.
TASK_OPTIONS: dict[str, Any] = {"num_cpus": 1, "max_retries": RETRIES, "scheduling_strategy": "DEFAULT"}

Piece = tuple[list[int], int]
# Starts the task of a piece with these options of Ray, and returns Ray's reference.
Start = Callable[[Sequence[int], int, dict[str, Any]], Any]


def parts(items: Sequence[int], work: int, workers: int) -> list[list[int]]:
    """Cut items into parts so that `work` pieces of work make about two tasks a worker, or one task an item."""
    size = max(1, min(len(items), work // (2 * workers)))
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def run_tasks(
    pieces: Sequence[Piece],
    start: Start,
    workers: int,
    watch: NodeWatch,
    tell: Tell,
    wanted: Callable[[int], bool] = lambda item: True,
) -> Iterator[tuple[Piece, list[Any]]]:
    """Run tasks and yield (piece, what the task told of each of its items).

    A task whose worker died twice is cut into its items: one of them is to blame, the others must not fail with it. A
    task that a worker process could not import or unpickle starts again in a fresh one.

    Args:
        pieces: (items, number of the shard).
        workers: tasks that run at a time.
        watch: asked while no task ends.
        tell: told of a task that starts again.
        wanted: asked of every item before its task is started; what is no longer wanted, since it failed in another
            task, is left out and not yielded.

    Raises:
        NodesMissingError: no node that fits a task came in time.
    """
    waiting = list(pieces)
    running: dict[Any, Piece] = {}
    attempts: dict[tuple[int, ...], int] = {}
    cut: set[tuple[int, int]] = set()  # (item, shard) whose workers have died together
    at_once = workers + watch.spare(workers)
    try:
        while running or waiting:
            while waiting and len(running) < at_once:
                items, shard = waiting.pop(0)
                items = [item for item in items if wanted(item)]
                if not items:
                    continue
                attempt = attempts.get((*items, shard), 0)
                options = _fresh_process(attempt)
                if len(items) > 1 or (items[0], shard) in cut:
                    options["max_retries"] = RETRIES // 2  # half of the deaths together, half alone
                running[start(items, shard, options)] = (items, shard)
            if not running:
                break
            ready, _ = ray.wait(list(running), num_returns=1, timeout=1.0)
            if not ready:
                watch.look(lost="its tasks start again, finished shards are kept")
            for reference in ready:
                piece = items, shard = running.pop(reference)
                try:
                    answer = ray.get(reference)
                except RayError as error:
                    attempt = attempts[(*items, shard)] = attempts.get((*items, shard), 0) + 1
                    if is_import_failure(error) and attempt <= RETRIES:
                        tell(f"a worker process could not load its task, which starts again: {last_line(error)}")
                        waiting.insert(0, piece)
                        continue
                    if len(items) > 1:
                        # First of all: who is to blame is then left out of the other tasks.
                        waiting[:0] = [([item], shard) for item in items]
                        cut |= {(item, shard) for item in items}
                        continue
                    answer = [_in_words(error)]
                yield piece, answer
    finally:
        for reference in running:
            ray.cancel(reference)


def _fresh_process(attempt: int) -> dict[str, Any]:
    """Options that make Ray start a worker process for a repeated task: in the old one the import stays broken."""
    return {"runtime_env": {"env_vars": {"WSSS_ATTEMPT": str(attempt)}}} if attempt else {}


def call_many(
    function: Callable[[Any], Any], arguments: Sequence[Any], workers: int, tell: Tell, use_gpu: bool = False
) -> list[Any]:
    """`function` of each argument, in tasks of one CPU; an exception comes back as its text in a RuntimeError."""
    pieces = [(part, 0) for part in parts(list(range(len(arguments))), len(arguments), max(1, workers))]
    found: list[Any] = [None] * len(arguments)

    def start(items: Sequence[int], shard: int, options: dict[str, Any]) -> Any:
        task = _call.options(num_gpus=int(use_gpu), **options)
        return task.remote(function, [arguments[item] for item in items])

    watch = NodeWatch("scores", 1, Resources(gpus=int(use_gpu)), tell)
    for (items, _), answer in run_tasks(pieces, start, max(1, workers), watch, tell):
        for item, told in zip(items, answer, strict=True):
            found[item] = RuntimeError(describe(told)) if isinstance(told, Exception) else told[0]
    return found


def describe(error: BaseException) -> str:
    """The reason of a failure in a line or a few."""
    return str(error) if isinstance(error, WsssError) else f"{type(error).__name__}: {error}"


def portable(error: Exception) -> Exception:
    """The error as it is returned to the driver: with its traceback as a note, and in words if it can not be pickled.

    An import that another thread of the process had only half finished is raised again: `run_tasks` repeats it.
    """
    if is_import_failure(error):
        raise error
    error.add_note("In the worker:\n" + "".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(describe(error))
    return error


def is_import_failure(error: BaseException) -> bool:
    """Whether a worker process failed to load what it was given, which another process, or a later try, can do."""
    text = str(error)
    return isinstance(error, RaySystemError) or "partially initialized module" in text or "failed to import on" in text


def _in_words(error: RayError) -> Exception:
    if isinstance(error, OutOfMemoryError):
        what = "out of memory: Ray ended the worker because the machine had none left"
    elif isinstance(error, WorkerCrashedError):
        what = f"a worker died {RETRIES + 1} times in a row (killed, or out of memory)"
    else:
        return error
    return ClusterError(what, "", "lower execution.map_workers; finished shards are kept")


def last_line(error: BaseException) -> str:
    """The last line of an error's text, where Ray says what was raised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


@ray.remote(**TASK_OPTIONS)
def _call(function: Callable[[Any], Any], arguments: Sequence[Any]) -> list[Any]:
    answers: list[Any] = []
    for argument in arguments:
        try:
            answers.append((function(argument),))
        except Exception as error:  # told to the caller, who names the trial
            answers.append(portable(error))
    return answers
