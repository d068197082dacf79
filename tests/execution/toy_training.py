"""A tiny training task with a ratio loss, for tests of the loop; importable by child processes."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wsss.execution.train_loop import LoopEvents, LoopSettings, run_training
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
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
        self.second = nn.Linear(3, 1)

    def forward(self, batch: Batch, epoch: int, step: int) -> dict[str, Tensor]:
        out = self.network(batch["x"])
        losses = {"masked": (((out - batch["target"]) ** 2) * batch["valid"]).sum()}
        if epoch >= 1:
            losses["late"] = self.second(out).pow(2).sum()
        return {**losses, "large": (out.detach().abs() > 0.2).to(out.dtype).mean(dim=1).sum()}


def task(
    samples: int = 48,
    epochs: int = 3,
    batch: int = 12,
    group_size: int = 1,
    candidate_every: int = 0,
    candidates_after: int = 0,
) -> TrainTask:
    torch.manual_seed(0)
    module = Module()
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
        epochs=epochs,
        global_batch=batch,
        trained_weights=lambda: {"weights": module.state_dict()},
        group_size=group_size,
        candidate_every=candidate_every,
        candidates_after=candidates_after,
        find_unused_parameters=True,
    )


def events(saved: list[Any] | None = None, candidates: list[int] | None = None) -> LoopEvents:
    return LoopEvents(
        save=lambda state, step: saved.append(state) if saved is not None else None,
        step=lambda done, total, losses, rates: None,
        candidate=lambda epoch, weights: candidates.append(epoch) if candidates is not None else None,
    )


def worker(rank: int, world_size: int, port: int, batch: int, micro_batch: int, group_size: int, out: Any) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world_size)
    made = task(batch=batch, group_size=group_size)
    history = run_training(
        made, 3, LoopSettings(rank=rank, world_size=world_size, micro_batch=micro_batch), events(), None
    )
    if rank == 0:
        weights = torch.cat([p.detach().flatten() for p in made.module.parameters()]).tolist()
        out.put((history, weights))
    torch.distributed.destroy_process_group()
