"""Backbones by name: at output stride 16 with suppression, dilated ones, and those with a shallow and a deep map."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, nn

from wsss.nn.backbone import Backbone
from wsss.nn.mobilenet import MobileNetV2
from wsss.nn.norms import FrozenStatisticsBatchNorm2d, SynchronizedBatchNorm2d
from wsss.nn.resnet import DEPTHS, ResNet, resnet_structure
from wsss.nn.suppression import DiscriminativeRegionSuppression
from wsss.nn.vgg import Vgg16
from wsss.nn.wide_resnet38 import WideResNet38

Normalization = Literal["frozen", "batch"]

BACKBONES = ("resnet50", "resnet18", "mobilenet_v2")
# Backbones with two maps, see `Taps`.
TAP_BACKBONES = ("resnet38", "resnet50", "resnet101", "vgg16", "resnet18", "mobilenet_v2")
# Layers whose weights are never trained: what ImageNet taught about edges stays.
FROZEN_LAYERS = {
    "resnet38": ("conv1a", "b2", "b2_1", "b2_2"),
    "resnet18": ("conv1", "bn1"),
    "resnet50": ("conv1", "bn1"),
    "resnet101": ("conv1", "bn1"),
    "vgg16": ("conv1_1", "conv1_2"),
    "mobilenet_v2": ("features.0",),
}
_SHALLOW_BLOCK = "b3_2"
# Output stride -> strides and dilations of layer1 .. layer4.
_RESNET_SHAPES = {8: ((1, 2, 1, 1), (1, 1, 2, 4)), 16: ((1, 2, 2, 1), (1, 1, 1, 2))}


def build_backbone(
    name: str,
    width: float = 1.0,
    normalization: Normalization = "frozen",
    suppression: float | None = None,
    depths: tuple[int, int, int, int] | None = None,
    dilated: bool = False,
) -> Backbone:
    """A backbone at output stride 16: "resnet18", "resnet50" or "mobilenet_v2".

    Args:
        width: factor on the channels.
        normalization: "frozen" uses stored statistics, always; "batch" trains them over all workers' batches.
        suppression: delta of the discriminative region suppression in the last stage, None or 1 for none.
        depths: blocks of a ResNet's four layers, to change the standard ones.
        dilated: of "mobilenet_v2", replace its last stride by dilation, so that ImageNet weights see what they learned.
    """
    norm_layer = FrozenStatisticsBatchNorm2d if normalization == "frozen" else SynchronizedBatchNorm2d

    def suppressor() -> nn.Module | None:
        return DiscriminativeRegionSuppression(suppression) if suppression is not None and suppression < 1 else None

    if name == "mobilenet_v2":
        return MobileNetV2(width, 16, dilated, norm_layer=norm_layer, after_last=suppressor())
    if not name.startswith("resnet"):
        raise ValueError(f"no backbone {name}; there are resnet18, resnet50 and mobilenet_v2")
    structure = resnet_structure(int(name.removeprefix("resnet")), width=width, strides=(1, 2, 2, 1))
    structure = replace(structure, depths=depths or structure.depths)
    return ResNet(structure, norm_layer, lambda layer: suppressor() if layer == 4 else None)


def freeze(body: nn.Module, name: str) -> None:
    """No gradient for the norms with frozen statistics and the `FROZEN_LAYERS` of the backbone `name`."""
    frozen = [body.get_submodule(layer) for layer in FROZEN_LAYERS[name]]
    for module in (*body.modules(), *frozen):
        if isinstance(module, FrozenStatisticsBatchNorm2d) or module in frozen:
            module.requires_grad_(False)


def backbone_name(name: str) -> str:
    """Name under which the parameters of a backbone appear: the published `resnet50`, else `backbone`."""
    return "resnet50" if name == "resnet50" else "backbone"


@dataclass(frozen=True)
class SegmentationBackbone:
    """Choice of a dilated backbone; the default is the ResNet-101 of BECO (Rong et al., 2023).

    Attributes:
        name: "resnet18", "resnet34", "resnet50", "resnet101", "resnet152" or "mobilenet_v2".
        output_stride: 8 or 16, stride of the last stage.
        width: factor on every channel count.
        depths: blocks in the four layers of a ResNet, None for the standard ones.
        multi_grid, deep_stem, average_pool_shortcut: ResNet only, see `ResNetStructure`. `multi_grid` is cut, or its
            last factor repeated, to the number of blocks of `layer4`.
    """

    name: str = "resnet101"
    output_stride: Literal[8, 16] = 8
    width: float = 1.0
    depths: tuple[int, int, int, int] | None = None
    multi_grid: tuple[int, ...] | None = None
    deep_stem: bool = False
    average_pool_shortcut: bool = False

    def build(self) -> ResNet | MobileNetV2:
        """The backbone with random weights; calling it gives the outputs of its five stages.

        Raises ValueError for an unknown name or output stride.
        """
        if self.output_stride not in _RESNET_SHAPES:
            raise ValueError(f"output stride {self.output_stride} is not one of {sorted(_RESNET_SHAPES)}")
        if self.name == "mobilenet_v2":
            return MobileNetV2(self.width, self.output_stride, dilated=True)
        known = {f"resnet{depth}": depth for depth in DEPTHS}
        if self.name not in known:
            raise ValueError(f"unknown backbone {self.name!r}; known are mobilenet_v2, {', '.join(known)}")
        strides, dilations = _RESNET_SHAPES[self.output_stride]
        depths, grid = self.depths or DEPTHS[known[self.name]][1], self.multi_grid
        structure = resnet_structure(
            known[self.name],
            depths=depths,
            width=self.width,
            strides=strides,
            dilations=dilations,
            multi_grid=grid and tuple(grid[min(index, len(grid) - 1)] for index in range(depths[3])),
            stem="deep" if self.deep_stem else "standard",
            stem_under_prefix=True,
            average_pool_shortcut=self.average_pool_shortcut,
        )
        return ResNet(structure)


class Taps(nn.Module):
    """A backbone by name that gives a shallow and a deep map. Its parameter names lie below the prefix `body.`.

    `forward`: (N, 3, H, W) -> (`conv3`, stride 4, `low_channels`; `conv6`, `deep_channels`, stride 8 for
    `resnet38`, else 16).

    Args:
        name: one of `TAP_BACKBONES`.
        width: factor on the channel counts; 1 fits the published weights.
        normalization: "frozen": running statistics, neither updated nor trained, and the first layers
            fixed. "batch": ordinary batch normalization and everything trained, for bodies without ImageNet weights.
        norm_layer: the ordinary batch normalization of "batch".
    """

    def __init__(
        self,
        name: str,
        width: float = 1.0,
        normalization: Normalization = "frozen",
        norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        if name not in TAP_BACKBONES:
            raise ValueError(f"unknown backbone {name!r}; known are {', '.join(TAP_BACKBONES)}")
        norm = FrozenStatisticsBatchNorm2d if normalization == "frozen" else norm_layer
        body: nn.Module
        if name == "resnet38":
            body = WideResNet38(width, norm)
            self.low_channels, self.deep_channels = body.channels[_SHALLOW_BLOCK], body.channels["b7"]
        elif name == "vgg16":
            body = Vgg16(width)
            self.low_channels, self.deep_channels = body.low_channels, body.deep_channels
        else:
            if name == "mobilenet_v2":
                body = MobileNetV2(width, output_stride=16, norm_layer=norm)
            else:
                depth = int(name.removeprefix("resnet"))
                body = ResNet(resnet_structure(depth, strides=(1, 2, 2, 1), width=width), norm)
            self.low_channels, self.deep_channels = body.channels[1], body.channels[4]
        self.body = body
        if normalization == "frozen":
            freeze(body, name)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        body = self.body
        if isinstance(body, WideResNet38):
            deep, taps = body(x, (_SHALLOW_BLOCK,))
            return taps[_SHALLOW_BLOCK], deep
        if isinstance(body, Vgg16):
            return body(x)
        assert isinstance(body, (ResNet, MobileNetV2))
        stages = body(x)
        return stages[1], stages[4]
