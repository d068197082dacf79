"""What a training stage hands to the training loop.

The loop (``wsss.execution.train_loop``) knows nothing of a method: it splits the global batch over
the workers, divides every loss by its count over the *whole* batch, steps the optimizers, writes
checkpoints and stores the trained weights. The contract below makes the result independent of the
number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]
Schedule = Callable[[int, int], float]


class SampleSource(Protocol):
    """A map-style set of training samples."""

    def __len__(self) -> int: ...

    def sample(self, index: int, rng: np.random.Generator) -> Batch:
        """One augmented sample as tensors without a batch dimension.

        `rng` is seeded by (seed, epoch, index) alone, so a sample does not depend on which worker draws it.
        """
        ...


@dataclass(frozen=True)
class OptimizerPlan:
    """An optimizer and its schedule.

    `schedule(step, total_steps)` is the factor on every group's initial learning rate, set before step
    `step` (0-based).
    """

    name: str
    optimizer: torch.optim.Optimizer
    schedule: Schedule


@dataclass
class TrainTask:
    """One training stage.

    Attributes:
        module: forward ``(batch, epoch, step) -> {loss name: scalar}``, each scalar the SUM of its loss
            over the local part of the batch. Losses may be absent in some epochs.
        denominators: from the local batch alone, the count that belongs to each loss. The loop adds the
            counts of all workers and micro-batches and divides each sum by it, so a loss that is a ratio
            over the batch is exact under any split.
        loss_weights: factor of each loss in the total.
        statistics: names among those that the module returns which are no losses: divided by their count like the
            losses and logged as `statistic/<name>`, but no part of the total. Return them detached.
        samples: training samples; an epoch draws them in an order given by seed and epoch alone.
        group_size: consecutive samples that must stay on one worker and in one micro-batch.
        trained_weights: file stem -> state dict (official names) of the current weights.
        candidate_every: keep the weights after every so many epochs for a later selection stage; 0: never.
        candidates_after: but not of the first so many epochs.
        precision: "amp" runs forward and loss in float16 autocast with gradient scaling on a GPU; a CPU
            computes in float32 either way.
        find_unused_parameters: passed to DDP; needed when some parameters get no gradient in some steps.
    """

    module: nn.Module
    denominators: Callable[[Batch], Mapping[str, Tensor]]
    loss_weights: Mapping[str, float]
    optimizers: tuple[OptimizerPlan, ...]
    samples: SampleSource
    epochs: int
    global_batch: int
    trained_weights: Callable[[], dict[str, dict[str, Tensor]]]
    group_size: int = 1
    candidate_every: int = 0
    candidates_after: int = 0
    statistics: tuple[str, ...] = ()
    precision: Literal["float32", "amp"] = "float32"
    find_unused_parameters: bool = False

    def steps_per_epoch(self) -> int:
        """Whole global batches in one epoch (the incomplete last one is dropped)."""
        return len(self.samples) // self.global_batch

    def total_steps(self) -> int:
        """Optimizer steps of the whole stage."""
        return self.steps_per_epoch() * self.epochs
