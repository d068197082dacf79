"""A tiny training task with a ratio loss, for tests of the loop; importable by child processes."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wsss.execution.train_loop import LoopEvents, LoopSettings, run_training
from wsss.nn.norms import synchronize_batch_norm
from wsss.schedules import polynomial_decay
from wsss.train_task import Batch, OptimizerPlan, TrainTask


class Samples:
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def sample(self, index: int, rng: np.random.Generator) -> Batch:
        x = torch.from_numpy(np.random.default_rng(index).normal(size=8).astype(np.float32))
        noise = torch.from_numpy(rng.normal(scale=0.05, size=8).astype(np.float32))
        target = x[:3].sin()
        # Samples have very different numbers of valid entries: a mean of means would differ from the global mean.
        valid = (torch.arange(3) <= index % 3).float()
        return {"x": x + noise, "target": target, "valid": valid}


class Module(nn.Module):
    def __init__(self, norm: bool) -> None:
        super().__init__()
        layers = [nn.Unflatten(1, (4, 2, 2)), nn.BatchNorm2d(4), nn.Flatten()] if norm else []
        self.network = nn.Sequential(nn.Linear(8, 16), *layers, nn.Tanh(), nn.Linear(16, 3))
        self.second = nn.Linear(3, 1)

    def forward(self, batch: Batch, epoch: int, step: int) -> dict[str, Tensor]:
        out = self.network(batch["x"])
        losses = {"masked": (((out - batch["target"]) ** 2) * batch["valid"]).sum()}
        if epoch >= 1:
            losses["late"] = self.second(out).pow(2).sum()
        return {**losses, "large": (out.detach().abs() > 0.2).to(out.dtype).mean(dim=1).sum()}


def task(samples: int = 48, batch: int = 12, norm: bool = False, **settings: Any) -> TrainTask:
    """`settings` are fields of the task; without `epochs` or `steps` it has three epochs."""
    torch.manual_seed(0)
    module = Module(norm)
    settings = settings if "steps" in settings else {"epochs": 3, **settings}
    sgd = torch.optim.SGD(module.network.parameters(), lr=0.1, momentum=0.9)
    adam = torch.optim.Adam(module.second.parameters(), lr=0.01)
    return TrainTask(
        module=module,
        denominators=lambda b: {
            "masked": b["valid"].sum(),
            "late": torch.tensor(float(len(b["x"]))),
            "large": torch.tensor(float(len(b["x"]))),
        },
        statistics=("large",),
        loss_weights={"masked": 1.0, "late": 0.1},
        optimizers=(
            OptimizerPlan("sgd", sgd, lambda step, total: polynomial_decay(step, total, 0.9)),
            OptimizerPlan("adam", adam, lambda step, total: 1.0),
        ),
        samples=Samples(samples),
        global_batch=batch,
        trained_weights=lambda: {"weights": module.state_dict()},
        find_unused_parameters=True,
        **settings,
    )


def events(saved: list[Any] | None = None, candidates: list[int] | None = None) -> LoopEvents:
    return LoopEvents(
        save=lambda state, step: saved.append(state) if saved is not None else None,
        step=lambda done, total, losses, rates: None,
        candidate=lambda epoch, weights: candidates.append(epoch) if candidates is not None else None,
    )


def worker(rank: int, world_size: int, micro_batch: int, settings: dict[str, Any]) -> Any:
    """One of several workers: history and numbers of the network."""
    made = task(**settings)
    synchronize_batch_norm(made.module)
    loop = LoopSettings(rank=rank, world_size=world_size, micro_batch=micro_batch)
    return run_training(made, 3, loop, events(), None), numbers(made)


def noticed(rank: int, world_size: int, after: int) -> list[int]:
    """Steps at which one of several workers saves, when the last one hears of a node's end after so many steps."""
    asked = itertools.count(1)
    steps: list[int] = []
    heard = LoopEvents(
        save=lambda state, step: steps.append(step),
        step=lambda *told: None,
        candidate=lambda *told: None,
        notice=lambda: next(asked) == after and rank == world_size - 1,
    )
    made = task()
    synchronize_batch_norm(made.module)
    run_training(made, 3, LoopSettings(rank=rank, world_size=world_size), heard, None)
    return steps


def numbers(made: TrainTask) -> list[float]:
    """Parameters and buffers, without counters."""
    return torch.cat([v.flatten() for v in made.module.state_dict().values() if v.is_floating_point()]).tolist()
