"""Residual networks with the parts that segmentation work changes: strides, dilations, stem, shortcut, width.

Parameter names are torchvision's (`conv1`, `bn1`, `layer1.0.conv1`, ...), so its ImageNet files fit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.nn.backbone import STAGES, scaled_channels

NormLayer = Callable[[int], nn.Module]

DEPTHS: dict[int, tuple[Literal["basic", "bottleneck"], tuple[int, int, int, int]]] = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}


@dataclass(frozen=True)
class ResNetStructure:
    """Shape of a residual network.

    Attributes:
        block: "bottleneck" (1x1, 3x3, 1x1; the stride is on the 3x3) or "basic" (two 3x3).
        depths: blocks in `layer1` .. `layer4`.
        width: factor on every channel count, rounded to multiples of 8.
        strides: stride of the first block of each layer.
        dilations: dilation of the 3x3 convolutions of each layer, first block included; padding follows it.
        multi_grid: factors on the dilation of the blocks of `layer4`, one for each, or None.
        stem: "standard" (7x7, stride 2) or "deep" (three 3x3, the first with stride 2; ResNet-C).
        stem_under_prefix: put the stem's modules under `stem_layer.` instead of the top level.
        average_pool_shortcut: shortcut of `layer2`..`layer4` pools 2x2 (floor) before a 1x1 convolution of
            stride 1 (ResNet-D); where the layer has stride 1 an identity takes the place of the pooling.
        first_dilations: dilation of the first block of each layer, None: as the others.
        stride_on_reduce: the stride of a bottleneck is on its first 1x1, as in the Caffe original.
        ceil_pooling: the stem's pooling keeps the incomplete last window, as in the Caffe original.
    """

    block: Literal["basic", "bottleneck"] = "bottleneck"
    depths: tuple[int, int, int, int] = (3, 4, 6, 3)
    width: float = 1.0
    strides: tuple[int, int, int, int] = (1, 2, 2, 2)
    dilations: tuple[int, int, int, int] = (1, 1, 1, 1)
    multi_grid: tuple[int, ...] | None = None
    stem: Literal["standard", "deep"] = "standard"
    stem_under_prefix: bool = False
    average_pool_shortcut: bool = False
    first_dilations: tuple[int, int, int, int] | None = None
    stride_on_reduce: bool = False
    ceil_pooling: bool = False

    def __post_init__(self) -> None:
        if self.multi_grid is not None and len(self.multi_grid) != self.depths[3]:
            raise ValueError(
                f"multi_grid {self.multi_grid} needs {self.depths[3]} factors, one for each block of layer4"
            )


class ResidualBlock(nn.Module):
    """The convolutions of one block around a shortcut; `after` is applied to the output."""

    def __init__(
        self,
        structure: ResNetStructure,
        in_channels: int,
        channels: int,
        stride: int,
        dilation: int,
        norm_layer: NormLayer,
        downsample: nn.Module | None,
        after: nn.Module | None,
    ) -> None:
        super().__init__()
        bottleneck = structure.block == "bottleneck"
        kernels, widths = (3, 3), (channels, channels)
        if bottleneck:
            kernels, widths = (1, 3, 1), (channels, channels, 4 * channels)
        strided = 2 if bottleneck and not structure.stride_on_reduce else 1
        self.last = len(kernels)
        for number, (kernel, width) in enumerate(zip(kernels, widths, strict=True), 1):
            conv = nn.Conv2d(
                in_channels,
                width,
                kernel,
                stride=stride if number == strided else 1,
                padding=dilation * (kernel // 2),
                dilation=dilation if kernel == 3 else 1,
                bias=False,
            )
            self.add_module(f"conv{number}", conv)
            self.add_module(f"bn{number}", norm_layer(width))
            in_channels = width
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        out, shortcut = x, x if self.downsample is None else self.downsample(x)
        for number in range(1, self.last + 1):
            out = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(out))
            out = self.relu(out if number < self.last else out + shortcut)
        return out if self.after is None else self.after(out)


class ResNet(nn.Module):
    """Residual network without its classifier; returns the outputs of stem and four layers.

    Args:
        structure: see `ResNetStructure`; `ResNetStructure()` is ResNet-50 at stride 32.
        norm_layer: makes a normalization layer for a channel count.
        after_block: makes, for a layer number 1..4, the parameterless module that follows each of its blocks,
            or None.
    """

    def __init__(
        self,
        structure: ResNetStructure,
        norm_layer: NormLayer = nn.BatchNorm2d,
        after_block: Callable[[int], nn.Module | None] = lambda layer: None,
    ) -> None:
        super().__init__()
        self.structure = structure
        channels, strides = [scaled_channels(64, structure.width)], [4]
        self._add_stem(channels[0], norm_layer)
        for number in range(1, STAGES):
            planes = scaled_channels(64 * 2 ** (number - 1), structure.width)
            out_channels = planes * (4 if structure.block == "bottleneck" else 1)
            layer = self._make_layer(number, channels[-1], planes, out_channels, norm_layer, after_block)
            self.add_module(f"layer{number}", layer)
            channels.append(out_channels)
            strides.append(strides[-1] * structure.strides[number - 1])
        self.channels: tuple[int, ...] = tuple(channels)
        self.strides: tuple[int, ...] = tuple(strides)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _add_stem(self, channels: int, norm_layer: NormLayer) -> None:
        """`conv1` and `bn1`, for "deep" three of both, in the network itself or under `stem_layer.`."""
        owner: nn.Module = self
        if self.structure.stem_under_prefix:
            owner = self.stem_layer = nn.Module()
        deep, half = self.structure.stem == "deep", channels // 2
        kernel, source = 3 if deep else 7, 3
        for number, target in enumerate((half, half, channels) if deep else (channels,), 1):
            stride = 2 if number == 1 else 1
            conv = nn.Conv2d(source, target, kernel, stride=stride, padding=kernel // 2, bias=False)
            owner.add_module(f"conv{number}", conv)
            owner.add_module(f"bn{number}", norm_layer(target))
            source = target

    def _run_stem(self, x: Tensor) -> Tensor:
        owner = self.stem_layer if self.structure.stem_under_prefix else self
        for number in range(1, 4 if self.structure.stem == "deep" else 2):
            x = torch.relu(getattr(owner, f"bn{number}")(getattr(owner, f"conv{number}")(x)))
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1, ceil_mode=self.structure.ceil_pooling)

    def _make_layer(
        self,
        number: int,
        in_channels: int,
        planes: int,
        out_channels: int,
        norm_layer: NormLayer,
        after_block: Callable[[int], nn.Module | None],
    ) -> nn.Sequential:
        structure = self.structure
        depth, stride = structure.depths[number - 1], structure.strides[number - 1]
        dilation = structure.dilations[number - 1]
        grid = structure.multi_grid if number == 4 and structure.multi_grid else (1,) * depth
        downsample = None
        if stride != 1 or in_channels != out_channels:
            parts: list[nn.Module] = []
            conv_stride = stride
            if structure.average_pool_shortcut and number > 1:
                parts.append(nn.AvgPool2d(stride, stride) if stride > 1 else nn.Identity())
                conv_stride = 1
            parts.append(nn.Conv2d(in_channels, out_channels, 1, stride=conv_stride, bias=False))
            parts.append(norm_layer(out_channels))
            downsample = nn.Sequential(*parts)
        first_dilation = grid[0] * (structure.first_dilations or structure.dilations)[number - 1]
        layer = nn.Sequential()
        for index, factor in enumerate(grid):
            layer.append(
                ResidualBlock(
                    structure,
                    in_channels if index == 0 else out_channels,
                    planes,
                    stride if index == 0 else 1,
                    first_dilation if index == 0 else dilation * factor,
                    norm_layer,
                    downsample if index == 0 else None,
                    after_block(number),
                )
            )
        return layer

    def stage(self, index: int, x: Tensor) -> Tensor:
        """Output of stage `index` (0: stem with max-pooling, 1..4: `layer1`..`layer4`) for its input."""
        return self._run_stem(x) if index == 0 else getattr(self, f"layer{index}")(x)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, 3, H, W) -> outputs of the five stages, channels `self.channels`, strides `self.strides`."""
        outputs = []
        for index in range(STAGES):
            x = self.stage(index, x)
            outputs.append(x)
        return outputs


def resnet_structure(depth: int, **changes: Any) -> ResNetStructure:
    """Structure of a standard ResNet of `depth` 18, 34, 50, 101 or 152, with `changes` to its other fields."""
    block, depths = DEPTHS[depth]
    return ResNetStructure(**{"block": block, "depths": depths, **changes})
