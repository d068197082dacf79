"""Batch normalizations with other statistics: stored ones, those of groups of the batch, those of all workers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

# What the batch of this worker counts in the statistics over all workers.
_share = 1.0


class FrozenStatisticsBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d that normalizes by its running statistics in training too and never updates them.

    Weight and bias stay ordinary trainable parameters; the state dict is that of `nn.BatchNorm2d`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )


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


@contextlib.contextmanager
def no_share_in_statistics() -> Iterator[None]:
    """Inside, the batch of this worker does not count in the statistics over all workers.

    For a worker that has no sample of a step: it computes a sample of another worker, because the collective
    operations of all workers must match.
    """
    global _share
    _share = 0.0
    try:
        yield
    finally:
        _share = 1.0


class _AllReduceSum(torch.autograd.Function):
    """Sum over ranks; the gradient of the summed losses of all ranks is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


def sum_over_workers(value: Tensor) -> Tensor:
    """The sum of what every worker gives, so that a number of the whole batch can be formed in a forward pass.

    Differentiable: summed over the workers, the gradients are those of the sum of their losses. The value itself
    where there is one process. All workers must call it alike, as with any collective operation.
    """
    if not _several_workers():
        return value
    return _AllReduceSum.apply(value * _share)


def _several_workers() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class SynchronizedBatchNorm2d(nn.BatchNorm2d):
    """`BatchNorm2d` whose training statistics run over the batches of all workers.

    With one process, and in evaluation mode, it is `BatchNorm2d`. State-dict names are the same. Forward passes
    in training mode must happen on all workers alike, as with any collective. Batches may differ in size.

    Why: published trainings use statistics of the whole batch on one device; several workers must give the same.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not _several_workers():
            return super().forward(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        local = x.new_tensor([x.numel() / x.shape[1]])
        sums = sum_over_workers(torch.cat([x.sum(dim=(0, 2, 3)), local]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centered = x - mean[None, :, None, None]
        # Two passes: the variance from a sum of squares would lose digits where the mean is large.
        variance = sum_over_workers(centered.square().sum(dim=(0, 2, 3))) / count
        if self.track_running_stats:
            self._update_running(mean.detach(), variance.detach(), count)
        scale = torch.rsqrt(variance + self.eps)
        if self.affine:
            scale = scale * self.weight
        out = centered * scale[None, :, None, None]
        if self.affine:
            out = out + self.bias[None, :, None, None]
        return out.to(input.dtype)

    @torch.no_grad()
    def _update_running(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        factor = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, factor)
        self.running_var.lerp_(variance * (count / (count - 1)), factor)


def synchronize_batch_norm(module: nn.Module, *, cuda: bool = False) -> nn.Module:
    """Replace every plain `BatchNorm2d` in `module` by one over all workers; returns the module.

    With `cuda` the replacement is torch's `SyncBatchNorm`, which is faster and knows no `no_share_in_statistics`;
    else it is `SynchronizedBatchNorm2d`. Parameters and buffers are the same tensors. Layers of a subclass (frozen
    statistics) stay as they are.
    """
    if type(module) is nn.BatchNorm2d:
        kind = nn.SyncBatchNorm if cuda else SynchronizedBatchNorm2d
        replacement = kind(module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats)
        replacement._parameters = module._parameters
        replacement._buffers = module._buffers
        replacement.train(module.training)
        return replacement
    for name, child in module.named_children():
        setattr(module, name, synchronize_batch_norm(child, cuda=cuda))
    return module
