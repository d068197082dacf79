"""Semantically consistent feature fusion (SF2): flow alignment, cross fusion, stochastic gate (WS-FCN, 3.5 to 3.7)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FlowAlignment(nn.Module):
    """Warps a deep map to the grid of a shallow one along a learned flow.

    Args:
        low_channels, high_channels: of the shallow and the deep map.
        width: channels in which the two are compared, 128 as published.
    """

    def __init__(self, low_channels: int, high_channels: int, width: int = 128) -> None:
        super().__init__()
        self.down_h = nn.Conv2d(high_channels, width, 1, bias=False)
        self.down_l = nn.Conv2d(low_channels, width, 1, bias=False)
        self.flow_make = nn.Conv2d(2 * width, 2, 3, padding=1, bias=False)

    def flow(self, low: Tensor, high: Tensor) -> Tensor:
        """(N, 2, H, W): offsets in x and y, before they are divided by the width and the height of the grid."""
        # Half-pixel centers here, while the sampling below and all other resizing of the network align corners.
        resized = F.interpolate(self.down_h(high), size=low.shape[2:], mode="bilinear", align_corners=False)
        return self.flow_make(torch.cat([resized, self.down_l(low)], dim=1))

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """low (N, L, H, W), high (N, C, h, w) -> high at (N, C, H, W), zero where the flow leaves the map."""
        flow = self.flow(low, high)
        flow = flow.to(torch.promote_types(flow.dtype, torch.float32))  # half precision would move the sampling points
        height, width = low.shape[2:]
        x = torch.linspace(-1.0, 1.0, width, dtype=flow.dtype, device=flow.device).expand(height, width)
        y = torch.linspace(-1.0, 1.0, height, dtype=flow.dtype, device=flow.device)[:, None].expand(height, width)
        grid = torch.stack([x + flow[:, 0] / width, y + flow[:, 1] / height], dim=-1)
        return F.grid_sample(high.to(grid.dtype), grid, mode="bilinear", padding_mode="zeros", align_corners=True)


class FeatureFusion(nn.Module):
    """SF2: shallow (N, L, H, W) and deep (N, C, H, W) -> shallow and deep outputs, both (N, width, H, W)."""

    def __init__(
        self,
        left_channels: int,
        down_channels: int,
        width: int = 256,
        norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        for side, first_channels in (("h", left_channels), ("v", down_channels)):
            for number in range(1, 5):
                channels = first_channels if number == 1 else width
                self.add_module(f"conv{number}{side}", nn.Conv2d(channels, width, 3, padding=1))
                self.add_module(f"bn{number}{side}", norm_layer(width))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
                nn.init.zeros_(module.bias)  # pyright: ignore[reportArgumentType]

    def _step(self, name: str, x: Tensor) -> Tensor:
        return F.relu(getattr(self, f"bn{name}")(getattr(self, f"conv{name}")(x)))

    def forward(self, left: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        if down.shape[2:] != left.shape[2:]:
            down = F.interpolate(down, size=left.shape[2:], mode="bilinear", align_corners=False)
        shallow = self._step("1h", left)
        deep = self._step("1v", down)
        fused = self._step("2h", shallow) * self._step("2v", deep)
        shallow = self._step("4h", self._step("3h", fused) + shallow)
        deep = self._step("4v", self._step("3v", fused) + deep)
        return shallow, deep


class StochasticGate(nn.Module):
    """Mixes a deep and a shallow map; in training each element comes from one of them.

    Inference: (1 - psi) deep + psi shallow. Training: shallow with probability psi, else
    (deep - psi shallow) / (1 - psi), whose expectation is the deep map, not the inference mixture: the published
    behaviour (WS-FCN, section 3.7).
    """

    def __init__(self, psi: float = 0.3) -> None:
        super().__init__()
        if not 0 <= psi < 1:
            raise ValueError(f"psi must lie in [0, 1), got {psi}")
        self.psi = psi

    def forward(self, deep: Tensor, shallow: Tensor) -> Tensor:
        if not self.training:
            return (1 - self.psi) * deep + self.psi * shallow
        return self.mix(deep, shallow, torch.rand_like(deep) >= self.psi)

    def mix(self, deep: Tensor, shallow: Tensor, keep: Tensor) -> Tensor:
        """The training output for a given mask, bool of the maps' shape: True takes the deep map."""
        return torch.where(keep, (deep - self.psi * shallow) / max(1e-8, 1 - self.psi), shallow)
