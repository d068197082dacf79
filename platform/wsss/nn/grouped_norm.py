"""Batch normalization over fixed groups of the batch, whatever the number of workers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GroupedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose training statistics run over every `group` consecutive images by themselves.

    What `nn.DataParallel` does with the images of each GPU: one group is one GPU's share, and only the first
    group's statistics enter the running ones. A stage whose `TrainTask.group_size` is `group` keeps a group on one
    worker, so its result does not depend on how many workers there are. Batches that fit one group, and
    evaluation, are those of `nn.BatchNorm2d`; so is the state dict.
    """

    def __init__(self, num_features: int, group: int) -> None:
        super().__init__(num_features)
        if group < 1:
            raise ValueError(f"a group holds at least one image, got {group}")
        self.group = group

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or len(input) <= self.group:
            return super().forward(input)
        first, *others = input.split(self.group)
        normalized = [super().forward(first)]
        normalized += [
            F.batch_norm(part, None, None, self.weight, self.bias, training=True, eps=self.eps) for part in others
        ]
        return torch.cat(normalized)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, group={self.group}"
