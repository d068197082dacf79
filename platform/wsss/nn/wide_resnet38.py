"""Wide-ResNet-38 as a feature extractor with dilated last blocks (Wu, Shen, van den Hengel, 2016).

A pre-activation network with stride 8. Names are those of the published ImageNet file
`ilsvrc-cls_rna-a1_cls1000_ep-0001.pth` (`conv1a`, `b2.conv_branch2a`, ..., `bn7`), so it loads as it is.
The body is that of `network/resnet38d.py` of AffinityNet (Ahn and Kwak, 2018).
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from wsss.nn.backbone import scaled_channels
from wsss.nn.norms import FrozenStatisticsBatchNorm2d

NormLayer = Callable[[int], nn.Module]

# First block, its width inside and out, the blocks after it, stride, dilations of the first block and of the others.
_GROUPS: tuple[tuple[str, int, int, int, int, tuple[int, int], int], ...] = (
    ("b2", 128, 128, 2, 2, (1, 1), 1),
    ("b3", 256, 256, 2, 2, (1, 1), 1),
    ("b4", 512, 512, 5, 2, (1, 1), 1),
    ("b5", 512, 1024, 2, 1, (1, 2), 2),
)
_STEM_CHANNELS = 64
_FIRST_NORM = ".bn_branch2a"
_BOTTLENECKS = (("b6", 2048, 0.3), ("b7", 4096, 0.5))
BLOCKS = (
    *(name for first, _, _, more, *_ in _GROUPS for name in (first, *(f"{first}_{i}" for i in range(1, more + 1)))),
    *(name for name, *_ in _BOTTLENECKS),
)


class ResidualBlock(nn.Module):
    """Norm, ReLU, 3x3, norm, ReLU, 3x3 around a shortcut that is a 1x1 convolution where the shape changes."""

    def __init__(
        self,
        in_channels: int,
        mid_channels: int,
        out_channels: int,
        stride: int,
        dilations: tuple[int, int],
        norm_layer: NormLayer,
    ) -> None:
        super().__init__()
        first, second = dilations
        self.bn_branch2a = norm_layer(in_channels)
        self.conv_branch2a = nn.Conv2d(
            in_channels, mid_channels, 3, stride=stride, padding=first, dilation=first, bias=False
        )
        self.bn_branch2b1 = norm_layer(mid_channels)
        self.conv_branch2b1 = nn.Conv2d(mid_channels, out_channels, 3, padding=second, dilation=second, bias=False)
        self.conv_branch1: nn.Conv2d | None = None
        if in_channels != out_channels or stride != 1:
            self.conv_branch1 = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.stride = stride

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The sum, and the input after the first norm and ReLU."""
        activated = F.relu(self.bn_branch2a(x))
        # Every stride-th position is taken before the 1x1 convolution and not by it: on a CPU, PyTorch's own stride
        # writes beyond its memory for 8 channels in channels_last, which ended a training with a segmentation fault.
        read = activated[:, :, :: self.stride, :: self.stride]
        shortcut = x if self.conv_branch1 is None else self.conv_branch1(read)
        out = self.conv_branch2b1(F.relu(self.bn_branch2b1(self.conv_branch2a(activated))))
        return shortcut + out, activated


class BottleneckBlock(nn.Module):
    """Pre-activation 1x1, dilated 3x3, 1x1 with channel dropout after both inner activations."""

    def __init__(
        self, in_channels: int, out_channels: int, dilation: int, dropout: float, norm_layer: NormLayer
    ) -> None:
        super().__init__()
        quarter, half = out_channels // 4, out_channels // 2
        self.bn_branch2a = norm_layer(in_channels)
        self.conv_branch2a = nn.Conv2d(in_channels, quarter, 1, bias=False)
        self.bn_branch2b1 = norm_layer(quarter)
        self.dropout_2b1 = nn.Dropout2d(dropout)
        self.conv_branch2b1 = nn.Conv2d(quarter, half, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn_branch2b2 = norm_layer(half)
        self.dropout_2b2 = nn.Dropout2d(dropout)
        self.conv_branch2b2 = nn.Conv2d(half, out_channels, 1, bias=False)
        self.conv_branch1 = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The sum, and the input after the first norm and ReLU."""
        activated = F.relu(self.bn_branch2a(x))
        out = self.dropout_2b1(F.relu(self.bn_branch2b1(self.conv_branch2a(activated))))
        out = self.dropout_2b2(F.relu(self.bn_branch2b2(self.conv_branch2b1(out))))
        return self.conv_branch1(activated) + self.conv_branch2b2(out), activated


class WideResNet38(nn.Module):
    """The network up to the last norm and ReLU.

    Args:
        width: factor on every channel count, rounded to multiples of 8; 1 fits the published weights.
        norm_layer: makes a norm for a channel count; the methods that use this network freeze all of them.

    Attributes:
        channels: tap -> its channels.
        strides: block name -> stride of its output (2, 4, 8, 8, 8, 8 for b2 .. b7).

    A tap is the name of a block, for the sum that leaves it (no norm, no ReLU, it may be negative), or the name of a
    block's first norm, `b4.bn_branch2a`, for the input of the block after this norm and its ReLU.
    """

    def __init__(self, width: float = 1.0, norm_layer: NormLayer = FrozenStatisticsBatchNorm2d) -> None:
        super().__init__()
        self.channels: dict[str, int] = {}
        self.strides: dict[str, int] = {}
        channels, total = scaled_channels(_STEM_CHANNELS, width), 1
        self.conv1a = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        for first, mid, out, more, stride, dilations, others in _GROUPS:
            mid, out = scaled_channels(mid, width), scaled_channels(out, width)
            total *= stride
            for index in range(more + 1):
                name = first if index == 0 else f"{first}_{index}"
                block = ResidualBlock(
                    channels,
                    mid,
                    out,
                    stride if index == 0 else 1,
                    dilations if index == 0 else (others, others),
                    norm_layer,
                )
                self.add_module(name, block)
                self.channels[name + _FIRST_NORM] = channels
                channels = out
                self.channels[name], self.strides[name] = channels, total
        for name, out, dropout in _BOTTLENECKS:
            out = scaled_channels(out, width)
            self.add_module(name, BottleneckBlock(channels, out, 4, dropout, norm_layer))
            self.channels[name + _FIRST_NORM] = channels
            channels = out
            self.channels[name], self.strides[name] = channels, total
        self.bn7 = norm_layer(channels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")

    def forward(self, x: Tensor, taps: tuple[str, ...] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        """(N, 3, H, W) -> the last map after `bn7` and ReLU (stride 8), and the map of every tap."""
        found: dict[str, Tensor] = {}
        x = self.conv1a(x)
        for name in BLOCKS:
            x, activated = getattr(self, name)(x)
            if name in taps:
                found[name] = x
            if name + _FIRST_NORM in taps:
                found[name + _FIRST_NORM] = activated
        return F.relu(self.bn7(x)), found
