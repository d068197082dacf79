"""Discriminative region suppression: a bound on every channel relative to its own maximum."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def suppress_discriminative_regions(x: Tensor, delta: float) -> Tensor:
    """min(x, delta * m), m the spatial maximum of each image and channel.

    (N, C, H, W) -> the same shape. The gradient runs through x and through m; ties split it equally
    (Kim et al., "Discriminative Region Suppression for Weakly-Supervised Semantic
    Segmentation", 2021).
    """
    return torch.minimum(x, delta * x.amax(dim=(2, 3), keepdim=True))


class DiscriminativeRegionSuppression(nn.Module):
    """`suppress_discriminative_regions` as a module without parameters; `delta` in (0, 1]."""

    def __init__(self, delta: float) -> None:
        super().__init__()
        if not 0 < delta <= 1:
            raise ValueError(f"delta must lie in (0, 1], got {delta}")
        self.delta = delta

    def forward(self, x: Tensor) -> Tensor:
        # At 1 the bound is the maximum itself: nothing to do, and no gradient to split with it.
        return x if self.delta == 1 else suppress_discriminative_regions(x, self.delta)

    def extra_repr(self) -> str:
        return f"delta={self.delta}"
