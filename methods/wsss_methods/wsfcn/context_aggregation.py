"""Flexible context aggregation (FCA): large separable kernels of growing dilation, attention (WS-FCN, section 3.4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsss.nn.frozen_norm import FrozenStatisticsBatchNorm2d

# Kernel and dilation of the four branches.
BRANCHES = ((1, 1), (3, 12), (5, 24), (7, 36))


class LargeKernelBranch(nn.Module):
    """A k x k kernel as the sum of two pairs of one-dimensional convolutions. (N, F, h, w) -> (N, width, h, w).

    `bn` is never called. The official network owns it too, so checkpoints hold it; it gets no gradient.
    """

    def __init__(self, in_channels: int, width: int, kernel: int, dilation: int) -> None:
        super().__init__()
        padding = dilation * (kernel - 1) // 2

        def conv(channels: int, tall: bool) -> nn.Conv2d:
            return nn.Conv2d(
                channels,
                width,
                (kernel, 1) if tall else (1, kernel),
                padding=(padding, 0) if tall else (0, padding),
                dilation=(dilation, 1) if tall else (1, dilation),
                bias=False,
            )

        self.conv1_1 = conv(in_channels, tall=True)
        self.conv1_2 = conv(width, tall=False)
        self.bn = FrozenStatisticsBatchNorm2d(width)
        self.conv2_1 = conv(in_channels, tall=False)
        self.conv2_2 = conv(width, tall=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv1_2(self.conv1_1(x)) + self.conv2_2(self.conv2_1(x))


class ChannelAttention(nn.Module):
    """(N, C, h, w) -> (N, C, 1, 1) in (0, 1), from the mean and the maximum over positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.sharedMLP = nn.Sequential(
            nn.Conv2d(channels, channels, 1, bias=False), nn.ReLU(), nn.Conv2d(channels, channels, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        mean = self.sharedMLP(x.mean(dim=(2, 3), keepdim=True))
        return torch.sigmoid(mean + self.sharedMLP(x.amax(dim=(2, 3), keepdim=True)))


class SpatialAttention(nn.Module):
    """(N, C, h, w) -> (N, 1, h, w) in (0, 1), from the mean and the maximum over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.conv(torch.cat([x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)], dim=1)))


class ContextAggregation(nn.Module):
    """FCA: (N, in_channels, h, w) -> (N, width, h, w).

    The two norms that are called keep their initial statistics 0 and 1 for ever; their weight and bias are trained.
    At 321 pixels most taps of the far branches fall outside the map and see only zeros; they matter on the large
    canvas of inference, so they are neither removed nor initialized otherwise (WS-FCN, section 12, trap 6).
    """

    def __init__(self, in_channels: int, width: int = 256, dropout: float = 0.5) -> None:
        super().__init__()
        self.sa = SpatialAttention()
        self.ca = ChannelAttention(width)
        for number, (kernel, dilation) in enumerate(BRANCHES, 1):
            self.add_module(f"fca{number}", LargeKernelBranch(in_channels, width, kernel, dilation))
        self.global_avg_pool = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(in_channels, width, 1, bias=False),
            FrozenStatisticsBatchNorm2d(width),
            nn.ReLU(),
        )
        self.conv1 = nn.Conv2d(width * (len(BRANCHES) + 1), width, 1, bias=False)
        self.bn1 = FrozenStatisticsBatchNorm2d(width)
        self.dropout = nn.Dropout(dropout)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def branches(self, x: Tensor) -> list[Tensor]:
        """The four large-kernel branches before channel attention, each (N, width, h, w)."""
        return [getattr(self, f"fca{number}")(x) for number in range(1, len(BRANCHES) + 1)]

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.ca(branch) * branch for branch in self.branches(x)]
        parts.append(self.global_avg_pool(x).expand_as(parts[0]))
        mixed = self.bn1(self.conv1(torch.cat(parts, dim=1)))
        return self.dropout(self.sa(mixed) * mixed + mixed)
