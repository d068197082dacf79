"""Residual networks with the parts that segmentation work changes: strides, dilations, stem, shortcut, width.

Parameter names are torchvision's (`conv1`, `bn1`, `layer1.0.conv1`, ...), so its ImageNet files fit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
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


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; `after` is applied to the final output."""

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        dilation: int,
        norm_layer: NormLayer,
        downsample: nn.Module | None,
        after: nn.Module | None,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
        self.bn1 = norm_layer(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = norm_layer(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)) + shortcut)
        return out if self.after is None else self.after(out)


class Bottleneck(nn.Module):
    """1x1, 3x3 (stride and dilation), 1x1 convolutions around a shortcut; `after` is applied to the output."""

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        dilation: int,
        norm_layer: NormLayer,
        downsample: nn.Module | None,
        after: nn.Module | None,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = norm_layer(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = norm_layer(channels)
        self.conv3 = nn.Conv2d(channels, channels * self.expansion, 1, bias=False)
        self.bn3 = norm_layer(channels * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.relu(self.bn3(self.conv3(out)) + shortcut)
        return out if self.after is None else self.after(out)


class _Stem(nn.Module):
    """Stem under one prefix; see `_add_stem` for its parts."""

    def __init__(self, structure: ResNetStructure, channels: int, norm_layer: NormLayer) -> None:
        super().__init__()
        self.ceil_pooling = structure.ceil_pooling
        _add_stem(self, structure.stem, channels, norm_layer)

    def forward(self, x: Tensor) -> Tensor:
        return _run_stem(self, x, self.ceil_pooling)


def _add_stem(owner: nn.Module, kind: Literal["standard", "deep"], channels: int, norm_layer: NormLayer) -> None:
    """Give `owner` the stem's modules: `conv1`, `bn1` (and `conv2`, `bn2`, `conv3`, `bn3` for "deep")."""
    if kind == "standard":
        owner.conv1 = nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False)
        owner.bn1 = norm_layer(channels)
        return
    half = channels // 2
    for index, (source, target, stride) in enumerate(((3, half, 2), (half, half, 1), (half, channels, 1)), 1):
        owner.add_module(f"conv{index}", nn.Conv2d(source, target, 3, stride=stride, padding=1, bias=False))
        owner.add_module(f"bn{index}", norm_layer(target))


def _run_stem(owner: nn.Module, x: Tensor, ceil_pooling: bool) -> Tensor:
    index = 1
    while hasattr(owner, f"conv{index}"):
        x = torch.relu(getattr(owner, f"bn{index}")(getattr(owner, f"conv{index}")(x)))
        index += 1
    return nn.functional.max_pool2d(x, kernel_size=3, stride=2, padding=1, ceil_mode=ceil_pooling)


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
        block = Bottleneck if structure.block == "bottleneck" else BasicBlock
        stem_channels = scaled_channels(64, structure.width)
        if structure.stem_under_prefix:
            self.stem_layer = _Stem(structure, stem_channels, norm_layer)
        else:
            _add_stem(self, structure.stem, stem_channels, norm_layer)

        channels, strides = [stem_channels], [4]
        for number in range(1, STAGES):
            planes = scaled_channels(64 * 2 ** (number - 1), structure.width)
            out_channels = planes * block.expansion
            layer = self._make_layer(number, block, channels[-1], planes, norm_layer, after_block)
            self.add_module(f"layer{number}", layer)
            channels.append(out_channels)
            strides.append(strides[-1] * structure.strides[number - 1])
        self.channels: tuple[int, ...] = tuple(channels)
        self.strides: tuple[int, ...] = tuple(strides)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _make_layer(
        self,
        number: int,
        block: type[BasicBlock] | type[Bottleneck],
        in_channels: int,
        planes: int,
        norm_layer: NormLayer,
        after_block: Callable[[int], nn.Module | None],
    ) -> nn.Sequential:
        structure = self.structure
        depth, stride = structure.depths[number - 1], structure.strides[number - 1]
        dilation = structure.dilations[number - 1]
        grid = structure.multi_grid if number == 4 and structure.multi_grid else (1,) * depth
        out_channels = planes * block.expansion
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
        first = block(in_channels, planes, stride, first_dilation, norm_layer, downsample, after_block(number))
        if structure.stride_on_reduce and isinstance(first, Bottleneck):
            first.conv1.stride, first.conv2.stride = first.conv2.stride, first.conv1.stride
        blocks: list[nn.Module] = [first]
        blocks.extend(
            block(out_channels, planes, 1, dilation * grid[index], norm_layer, None, after_block(number))
            for index in range(1, depth)
        )
        return nn.Sequential(*blocks)

    def stage(self, index: int, x: Tensor) -> Tensor:
        """Output of stage `index` (0: stem with max-pooling, 1..4: `layer1`..`layer4`) for its input."""
        if index == 0:
            structure = self.structure
            return self.stem_layer(x) if structure.stem_under_prefix else _run_stem(self, x, structure.ceil_pooling)
        return getattr(self, f"layer{index}")(x)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, 3, H, W) -> outputs of the five stages, channels `self.channels`, strides `self.strides`."""
        outputs = []
        for index in range(STAGES):
            x = self.stage(index, x)
            outputs.append(x)
        return outputs


def resnet_structure(
    depth: int,
    *,
    strides: tuple[int, int, int, int] = (1, 2, 2, 2),
    dilations: tuple[int, int, int, int] = (1, 1, 1, 1),
    width: float = 1.0,
    multi_grid: tuple[int, ...] | None = None,
    stem: Literal["standard", "deep"] = "standard",
    stem_under_prefix: bool = False,
    average_pool_shortcut: bool = False,
) -> ResNetStructure:
    """Structure of a standard ResNet of `depth` 18, 34, 50, 101 or 152."""
    block, depths = DEPTHS[depth]
    return ResNetStructure(
        block=block,
        depths=depths,
        width=width,
        strides=strides,
        dilations=dilations,
        multi_grid=multi_grid,
        stem=stem,
        stem_under_prefix=stem_under_prefix,
        average_pool_shortcut=average_pool_shortcut,
    )
