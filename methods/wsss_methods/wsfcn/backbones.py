"""The bodies that WS-FCN stands on: each gives a shallow map of stride 4 and a deep one (WS-FCN, 3.1 to 3.3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from wsss.nn.frozen_norm import FrozenStatisticsBatchNorm2d
from wsss.nn.mobilenet import MobileNetV2
from wsss.nn.resnet import ResNet, resnet_structure
from wsss.nn.wide_resnet38 import WideResNet38
from wsss_methods.wsfcn.vgg16 import Vgg16

Normalization = Literal["frozen", "batch"]

PUBLISHED_BACKBONES = ("resnet38", "resnet50", "resnet101", "vgg16")
BACKBONES = (*PUBLISHED_BACKBONES, "resnet18", "mobilenet_v2")
_RESNET_DEPTHS = {"resnet18": 18, "resnet50": 50, "resnet101": 101}
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


class Taps(nn.Module):
    """A body by name. Parameter names are those of the body, below the prefix `body.`.

    `forward`: (N, 3, H, W) -> (`conv3`, stride 4, `low_channels`; `conv6`, `deep_channels`, stride 8 for
    `resnet38`, else 16).

    Args:
        name: one of `BACKBONES`.
        width: factor on the channel counts; 1 fits the published weights.
        normalization: "frozen" as published: running statistics, neither updated nor trained, and the first layers
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
        norm = FrozenStatisticsBatchNorm2d if normalization == "frozen" else norm_layer
        self.name = name
        body: nn.Module
        if name == "resnet38":
            body = WideResNet38(width, norm)
            self.low_channels, self.deep_channels = body.channels[_SHALLOW_BLOCK], body.channels["b7"]
        elif name in _RESNET_DEPTHS:
            body = ResNet(resnet_structure(_RESNET_DEPTHS[name], strides=(1, 2, 2, 1), width=width), norm)
            self.low_channels, self.deep_channels = body.channels[1], body.channels[4]
        elif name == "vgg16":
            body = Vgg16(width)
            self.low_channels, self.deep_channels = body.low_channels, body.deep_channels
        elif name == "mobilenet_v2":
            body = MobileNetV2(width, output_stride=16, norm_layer=norm)
            self.low_channels, self.deep_channels = body.channels[1], body.channels[4]
        else:
            raise ValueError(f"unknown backbone {name!r}; known are {', '.join(BACKBONES)}")
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
