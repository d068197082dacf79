"""Runs training stages in float64, alone or as two workers on gloo, to compare what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from tests.gloo import run_on_gloo

from wsss.execution.stage_job import StageJob
from wsss.execution.train_loop import LoopEvents, LoopSettings, run_training
from wsss.nn.norms import synchronize_batch_norm
from wsss.pipeline import TrainStage
from wsss.train_task import Batch, SampleSource


class DoubleSamples:
    """Samples in float64, so that what remains of a difference is no rounding."""

    def __init__(self, samples: SampleSource) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def sample(self, index: int, rng: np.random.Generator) -> Batch:
        batch = self.samples.sample(index, rng)
        return {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}


def trained(job: StageJob, rank: int = 0, world_size: int = 1) -> dict[str, Any]:
    """History and weights of the one network of a training stage in float64, as one of `world_size` workers."""
    torch.set_num_threads(1)
    stage = job.stage
    assert isinstance(stage, TrainStage)
    torch.manual_seed(stage.seed)
    task = stage.build(job.context("cpu", rank, world_size))
    task.module.double()
    task.samples = DoubleSamples(task.samples)
    if world_size > 1:
        synchronize_batch_norm(task.module)
    silent = LoopEvents(save=lambda state, step: None, step=lambda *told: None, candidate=lambda epoch, weights: None)
    history = run_training(task, stage.seed, LoopSettings(rank=rank, world_size=world_size), silent, None)
    (weights,) = task.trained_weights().values()
    return {"history": history, "weights": weights}


def in_two_workers(jobs: Mapping[Any, StageJob]) -> dict[Any, Any]:
    """`trained` of every job by two workers, one job after the other."""
    return run_on_gloo(worker, 2, jobs)[0]


def worker(rank: int, world_size: int, jobs: Mapping[Any, StageJob]) -> dict[Any, Any]:
    """What one of several workers on gloo has trained."""
    return {group: trained(job, rank, world_size) for group, job in jobs.items()}
