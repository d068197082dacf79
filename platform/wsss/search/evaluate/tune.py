"""Ray Tune under a search: a Tune trial evaluates one batch of trials on a warm worker.

Tune's own snapshots are not restored from. The records of the sweep say what is finished, the store what is computed,
so that every attempt starts a Tune experiment of its own and hands out again what an earlier one left unfinished.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import GetTimeoutError, RayError
from ray.tune.error import TuneError
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search import Searcher

from wsss.execution.cluster import ClusterError
from wsss.execution.tasks import last_line
from wsss.formatting import percent
from wsss.search.choose.best import ranked
from wsss.search.evaluate.batch import BatchEvaluator
from wsss.search.evaluate.shortcuts import fuse_batch, race_batch
from wsss.search.evaluate.trial import RunningTrial, SweepContext, TrialOutcome, best_so_far
from wsss.search.propose.nested import NestedSearch, ProposedTrial, told_values
from wsss.search.records import Rung, TrialRecord
from wsss.search.study.ledger import Ledger

_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # results are recorded by the ledger
    "TUNE_GLOBAL_CHECKPOINT_S": "600",  # nothing is restored from Tune's snapshots
    "TUNE_MAX_PENDING_TRIALS_PG": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
}
RUNG, RUNG_VALUE = "rung", "rung_value"
WORKER_FAILED = "the trial's worker died or failed repeatedly"
Show = Callable[[str], None]


class NewsBoard:
    """What running batches have to say, for the driver to show, and why one failed."""

    def __init__(self) -> None:
        self._news: list[str] = []
        self._failures: dict[int, str] = {}

    def tell(self, text: str) -> None:
        """Add a line."""
        self._news.append(text)

    def news(self) -> list[str]:
        """Lines since the last call."""
        news, self._news = self._news, []
        return news

    def fail(self, trials: list[int], reason: str) -> None:
        """Keep what a worker raised while it evaluated these trials."""
        self._failures |= dict.fromkeys(trials, reason)

    def failure(self, trial: int) -> str:
        """What was kept of a trial; empty where its worker died without a word."""
        return self._failures.get(trial, "")


class BatchTrainable(tune.Trainable):
    """Evaluates the batch of its config: one step to each rung, where it has some, and one to the end.

    Reused from batch to batch: what it loaded stays loaded.
    """

    def setup(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, config: dict[str, Any], sweep: SweepContext, rungs: tuple[Rung, ...], board: Any
    ) -> None:
        """Called once in a worker's life."""
        self._rungs = rungs
        self._board = board
        self._evaluator = BatchEvaluator(sweep, lambda text: board.tell.remote(text))
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The next batch."""
        self.cleanup()
        self._proposed: list[dict[str, Any]] = new_config["trials"]
        self._waiting = list(self._rungs) if new_config["with_rungs"] else []
        self._best: dict[str, Any] | None = new_config["best"]
        self._trials: list[RunningTrial] | None = None
        return True

    def cleanup(self) -> None:
        """A batch that was stopped before its end leaves no checkpoints."""
        if getattr(self, "_trials", None):
            self._evaluator.discard(self._trials or [])

    def step(self) -> dict[str, Any]:
        """Advance to the next rung, or to the end."""
        try:
            return self._step()
        except Exception as error:
            numbers = [each["number"] for each in self._proposed]
            ray.get(self._board.fail.remote(numbers, f"{type(error).__name__}: {last_line(error)}"))
            raise

    def _step(self) -> dict[str, Any]:
        if self._trials is None:
            self._trials = [self._evaluator.open(each["number"], each["settings"]) for each in self._proposed]
        while self._waiting:
            rung = self._waiting.pop(0)
            if rung.stage:
                going_on = [trial for trial in self._trials if trial.going_on]
                reached = [self._evaluator.preview(trial, rung) for trial in going_on[:1]]
            else:
                self._evaluator.advance(self._trials, rung.metric)
                reached = [self._evaluator.value(trial, rung.metric) for trial in self._trials]
            known = [value for value in reached if value is not None]
            if known:
                place = len(self._rungs) - len(self._waiting)
                so_far = self._evaluator.so_far(self._trials)
                return {RUNG: place, RUNG_VALUE: max(known), "outcomes": so_far, "done": False}
        fuse_batch(self._evaluator, self._trials)
        race_batch(self._evaluator, self._trials, self._best)
        self._evaluator.advance(self._trials, self._evaluator.metric)
        outcomes = self._evaluator.outcomes(self._trials)
        self._trials = []
        values = [outcome.score.value for outcome in outcomes if outcome.score is not None]
        return {
            RUNG: len(self._rungs) + 1,
            RUNG_VALUE: max(values, default=0.0),
            "outcomes": outcomes,
            "done": True,
        }


class SweepSearcher(Searcher):
    """Tune's view of a search: a suggestion is a batch, its completion goes to the ledger and to the search.

    Args:
        cause: what the worker of a trial, by number, said of its end; empty: nothing.

    Attributes:
        failure: what the ledger or the screen raised. Tune would tell it in a traceback of its own.
    """

    def __init__(
        self,
        search: NestedSearch,
        ledger: Ledger,
        rungs: tuple[Rung, ...],
        on_trial: Callable[[TrialRecord], None],
        cause: Callable[[int], str] = lambda number: "",
    ) -> None:
        super().__init__()
        self._cause = cause
        self._search, self._ledger, self._rungs, self._on_trial = search, ledger, rungs, on_trial
        self._running: dict[str, list[ProposedTrial]] = {}
        self.failure: Exception | None = None
        # Rungs compare outer trials, each once.
        self._tried = {trial.outer_key for trial in ledger.trials.values() if trial.status != "running"}

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles it for a restore that is never made

    @contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.failure = self.failure or error
            raise

    def suggest(self, trial_id: str) -> Any:
        """The next batch; None when one that is running must be told first."""
        with self._kept():
            return self._suggest(trial_id)

    def _suggest(self, trial_id: str) -> Any:
        batch = self._search.ask()
        if batch is None:
            return Searcher.FINISHED if self._search.finished else None
        self._ledger.begin(batch)
        self._running[trial_id] = batch
        first = batch[0].outer_key not in self._tried
        self._tried.add(batch[0].outer_key)
        return {
            "batch": batch[0].batch,
            "trials": [{"number": each.number, "settings": each.settings} for each in batch],
            "with_rungs": bool(self._rungs) and first,
            "best": self._best_so_far(),
        }

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Rungs are the scheduler's business."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A batch ended: evaluated, stopped at a rung, or lost with its worker."""
        with self._kept():
            self._complete(trial_id, result, error)

    def _complete(self, trial_id: str, result: dict[str, Any] | None, error: bool) -> None:
        batch = self._running.pop(trial_id, [])
        outcomes: dict[int, TrialOutcome] = {each.number: each for each in (result or {}).get("outcomes", ())}
        pruned_at = None
        if not error and result and result.get(RUNG, 0) in range(1, len(self._rungs) + 1):
            pruned_at = (int(result[RUNG]), float(result[RUNG_VALUE]))
        for proposed in batch:
            pruned = ""
            outcome = outcomes.get(proposed.number)
            if pruned_at is not None and not (outcome is not None and outcome.error):
                pruned = f"stopped at {self._rungs[pruned_at[0] - 1].text} = {percent(pruned_at[1])} %"
            elif outcome is not None and outcome.race is not None and outcome.race.estimate is not None:
                pruned = outcome.race.text
            if outcome is None:
                outcome = TrialOutcome(proposed.number, error="" if pruned else self._failure(proposed.number))
            trial = self._ledger.finish(outcome, pruned, pruned_at)
            self._search.tell(proposed.number, told_values(trial), pruned_at)
            self._on_trial(trial)
        self._ledger.update()

    def _failure(self, number: int) -> str:
        cause = self._cause(number)
        return f"{WORKER_FAILED}: {cause}" if cause else WORKER_FAILED

    def _best_so_far(self) -> dict[str, Any] | None:
        order = ranked(list(self._ledger.trials.values()), self._ledger.record.metric)
        if not order:
            return None
        best = order[0]
        return best_so_far(best.number, best.threshold, best.artifacts)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the records are the state."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the records are the state."""


def run_tune(
    search: NestedSearch,
    ledger: Ledger,
    sweep: SweepContext,
    *,
    rungs: tuple[Rung, ...],
    concurrency: int,
    on_trial: Callable[[TrialRecord], None],
    show: Show,
) -> None:
    """Evaluate until the search has nothing left to ask for. Ray is connected.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM; what was finished is in the ledger.
        ClusterError: Ray or Tune itself failed.
        Exception: what the ledger or `on_trial` raised.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not os.environ.get("WSSS_DEBUG"):
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a failed trial has its reason in its record
    folder = ledger.folder / "tune"
    shutil.rmtree(folder, ignore_errors=True)
    board: Any = ray.remote(num_cpus=0)(NewsBoard).remote()
    searcher = SweepSearcher(search, ledger, rungs, on_trial, lambda number: _failure(board, number))
    # It asks for no CPU, which the stages need, and stays where the driver's home is.
    trainable = tune.with_resources(
        tune.with_parameters(BatchTrainable, sweep=sweep, rungs=rungs, board=board),
        {"memory": 1 << 20, **_this_node()},
    )
    scheduler = (
        ASHAScheduler(
            time_attr=RUNG, metric=RUNG_VALUE, mode="max", max_t=len(rungs) + 1, grace_period=1, reduction_factor=2
        )
        if rungs
        else FIFOScheduler()
    )
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=-1,
            max_concurrent_trials=concurrency,
            reuse_actors=True,
            trial_name_creator=_name_of,
            trial_dirname_creator=_name_of,
        ),
        run_config=tune.RunConfig(
            name=f"attempt-{time.time_ns()}",
            storage_path=str(folder),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=2),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
    try:
        with _stop_signals(), _showing(board, show):
            tuner.fit()
    except (RayError, TuneError) as error:
        raise searcher.failure or ClusterError(
            f"Ray Tune failed: {last_line(error)}",
            f"sweep in {ledger.folder}",
            "run the same command again: finished trials are kept; `WSSS_DEBUG=1` shows more",
        ) from error
    if searcher.failure is not None:  # which Tune may have swallowed
        raise searcher.failure
    ray.kill(board)
    shutil.rmtree(folder, ignore_errors=True)
    if not search.finished:  # Tune ends without a word when it is interrupted
        raise KeyboardInterrupt


def _failure(board: Any, trial: int) -> str:
    with suppress(GetTimeoutError, RayError):
        return ray.get(board.failure.remote(trial), timeout=5)
    return ""


def _this_node() -> dict[str, float]:
    """Next to nothing of the resource that only the driver's node has."""
    here = ray.get_runtime_context().get_node_id()
    names = [name for node in ray.nodes() if node["NodeID"] == here for name in node["Resources"]]
    return {name: 0.001 for name in names if name.startswith("node:") and name != "node:__internal_head__"}


@contextmanager
def _stop_signals() -> Iterator[None]:
    """SIGTERM ends Tune as Ctrl-C does: running trials are stopped and `fit` returns."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _showing(board: Any, show: Show) -> Iterator[None]:
    """Shows news of running batches while the block runs."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(1.0):
            with suppress(GetTimeoutError, RayError):
                for text in ray.get(board.news.remote(), timeout=5):
                    try:
                        show(text)
                    except OSError:  # of a screen that is gone, the next line of a trial tells
                        return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=10)


def _name_of(trial: Any) -> str:
    return f"batch-{trial.config['batch']}-{trial.trial_id[-5:]}"
