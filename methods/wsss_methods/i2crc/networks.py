"""The classifier of I2CRC: fully convolutional, its class maps are what is trained and read as CAM."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from wsss.nn.backbone import scaled_channels
from wsss.nn.backbones import Normalization, build_backbone
from wsss.nn.checkpoint import Aliases
from wsss.nn.vgg import vgg_features

_HEAD = "extra_convs."


class Classifier(nn.Module):
    """A backbone, three 3x3 convolutions and one 1x1 whose outputs are the class maps (official `classification/`).

    Published is VGG-16 at stride 8 (its fourth pooling has stride 1, its last block dilation 2), with torchvision's
    names; other backbones, at stride 16, lie below `features.` as well.

    Args:
        backbone: "vgg16", or one of `wsss.nn.backbones.BACKBONES`.
        width: factor on the backbone's channels; 1 fits ImageNet weights.
        head_width: channels of the three convolutions, 512 as published.
        normalization: of a backbone with norms, see `build_backbone`.
        num_classes: without the background.
    """

    def __init__(
        self,
        backbone: str = "vgg16",
        width: float = 1.0,
        head_width: int = 512,
        normalization: Normalization = "frozen",
        num_classes: int = 20,
    ) -> None:
        super().__init__()
        if backbone == "vgg16":
            self.features = vgg_features(16, width, output_stride=8)
            channels = scaled_channels(512, width)
            _initialize(self.features)
        else:
            body = build_backbone(backbone, width, normalization, dilated=True)
            self.features = cast(nn.Module, body)
            channels = body.channels[-1]
        layers: list[nn.Module] = []
        for _ in range(3):
            layers += [nn.Conv2d(channels, head_width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = head_width
        self.extra_convs = nn.Sequential(*layers, nn.Conv2d(channels, num_classes, 1))
        _initialize(self.extra_convs)
        if starts_small(backbone, normalization):
            # The published start fits VGG-16. After stored norms its class maps begin so large that ReLUs die.
            _start_small(self.extra_convs)

    def aliases(self) -> Aliases:
        """None: the published file has the names of the state dict."""
        return ()

    def backbone_maps(self, x: Tensor) -> Tensor:
        """Normalized images (N, 3, H, W) -> (N, C, h, w); VGG-16 rounds h = H / 8 down, others H / 16 up."""
        maps = self.features(x)
        return maps if isinstance(maps, Tensor) else maps[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Normalized images (N, 3, H, W) -> class maps (N, num_classes, h, w), negative values too."""
        return self.extra_convs(self.backbone_maps(x))

    @torch.no_grad()
    def infer(self, x: Tensor) -> Tensor:
        """Class maps of one image: (1, 3, H, W) -> (num_classes, h, w), as `forward`."""
        return self(x)[0]


def _initialize(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(cast(Tensor, layer.bias))


def starts_small(backbone: str, normalization: str) -> bool:
    """Whether the head begins with smaller values than published: on a backbone with stored norms."""
    return backbone != "vgg16" and normalization == "frozen"


def _start_small(head: nn.Sequential) -> None:
    for layer in head:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
    nn.init.normal_(cast(nn.Conv2d, head[-1]).weight, std=0.01)


def parameter_groups(
    network: Classifier, learning_rate: float, weight_decay: float, head_factor: float
) -> list[dict[str, Any]]:
    """Weights and biases of the backbone, then of the head; biases at twice the rate (official `scripts/train.py`).

    Norms count as weights and biases. A group may be empty.
    """
    groups: list[list[nn.Parameter]] = [[], [], [], []]
    for name, parameter in network.named_parameters():
        groups[2 * name.startswith(_HEAD) + name.endswith(".bias")].append(parameter)
    factors = (1.0, 2.0, head_factor, 2 * head_factor)
    return [
        {"params": members, "lr": learning_rate * factor, "weight_decay": weight_decay}
        for members, factor in zip(groups, factors, strict=True)
    ]
