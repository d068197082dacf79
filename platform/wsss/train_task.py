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


@dataclass(kw_only=True)
class TrainTask:
    """One training stage. Its length is given either by `epochs` or by `steps`.

    Attributes:
        module: forward ``(batch, epoch, step) -> {loss name: scalar}``, each scalar the SUM of its loss
            over the local part of the batch. Losses may be absent in some epochs.
        denominators: from the local batch alone, the count that belongs to each loss. The loop adds the
            counts of all workers and micro-batches and divides each sum by it, so a loss that is a ratio
            over the batch is exact under any split. A count that only the forward pass knows is added up there,
            by `wsss.nn.norms.sum_over_workers`.
        loss_weights: factor of each loss in the total.
        statistics: names among those that the module returns which are no losses: divided by their count like the
            losses and logged as `statistic/<name>`, but no part of the total. Return them detached.
        samples: training samples; an epoch draws them in an order given by seed and epoch alone.
        shuffle: False: every epoch draws them in the order of the list.
        epochs: passes over the samples; 0 where `steps` is given.
        steps: optimizer steps; the last epoch ends where they are done. 0 where `epochs` is given.
        global_batch: samples of one step, over all workers.
        keep_last: also train on the samples that are left at the end of an epoch and fill no global batch (of
            these, whole groups only). Otherwise they are dropped.
        group_size: consecutive samples that must stay on one worker and in one micro-batch.
        trained_weights: file stem -> state dict (official names) of the current weights.
        candidate_every: number of epochs after which the weights are kept for a later selection stage; 0: never.
        candidates_after: number of epochs at the start whose weights are not kept.
        precision: "amp" runs forward and loss in float16 autocast with gradient scaling on a GPU; a CPU
            computes in float32 either way.
        find_unused_parameters: passed to DDP; needed when some parameters get no gradient in some steps.
        clip_norm: largest L2 norm of the gradient of all optimizers' parameters together, which is that of the whole
            batch; a longer one is scaled down to it. 0: no bound.

    Raises:
        ValueError: both or neither of `epochs` and `steps` are given.
    """

    module: nn.Module
    denominators: Callable[[Batch], Mapping[str, Tensor]]
    loss_weights: Mapping[str, float]
    optimizers: tuple[OptimizerPlan, ...]
    samples: SampleSource
    epochs: int = 0
    steps: int = 0
    global_batch: int
    keep_last: bool = False
    trained_weights: Callable[[], dict[str, dict[str, Tensor]]]
    group_size: int = 1
    candidate_every: int = 0
    candidates_after: int = 0
    statistics: tuple[str, ...] = ()
    precision: Literal["float32", "amp"] = "float32"
    find_unused_parameters: bool = False
    shuffle: bool = True
    clip_norm: float = 0.0

    def __post_init__(self) -> None:
        if (self.epochs > 0) == (self.steps > 0):
            raise ValueError(f"give epochs or steps, and only one of them: {self.epochs=}, {self.steps=}")

    def steps_per_epoch(self) -> int:
        """Optimizer steps of one whole epoch; 0 when the samples do not fill a batch."""
        return -(-self._samples_of_epoch() // self.global_batch)

    def total_steps(self) -> int:
        """Optimizer steps of the whole stage; 0 when an epoch has none."""
        per_epoch = self.steps_per_epoch()
        return per_epoch * self.epochs or min(per_epoch, 1) * self.steps

    def total_epochs(self) -> int:
        """Epochs of the whole stage; one that `steps` cuts counts."""
        return self.epochs or -(-self.steps // max(1, self.steps_per_epoch()))

    def batch_of(self, step: int) -> tuple[int, slice]:
        """Epoch of a step (both from 0), and the places of its global batch in the order of that epoch."""
        epoch, place = divmod(step, self.steps_per_epoch())
        first = place * self.global_batch
        return epoch, slice(first, min(first + self.global_batch, self._samples_of_epoch()))

    def _samples_of_epoch(self) -> int:
        whole = self.group_size if self.keep_last else self.global_batch
        return len(self.samples) // whole * whole
