"""Runs a training stage under Ray Train: workers, checkpoints, resume, the label firewall."""

from __future__ import annotations

import io
import json
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray._raylet import RAY_NODE_ID_KEY  # pyright: ignore[reportAttributeAccessIssue]
from ray.exceptions import GetTimeoutError, RayError
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.execution.context import get_train_context
from ray.train.v2.api.preemption import PreemptionInfo

from wsss.data.firewall import forbid_mask_reading
from wsss.errors import WsssError
from wsss.execution.cluster import START_ATTEMPTS
from wsss.execution.nodes import Resources
from wsss.execution.numeric_mode import numeric_mode
from wsss.execution.stage_job import HISTORY_FILE, StageJob, training_name
from wsss.execution.tasks import last_line
from wsss.execution.train_board import Steps, TrainBoard
from wsss.execution.train_loop import LoopEvents, LoopSettings, TrainingError, is_candidate, run_training, steps_until
from wsss.execution.waiting import NodesMissingError, NodeWatch, Tell, waits_for_group
from wsss.formatting import count, duration
from wsss.nn.norms import synchronize_batch_norm
from wsss.pipeline import TrainStage

_STATE_FILE = "state.pt"
_TELL_EVERY_SECONDS = 0.5

# (steps of the whole stage, those done since the last call)
OnSteps = Callable[[int, Steps], None]


@dataclass(frozen=True)
class TrainPlan:
    """Workers, resources and settings of a training stage on the cluster."""

    workers: int
    gpu: bool
    threads: int
    settings: LoopSettings
    max_failures: int
    checkpoints: str
    forbidden_folders: tuple[Path, ...] = ()

    @property
    def each(self) -> Resources:
        """What one worker asks of a node."""
        return Resources(cpus=self.threads, gpus=int(self.gpu))


class _Teller:
    """Reports the steps of rank 0 to the board, at most twice a second."""

    def __init__(self, board: Any, rank: int) -> None:
        self.board, self.rank = board, rank
        self.steps: Steps = []
        self.told_at = 0.0

    def step(self, done: int, total: int, losses: dict[str, float], rates: dict[str, float]) -> None:
        """Called by the loop after every optimizer step."""
        if self.rank != 0:
            return
        self.steps.append((done, {**losses, **{f"learning_rate/{name}": rate for name, rate in rates.items()}}))
        if time.monotonic() - self.told_at > _TELL_EVERY_SECONDS or done == total:
            self.told_at = time.monotonic()
            delivery = self.board.tell.remote(total, self.steps)
            self.steps = []
            if done == total:
                ray.get(delivery)


class _Notice:
    """Whether Ray has told this worker of a node that will be taken away, once for each such message.

    Asks the worker's own memory: Ray's public question is a barrier of all workers, which is too slow for every step.
    """

    def __init__(self, board: Any, rank: int) -> None:
        self._board, self._rank = board, rank
        self._known: PreemptionInfo | None = None

    def __call__(self) -> bool:
        info = get_train_context().preemption_context.preemption_info
        if info is None or info == self._known:
            return False
        self._known = info
        if self._rank == 0:
            seconds = None if info.deadline_ms is None else max(0.0, info.deadline_ms / 1000 - time.time())
            when = "" if seconds is None else f" in {duration(seconds)}"
            nodes = count(len(info.preempted_node_ids), "node")
            self._board.note.remote(f"{nodes} will be taken away{when}; it saves now, and goes on")
        return True


class _Watch:
    """A thread beside the driver that shows progress, lost nodes and waits until it is stopped."""

    def __init__(self, stage: str, plan: TrainPlan, board: Any, on_progress: OnSteps, tell: Tell) -> None:
        self._stage, self._plan, self._board = stage, plan, board
        self._on_progress, self._tell = on_progress, tell
        self._nodes = NodeWatch(stage, plan.workers, plan.each, tell)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._step, self._started = 0, False
        self.missing: NodesMissingError | None = None
        self.failure: Exception | None = None

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Show what is left to show, and end."""
        self._ended.set()
        self._thread.join(timeout=10)

    @property
    def waited(self) -> float:
        """Seconds that went by until nodes came."""
        return self._nodes.waited

    def _run(self) -> None:
        last = False
        while not last:
            last = self._ended.wait(0.5)  # one more look after the end
            try:
                if not last and self.missing is None:
                    self._nodes.look(self._waiting, f"was at step {self._step}, goes on from its last checkpoint")
                self._show(*ray.get(self._board.news.remote(), timeout=5))
            except NodesMissingError as error:
                self.missing = error  # Train gives up at about the same time
            except (GetTimeoutError, RayError):
                continue
            except Exception as error:  # the screen or the record cannot be written
                self.failure = error
                if not last:
                    _interrupt()
                return

    def _waiting(self) -> bool:
        return waits_for_group(self._plan.workers, self._plan.each)

    def _show(self, total: int, steps: Steps, starts: list[int], notes: list[str]) -> None:
        for note in notes:
            self._tell(f"{self._stage}: {note}")
        for step in starts:
            if self._started:
                self._tell(f"{self._stage}: goes on from step {step} with {count(self._plan.workers, 'worker')}")
            self._started = True
        if steps:
            self._step = steps[-1][0]
            self._on_progress(total, steps)


def _in_words(error: Exception) -> str:
    """The reason of a failed training; of a process that died Ray tells what it might have been, at length."""
    if "worker process has died" in str(error):
        return "a worker died (killed, or out of memory: `dmesg` of its machine says which)"
    return last_line(error)


def _interrupt() -> None:
    """End what the main thread of a driver waits for, as SIGTERM does: `connect` turns it into KeyboardInterrupt.

    Not SIGINT, which the commands of a shell script in its background ignore.
    """
    if signal.getsignal(signal.SIGTERM) is signal.default_int_handler:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


class _Trainer(TorchTrainer):
    """Without the process that hands out Ray data sets: there are none, and it takes seconds to start."""

    def _create_default_callbacks(self) -> list[Any]:
        return [each for each in super()._create_default_callbacks() if not isinstance(each, DatasetsCallback)]

    def _register_sigint_handler(self, controller: Any) -> None:
        """Nothing. Ray's handler of Ctrl-C stays when the training is over, and ends the process with exit code 0."""


def run_train_stage(job: StageJob, plan: TrainPlan, on_progress: OnSteps, tell: Tell) -> dict[str, Any]:
    """Train, store weights and history, and return facts. Continues an attempt that was killed.

    Args:
        tell: told which nodes were lost, what is waited for and from which step the training goes on.

    Raises:
        WsssError: whatever a worker raised with a remedy.
        TrainingError: the workers could not be started, or died more often than allowed.
        Exception: what `on_progress` or `tell` raised; it ends the training.
        NodesMissingError: nodes that were lost were not replaced in time.
    """
    # On the driver's node, which outlives the training: any other may be lost.
    here = {RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()}
    board: Any = ray.remote(num_cpus=0, label_selector=here)(TrainBoard).remote()
    trainer = _Trainer(
        _worker,
        train_loop_config={"job": job, "plan": plan, "board": board},
        scaling_config=ScalingConfig(
            num_workers=plan.workers,
            use_gpu=plan.gpu,
            resources_per_worker={"CPU": plan.threads, **({"GPU": 1} if plan.gpu else {})},
            placement_strategy="PACK",
        ),
        run_config=RunConfig(
            name=training_name(job.stage, job.key),
            storage_path=plan.checkpoints,
            failure_config=FailureConfig(max_failures=plan.max_failures, controller_failure_limit=START_ATTEMPTS - 1),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    watch = _Watch(job.stage.name, plan, board, on_progress, tell)
    watch.start()
    try:
        try:
            result = trainer.fit()
        finally:
            watch.stop()
    except ray.train.TrainingFailedError as error:
        failure: WsssError | None = None
        with suppress(RayError):  # the board may be lost with its node
            failure = ray.get(board.failure.remote())
        if failure is not None:
            raise failure from None
        if watch.missing is not None:
            raise watch.missing from None
        raise TrainingError(
            f"training failed: {_in_words(error)}",
            f"stage {job.stage.name}",
            "run the same command to continue from the last checkpoint; WSSS_DEBUG=1 shows the workers' output",
        ) from error
    except KeyboardInterrupt:
        if watch.failure is not None:
            raise watch.failure from None
        raise
    finally:
        ray.kill(board)
    if watch.failure is not None:
        raise watch.failure
    facts = result.return_value
    if not isinstance(facts, dict):
        raise TrainingError("the training workers returned nothing", f"stage {job.stage.name}", "run it again")
    return {**facts, "waited_seconds": watch.waited} if watch.waited else facts


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    job: StageJob = config["job"]
    plan: TrainPlan = config["plan"]
    board = config["board"]
    known: WsssError | None = ray.get(board.failure.remote())
    if known is not None:
        raise known
    try:
        # The driver's, and what this node has in their place: its own copy is fetched before the door is closed.
        forbidden = {*plan.forbidden_folders, *job.here(plan.forbidden_folders)}
        with forbid_mask_reading(forbidden), numeric_mode(job.mode, training_on_gpu=plan.gpu):
            return _train(job, plan, board)
    except WsssError as error:
        ray.get(board.fail.remote(error))
        raise


def _train(job: StageJob, plan: TrainPlan, board: Any) -> dict[str, Any]:
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = str(ray.train.torch.get_device())
    torch.set_num_threads(max(1, plan.threads))
    stage = job.stage
    assert isinstance(stage, TrainStage)
    # Initial weights come from the seed alone, on every worker.
    torch.manual_seed(stage.seed)
    task = stage.build(job.context(device, rank, world_size))
    if stage.epochs not in (0, task.total_epochs()):
        raise TrainingError(
            f"the pipeline says {stage.epochs} epochs, the training {task.total_epochs()}",
            f"stage {stage.name}",
            "give TrainStage the epochs that its config holds",
        )
    if world_size > 1:
        synchronize_batch_norm(task.module, cuda=plan.gpu and not task.keep_last)
    settings = replace(plan.settings, device=device, rank=rank, world_size=world_size)
    writer = job.writer()
    teller = _Teller(board, rank)
    started = time.monotonic()
    until_epoch, writers = None, [writer]
    if stage.preview is not None:
        until_epoch = stage.preview.epoch
        writers.append(job.store.writer(stage.name, stage.preview.whole_key))
    last_step = steps_until(task, until_epoch)
    state, first_step = _load_state(), 0
    if state is not None and int(state["step"]) > last_step:
        state = None  # a preview that was lost after the training had gone on
    if state is not None:
        first_step = int(state["step"])
    if rank == 0:
        ray.get(board.start.remote(first_step))

    def candidate(epoch: int, weights: dict[str, dict[str, torch.Tensor]]) -> None:
        for place in writers if is_candidate(task, epoch) else writers[:1]:
            for stem, values in weights.items():
                place.add_file(f"epoch_{epoch:04d}/{stem}.pt", _encoded(values))

    events = LoopEvents(save=_save_state, step=teller.step, candidate=candidate, notice=_Notice(board, rank))
    history = run_training(task, stage.seed, settings, events, state, until_epoch)
    if rank != 0:
        return {}
    for stem, values in task.trained_weights().items():
        writer.add_file(f"{stem}.pt", _encoded(values))
    writer.add_file(HISTORY_FILE, json.dumps(history).encode())
    seconds = time.monotonic() - started
    batches = (task.batch_of(step)[1] for step in range(first_step, last_step))
    images = sum(places.stop - places.start for places in batches)
    return {
        "steps": last_step,
        "resumed_steps": first_step,
        "images_per_second": images / seconds if seconds > 0 else 0.0,
        "peak_gpu_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if plan.gpu else 0.0,
    }


def _load_state() -> dict[str, Any] | None:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        return torch.load(Path(folder) / _STATE_FILE, map_location="cpu", weights_only=True)


def _save_state(state: dict[str, Any] | None, step: int) -> None:
    if state is None:
        ray.train.report({"step": step})
        return
    with tempfile.TemporaryDirectory() as folder:
        torch.save(state, Path(folder) / _STATE_FILE)
        ray.train.report({"step": step}, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _encoded(values: dict[str, torch.Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save({name: value.detach().cpu().contiguous() for name, value in values.items()}, buffer)
    return buffer.getvalue()
