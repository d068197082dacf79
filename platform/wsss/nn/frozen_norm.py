"""Batch normalization that keeps its running statistics."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class FrozenStatisticsBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d that normalizes by its running statistics in training too and never updates them.

    Weight and bias stay ordinary trainable parameters; the state dict is that of `nn.BatchNorm2d`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return functional.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )
