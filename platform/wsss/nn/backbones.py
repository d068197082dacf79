"""Backbones by name: at output stride 16 with suppression, or with a shallow and a deep map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, cast

from torch import Tensor, nn

from wsss.nn.backbone import Backbone
from wsss.nn.frozen_norm import FrozenStatisticsBatchNorm2d
from wsss.nn.mobilenet import MobileNetV2
from wsss.nn.resnet import DEPTHS, ResNet, ResNetStructure, resnet_structure
from wsss.nn.suppression import DiscriminativeRegionSuppression
from wsss.nn.sync_norm import SynchronizedBatchNorm2d
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


def build_backbone(
    name: str,
    width: float = 1.0,
    normalization: Normalization = "frozen",
    suppression: float | None = None,
    depths: tuple[int, int, int, int] | None = None,
) -> Backbone:
    """A backbone at output stride 16: "resnet18", "resnet50" or "mobilenet_v2".

    Args:
        width: factor on the channels.
        normalization: "frozen" uses stored statistics, always; "batch" trains them over all workers' batches.
        suppression: delta of the discriminative region suppression in the last stage, None or 1 for none.
        depths: blocks of a ResNet's four layers, to change the standard ones.
    """
    norm_layer: Callable[[int], nn.Module] = (
        FrozenStatisticsBatchNorm2d if normalization == "frozen" else SynchronizedBatchNorm2d
    )

    def suppressor() -> nn.Module | None:
        suppresses = suppression is not None and suppression < 1
        return DiscriminativeRegionSuppression(cast(float, suppression)) if suppresses else None

    if name == "mobilenet_v2":
        return MobileNetV2(width, output_stride=16, norm_layer=norm_layer, after_last=suppressor())
    if not name.startswith("resnet"):
        raise ValueError(f"no backbone {name}; there are resnet18, resnet50 and mobilenet_v2")
    block, standard = DEPTHS[int(name.removeprefix("resnet"))]
    structure = ResNetStructure(block=block, depths=depths or standard, width=width, strides=(1, 2, 2, 1))
    return ResNet(structure, norm_layer, lambda layer: suppressor() if layer == 4 else None)


def backbone_name(name: str) -> str:
    """Name under which the parameters of a backbone appear: the published `resnet50`, else `backbone`."""
    return "resnet50" if name == "resnet50" else "backbone"


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
        self.name = name
        body: nn.Module
        if name == "resnet38":
            body = WideResNet38(width, norm)
            self.low_channels, self.deep_channels = body.channels[_SHALLOW_BLOCK], body.channels["b7"]
        elif name.startswith("resnet"):
            depth = int(name.removeprefix("resnet"))
            body = ResNet(resnet_structure(depth, strides=(1, 2, 2, 1), width=width), norm)
            self.low_channels, self.deep_channels = body.channels[1], body.channels[4]
        elif name == "vgg16":
            body = Vgg16(width)
            self.low_channels, self.deep_channels = body.low_channels, body.deep_channels
        else:
            body = MobileNetV2(width, output_stride=16, norm_layer=norm)
            self.low_channels, self.deep_channels = body.channels[1], body.channels[4]
        self.body = body
        if normalization == "frozen":
            self._freeze()

    def _freeze(self) -> None:
        for module in self.body.modules():
            if isinstance(module, FrozenStatisticsBatchNorm2d):
                module.requires_grad_(False)
        for name in FROZEN_LAYERS[self.name]:
            self.body.get_submodule(name).requires_grad_(False)

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
