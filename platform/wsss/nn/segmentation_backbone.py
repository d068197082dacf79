"""Dilated backbones of the DeepLab networks, chosen by name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from wsss.nn.mobilenet import MobileNetV2
from wsss.nn.resnet import DEPTHS, ResNet, ResNetStructure

# Output stride -> strides and dilations of layer1 .. layer4.
_RESNET_SHAPES: dict[int, tuple[tuple[int, int, int, int], tuple[int, int, int, int]]] = {
    8: ((1, 2, 1, 1), (1, 1, 2, 4)),
    16: ((1, 2, 2, 1), (1, 1, 1, 2)),
}


@dataclass(frozen=True)
class SegmentationBackbone:
    """Choice of a dilated backbone; the default is the ResNet-101 of BECO.

    Attributes:
        name: "resnet18", "resnet34", "resnet50", "resnet101", "resnet152" or "mobilenet_v2".
        output_stride: 8 or 16, stride of the last stage.
        width: factor on every channel count.
        depths: blocks in the four layers of a ResNet, None for the standard ones.
        multi_grid, deep_stem, average_pool_shortcut: ResNet only, see `ResNetStructure`.  `multi_grid` is cut, or
            its last factor repeated, to the number of blocks of `layer4`.
    """

    name: str = "resnet101"
    output_stride: Literal[8, 16] = 8
    width: float = 1.0
    depths: tuple[int, int, int, int] | None = None
    multi_grid: tuple[int, ...] | None = None
    deep_stem: bool = False
    average_pool_shortcut: bool = False


def build_backbone(choice: SegmentationBackbone) -> ResNet | MobileNetV2:
    """Backbone with random weights; calling it gives the outputs of its five stages.

    Raises ValueError for an unknown name or output stride.
    """
    if choice.output_stride not in _RESNET_SHAPES:
        raise ValueError(f"output stride {choice.output_stride} is not one of {sorted(_RESNET_SHAPES)}")
    if choice.name == "mobilenet_v2":
        return MobileNetV2(choice.width, choice.output_stride, dilated=True)
    resnet = re.fullmatch(r"resnet(\d+)", choice.name)
    if resnet is None or int(resnet.group(1)) not in DEPTHS:
        known = ", ".join(f"resnet{depth}" for depth in DEPTHS)
        raise ValueError(f"unknown backbone {choice.name!r}; known are mobilenet_v2, {known}")
    block, standard_depths = DEPTHS[int(resnet.group(1))]
    depths = choice.depths or standard_depths
    strides, dilations = _RESNET_SHAPES[choice.output_stride]
    grid = choice.multi_grid
    if grid is not None:
        grid = tuple(grid[min(i, len(grid) - 1)] for i in range(depths[3]))
    return ResNet(
        ResNetStructure(
            block=block,
            depths=depths,
            width=choice.width,
            strides=strides,
            dilations=dilations,
            multi_grid=grid,
            stem="deep" if choice.deep_stem else "standard",
            stem_under_prefix=True,
            average_pool_shortcut=choice.average_pool_shortcut,
        )
    )
