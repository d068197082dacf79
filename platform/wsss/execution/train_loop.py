"""The training loop that drives every trained stage. Plain torch: Ray is added in `train_stage`.

The sequence of global batches depends on seed and epoch alone, and every loss is divided by its count over the
global batch: any number of workers and micro-batches gives the same curve up to rounding. A run that continues from
a checkpoint takes the same steps as an undisturbed one.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from wsss.errors import WsssError
from wsss.execution.shared_memory import PREFETCH_FACTOR, check_shared_memory
from wsss.nn.norms import no_share_in_statistics
from wsss.train_task import Batch, TrainTask


class TrainingError(WsssError):
    """A training stage cannot continue."""


@dataclass(frozen=True)
class LoopSettings:
    """How the loop uses its worker. Nothing here changes the result beyond rounding."""

    device: str = "cpu"
    rank: int = 0
    world_size: int = 1
    micro_batch: int = 0
    loader_workers: int = 0
    checkpoint_steps: int = 500
    channels_last: bool = False


def _never() -> bool:
    return False


@dataclass(frozen=True)
class LoopEvents:
    """Callbacks of the loop. `save` is called on every rank at the same steps, with the state on rank 0 only.

    `notice` is asked on every rank after every step: where one of them answers True, all save at that step.
    """

    save: Callable[[dict[str, Any] | None, int], None]
    step: Callable[[int, int, dict[str, float], dict[str, float]], None]
    candidate: Callable[[int, dict[str, dict[str, Tensor]]], None]
    notice: Callable[[], bool] = _never


def run_training(
    task: TrainTask,
    seed: int,
    settings: LoopSettings,
    events: LoopEvents,
    state: dict[str, Any] | None,
    until_epoch: int | None = None,
) -> dict[str, list[float]]:
    """Train to the end (from `state`, if given) and return the history by step.

    With `until_epoch` it stops after that many epochs, at a checkpoint from which it can be continued, and those
    weights are a candidate like those of the last epoch. Schedules are those of the whole training.

    Returns:
        ``{"loss/<name>": [...], "loss": [...], "statistic/<name>": [...], "learning_rate/<optimizer>": [...]}``, one
        value per step.

    Raises:
        TrainingError: a batch that cannot be split, an empty epoch, or a loss that is not finite.
        SharedMemoryError: the machine's shared memory does not hold the batches of loading processes.
    """
    total_steps = task.total_steps()
    if total_steps == 0:
        raise TrainingError(
            f"{len(task.samples)} samples do not fill one batch of {task.global_batch}",
            "training stage",
            "lower the batch size of the stage or use a longer image list",
        )
    device = torch.device(settings.device)
    module = task.module.to(device)
    if settings.channels_last:
        module = module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    module.train()
    base_rates = [[group["lr"] for group in plan.optimizer.param_groups] for plan in task.optimizers]
    use_amp = task.precision == "amp" and device.type == "cuda"
    scaler = torch.amp.GradScaler("cuda", enabled=use_amp)
    history: dict[str, list[float]] = {}
    first_step = 0
    if state is not None:
        first_step = _restore(task, module, scaler, history, state)
    last_step = steps_until(task, until_epoch)
    wrapped = _wrap(module, task, settings, device)
    batches = _batches(task, seed, settings, first_step, last_step)

    for step in range(first_step, last_step):
        epoch, _ = task.batch_of(step)
        for plan, rates in zip(task.optimizers, base_rates, strict=True):
            factor = plan.schedule(step, total_steps)
            for group, rate in zip(plan.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            plan.optimizer.zero_grad(set_to_none=True)
        micro_batches, share = next(batches)
        # Everything random inside the network (dropout) depends on the step, so a resumed run repeats it.
        torch.manual_seed(np.random.SeedSequence([seed, step, settings.rank]).generate_state(1)[0].item())
        counts = _global_counts(task, micro_batches, share, settings, device)
        sums: dict[str, Tensor] = {}
        for position, batch in enumerate(micro_batches):
            last = position == len(micro_batches) - 1
            with _gradient_sync(wrapped, last), contextlib.nullcontext() if share else no_share_in_statistics():
                with torch.autocast(device.type, torch.float16, enabled=use_amp):
                    losses = wrapped(_to_device(batch, device, settings.channels_last), epoch, step)
                # DDP averages the gradients over workers; each worker holds its part of one global sum.
                total = _weighted_total(task, losses, counts) * (settings.world_size * share)
                scaler.scale(total).backward()
            for name, value in losses.items():
                sums[name] = (
                    sums.get(name, torch.zeros((), dtype=torch.float64, device=device))
                    + value.detach().double() * share
                )
        if task.clip_norm:
            _clip_gradients(task, scaler)
        for plan in task.optimizers:
            scaler.step(plan.optimizer)
        scaler.update()

        values = _reduced_losses(task, sums, counts, settings)
        _check_finite(values, step, use_amp)
        rates_now = {plan.name: float(plan.optimizer.param_groups[0]["lr"]) for plan in task.optimizers}
        _append(history, values, rates_now)
        events.step(step + 1, total_steps, values, rates_now)

        finished = step + 1 == total_steps
        end_of_epoch = finished or task.batch_of(step + 1)[0] > epoch
        if settings.rank == 0 and end_of_epoch:
            _tell_candidate(task, epoch + 1, until_epoch, events)
        noticed = _on_any_worker(events.notice(), settings, device)
        if not finished and (end_of_epoch or noticed or (step + 1) % settings.checkpoint_steps == 0):
            events.save(_state(task, module, scaler, history, step + 1) if settings.rank == 0 else None, step + 1)
    if until_epoch is not None and first_step == last_step and settings.rank == 0:
        # Killed between its last checkpoint and its end: the candidate may not have been written.
        _tell_candidate(task, until_epoch, until_epoch, events)
    return history


def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """Order of the samples in an epoch: a permutation fixed by seed and epoch alone, int64 (count,)."""
    return np.random.default_rng([seed, epoch, 0x5EED]).permutation(count)


def steps_until(task: TrainTask, until_epoch: int | None) -> int:
    """Steps of the whole training, or until the end of an epoch (from 1) of it."""
    total = task.total_steps()
    return total if until_epoch is None else min(total, until_epoch * task.steps_per_epoch())


def split_batch(
    indices: Sequence[int], group_size: int, world_size: int, micro_batch: int, spare_workers: bool = False
) -> list[list[list[int]]]:
    """Split a global batch into ranks and micro-batches of whole groups: [rank][micro][index].

    Every rank gets the same number of micro-batches, so collective operations match. With `spare_workers` there may
    be fewer groups than workers: some ranks then get one micro-batch without an index.

    Raises:
        TrainingError: fewer groups than workers, or a batch that is no multiple of the group size.
    """
    if len(indices) % group_size:
        raise TrainingError(
            f"a batch of {len(indices)} cannot be split into groups of {group_size}",
            "batch size of the stage",
            f"use a multiple of {group_size}",
        )
    groups = [list(indices[i : i + group_size]) for i in range(0, len(indices), group_size)]
    if len(groups) < world_size and spare_workers:
        return [[[index for group in share for index in group]] for share in _even_split(groups, world_size)]
    if len(groups) < world_size:
        raise TrainingError(
            f"a batch of {len(indices)} (in groups of {group_size}) cannot feed {world_size} workers",
            "execution.train_workers",
            f"use at most {len(groups)} workers or a larger batch",
        )
    shares = _even_split(groups, world_size)
    smallest, largest = min(map(len, shares)), max(map(len, shares))
    groups_per_micro = max(1, micro_batch // group_size) if micro_batch else largest
    micro_count = min(smallest, -(-largest // groups_per_micro))
    return [
        [[index for group in micro for index in group] for micro in _even_split(share, micro_count)] for share in shares
    ]


def is_candidate(task: TrainTask, epochs_done: int, until_epoch: int | None = None) -> bool:
    """Whether the weights after `epochs_done` epochs are kept for a later choice; the last ones always are."""
    if task.candidate_every == 0:
        return False
    due = epochs_done % task.candidate_every == 0 and epochs_done > task.candidates_after
    return due or epochs_done in (task.total_epochs(), until_epoch)


def _tell_candidate(task: TrainTask, epochs_done: int, until_epoch: int | None, events: LoopEvents) -> None:
    if is_candidate(task, epochs_done, until_epoch):
        events.candidate(epochs_done, task.trained_weights())


def _even_split(items: list[Any], parts: int) -> list[list[Any]]:
    bounds = np.linspace(0, len(items), parts + 1).round().astype(int)
    return [items[low:high] for low, high in itertools.pairwise(bounds)]


class _SeededSamples(torch.utils.data.Dataset[Batch]):
    """Samples addressed by (epoch, index), so that augmentation depends on nothing else."""

    def __init__(self, task: TrainTask, seed: int) -> None:
        self.samples = task.samples
        self.seed = seed

    def __getitem__(self, address: tuple[int, int]) -> Batch:
        epoch, index = address
        return self.samples.sample(index, np.random.default_rng([self.seed, epoch, index]))


def _batches(
    task: TrainTask, seed: int, settings: LoopSettings, first_step: int, last_step: int
) -> Iterator[tuple[list[Batch], int]]:
    """Micro-batches of this rank for every step from `first_step` until before `last_step`, and its share, 1.

    Where the last batch of an epoch has fewer groups than there are workers, some have a share of 0: they are handed
    the first group of the batch, so that the operations of all workers match, and what they compute counts nothing.
    """
    plan: list[tuple[list[list[tuple[int, int]]], int]] = []
    order, order_epoch = np.empty(0, dtype=np.int64), -1
    for step in range(first_step, last_step):
        epoch, places = task.batch_of(step)
        if epoch != order_epoch:
            order_epoch, count = epoch, len(task.samples)
            order = epoch_order(seed, epoch, count) if task.shuffle else np.arange(count)
        indices = order[places].tolist()
        incomplete = len(indices) < task.global_batch
        shares = split_batch(indices, task.group_size, settings.world_size, settings.micro_batch, incomplete)
        share = 1 if any(shares[settings.rank]) else 0
        micro_batches = shares[settings.rank] if share else [indices[: task.group_size]]
        plan.append(([[(epoch, index) for index in micro] for micro in micro_batches], share))
    micros = [micro for micro_batches, _ in plan for micro in micro_batches]
    samples = _SeededSamples(task, seed)
    if micros and settings.loader_workers:
        check_shared_memory(samples[micros[0][0]], max(map(len, micros)), settings.loader_workers)
    loader = DataLoader(
        samples,
        batch_sampler=micros,
        num_workers=settings.loader_workers,
        prefetch_factor=PREFETCH_FACTOR if settings.loader_workers else None,
        pin_memory=settings.device.startswith("cuda"),
        persistent_workers=False,
    )
    stream = iter(loader)
    for micro_batches, share in plan:
        yield [next(stream) for _ in micro_batches], share


def _wrap(module: nn.Module, task: TrainTask, settings: LoopSettings, device: torch.device) -> nn.Module:
    if settings.world_size == 1:
        return module
    return DistributedDataParallel(
        module,
        device_ids=[device.index] if device.type == "cuda" else None,
        broadcast_buffers=False,
        find_unused_parameters=task.find_unused_parameters,
    )


def _gradient_sync(wrapped: nn.Module, last: bool) -> contextlib.AbstractContextManager[Any]:
    if last or not isinstance(wrapped, DistributedDataParallel):
        return contextlib.nullcontext()
    return wrapped.no_sync()


def _to_device(batch: Batch, device: torch.device, channels_last: bool) -> Batch:
    moved: Batch = {}
    for name, value in batch.items():
        layout = torch.channels_last if channels_last and value.dim() == 4 else torch.preserve_format
        moved[name] = value.to(device, non_blocking=True, memory_format=layout)
    return moved


def _global_counts(
    task: TrainTask, micro_batches: list[Batch], share: int, settings: LoopSettings, device: torch.device
) -> dict[str, Tensor]:
    counts: dict[str, Tensor] = {}
    for batch in micro_batches:
        for name, value in task.denominators(batch).items():
            counts[name] = (
                counts.get(name, torch.zeros((), dtype=torch.float64)) + value.detach().double().cpu() * share
            )
    return _sum_over_workers(counts, settings, device)


def _sum_over_workers(values: dict[str, Tensor], settings: LoopSettings, device: torch.device) -> dict[str, Tensor]:
    names = sorted(values)
    stacked = torch.stack([values[name].double() for name in names]).to(device)
    if settings.world_size > 1:
        torch.distributed.all_reduce(stacked)
    return dict(zip(names, stacked.unbind(), strict=True))


def _on_any_worker(flag: bool, settings: LoopSettings, device: torch.device) -> bool:
    return _sum_over_workers({"flag": torch.tensor(float(flag))}, settings, device)["flag"].item() > 0


def _weighted_total(task: TrainTask, losses: dict[str, Tensor], counts: dict[str, Tensor]) -> Tensor:
    total: Tensor | None = None
    for name, value in losses.items():
        if name in task.statistics:
            continue
        value = value.to(torch.promote_types(value.dtype, torch.float32))
        term = _ratio(value, counts[name]) * task.loss_weights[name]
        total = term if total is None else total + term
    if total is None:
        raise TrainingError("the module returned no loss", "training stage", "return at least one named loss")
    return total


def _ratio(value: Tensor, count: Tensor) -> Tensor:
    # Nothing to average over (no pair of a kind in the batch): the sum is 0 and so is the loss.
    return value / torch.where(count > 0, count, torch.ones_like(count)).to(value.dtype)


def _clip_gradients(task: TrainTask, scaler: torch.amp.GradScaler) -> None:
    for plan in task.optimizers:
        scaler.unscale_(plan.optimizer)
    groups = (group["params"] for plan in task.optimizers for group in plan.optimizer.param_groups)
    torch.nn.utils.clip_grad_norm_(list(itertools.chain.from_iterable(groups)), task.clip_norm)


def _reduced_losses(
    task: TrainTask, sums: dict[str, Tensor], counts: dict[str, Tensor], settings: LoopSettings
) -> dict[str, float]:
    device = next(iter(sums.values())).device
    values: dict[str, float] = {}
    total = 0.0
    for name, value in _sum_over_workers(sums, settings, device).items():
        kind = "statistic" if name in task.statistics else "loss"
        mean = values[f"{kind}/{name}"] = _ratio(value, counts[name]).item()
        total += mean * task.loss_weights[name] if kind == "loss" else 0.0
    values["loss"] = total
    return values


def _check_finite(values: dict[str, float], step: int, use_amp: bool) -> None:
    # With gradient scaling a step may overflow and is skipped by the scaler; the loss itself must stay finite.
    bad = [name for name, value in values.items() if not np.isfinite(value)]
    if bad:
        raise TrainingError(
            f"the loss is not finite at step {step + 1}: " + ", ".join(f"{name} = {values[name]}" for name in bad),
            "training stage",
            "lower the learning rate of the stage" + (", or set its precision to float32" if use_amp else ""),
        )


def _append(history: dict[str, list[float]], losses: dict[str, float], rates: dict[str, float]) -> None:
    length = max((len(series) for series in history.values()), default=0)
    for name, value in {**losses, **{f"learning_rate/{n}": r for n, r in rates.items()}}.items():
        series = history.setdefault(name, [])
        series.extend([float("nan")] * (length - len(series)))  # a loss that starts after a warm-up
        series.append(value)


def _state(
    task: TrainTask, module: nn.Module, scaler: torch.amp.GradScaler, history: dict[str, list[float]], step: int
) -> dict[str, Any]:
    return {
        "step": step,
        "module": module.state_dict(),
        "optimizers": {plan.name: plan.optimizer.state_dict() for plan in task.optimizers},
        "scaler": scaler.state_dict(),
        "history": history,
    }


def _restore(
    task: TrainTask,
    module: nn.Module,
    scaler: torch.amp.GradScaler,
    history: dict[str, list[float]],
    state: dict[str, Any],
) -> int:
    module.load_state_dict(state["module"])
    for plan in task.optimizers:
        plan.optimizer.load_state_dict(state["optimizers"][plan.name])
    if state["scaler"]:
        scaler.load_state_dict(state["scaler"])
    history.update({name: list(series) for name, series in state["history"].items()})
    return int(state["step"])
