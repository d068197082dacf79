"""Discriminative region suppression: a bound on every channel relative to its own maximum."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DiscriminativeRegionSuppression(nn.Module):
    """(N, C, H, W) -> min(x, delta * m), m the spatial maximum of each image and channel, `delta` in (0, 1].

    The gradient runs through x and through m; ties split it equally (Kim et al., "Discriminative Region Suppression for
    Weakly-Supervised Semantic Segmentation", 2021).
    """

    def __init__(self, delta: float) -> None:
        super().__init__()
        if not 0 < delta <= 1:
            raise ValueError(f"delta must lie in (0, 1], got {delta}")
        self.delta = delta

    def forward(self, x: Tensor) -> Tensor:
        # At 1 the bound is the maximum itself: nothing to do, and no gradient to split with it.
        return x if self.delta == 1 else torch.minimum(x, self.delta * x.amax(dim=(2, 3), keepdim=True))

    def extra_repr(self) -> str:
        return f"delta={self.delta}"
