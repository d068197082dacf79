"""AffinityNet: features whose distances are affinities (Ahn and Kwak, 2018, section 3.2).

On Wide-ResNet-38 as published, or on MobileNetV2, which two processor cores can train.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.nn.backbone import scaled_channels
from wsss.nn.backbones import Normalization, freeze
from wsss.nn.checkpoint import load_imagenet_body
from wsss.nn.mobilenet import MobileNetV2
from wsss.nn.norms import FrozenStatisticsBatchNorm2d, SynchronizedBatchNorm2d
from wsss.nn.wide_resnet38 import WideResNet38

AFFINITY_BACKBONES = ("resnet38", "mobilenet_v2")
# Layers that reduce a shallow, a middle and the last map of the backbone, and their channels.
_REDUCTIONS = (("f8_3", 64), ("f8_4", 128), ("f8_5", 256))
NEW_LAYERS = (*(name for name, _ in _REDUCTIONS), "f9")
# The inputs of b5 and b6 after their norms and ReLU.
_TAPS = ("b5.bn_branch2a", "b6.bn_branch2a")
_MOBILE_STAGES = (2, 3, 4)
_NORMS = {"frozen": FrozenStatisticsBatchNorm2d, "batch": SynchronizedBatchNorm2d}


class AffinityNet(WideResNet38):
    """(N, 3, H, W) ImageNet-normalized -> features (N, 448, ~H / 8, ~W / 8).

    State-dict names are those of the official file. "frozen": no norm and none of the first blocks takes a gradient, as
    published. "batch": all is trained, the norms by the statistics of the batch, for a body without ImageNet weights.
    """

    def __init__(self, width: float = 1.0, normalization: Normalization = "frozen") -> None:
        super().__init__(width, _NORMS[normalization])
        self.f9 = _new_layers(self, [*(self.channels[tap] for tap in _TAPS), self.channels["b7"]], width)
        if normalization == "frozen":
            freeze(self, "resnet38")

    def load_backbone(self, path: Path) -> None:
        """Start the backbone from an ImageNet file; CheckpointError when the file does not cover it."""
        load_imagenet_body(self, path, NEW_LAYERS)

    def feature_map(self, images: Tensor) -> Tensor:
        """The features; `forward` is the backbone's."""
        last, taps = self(images, _TAPS)
        parts = _reduced(self, [*(taps[tap] for tap in _TAPS), last])
        return F.elu(self.f9(torch.cat(parts, dim=1)))


class MobileAffinityNet(MobileNetV2):
    """`AffinityNet` on MobileNetV2: its maps of strides 8, 16 and 16, the last two upsampled to the first.

    (N, 3, H, W) ImageNet-normalized -> features (N, 448, ceil(H / 8), ceil(W / 8)).
    """

    def __init__(self, width: float = 1.0, normalization: Normalization = "frozen") -> None:
        super().__init__(width, output_stride=16, norm_layer=_NORMS[normalization])
        self.f9 = _new_layers(self, [self.channels[stage] for stage in _MOBILE_STAGES], width)
        if normalization == "frozen":
            freeze(self, "mobilenet_v2")

    def load_backbone(self, path: Path) -> None:
        """Start the backbone from torchvision's file; CheckpointError when the file does not cover it."""
        load_imagenet_body(self, path, NEW_LAYERS)

    def feature_map(self, images: Tensor) -> Tensor:
        """The features; `forward` is the backbone's."""
        stages = self(images)
        first, *coarse = _reduced(self, [stages[stage] for stage in _MOBILE_STAGES])
        size = first.shape[2:]
        fine = [F.interpolate(each, size=size, mode="bilinear", align_corners=False) for each in coarse]
        return F.elu(self.f9(torch.cat([first, *fine], dim=1)))


def build_affinity_net(
    backbone: str, width: float = 1.0, normalization: Normalization = "frozen"
) -> AffinityNet | MobileAffinityNet:
    """On a backbone of `AFFINITY_BACKBONES`, with random weights. Raises ValueError for another."""
    if backbone not in AFFINITY_BACKBONES:
        raise ValueError(f"no AffinityNet on {backbone}; there are {', '.join(AFFINITY_BACKBONES)}")
    network = AffinityNet if backbone == "resnet38" else MobileAffinityNet
    return network(width, normalization)


def _new_layers(network: nn.Module, in_channels: Sequence[int], width: float) -> nn.Conv2d:
    """Add the reductions; the last layer, which reads all of them."""
    total = 0
    for (name, channels), found in zip(_REDUCTIONS, in_channels, strict=True):
        channels = scaled_channels(channels, width)
        layer = nn.Conv2d(found, channels, 1, bias=False)
        nn.init.kaiming_normal_(layer.weight)
        network.add_module(name, layer)
        total += channels
    last = nn.Conv2d(total, total, 1, bias=False)
    nn.init.xavier_uniform_(last.weight, gain=4)
    return last


def _reduced(network: nn.Module, maps: Sequence[Tensor]) -> list[Tensor]:
    return [F.elu(getattr(network, name)(each)) for (name, _), each in zip(_REDUCTIONS, maps, strict=True)]


def parameter_groups(
    network: nn.Module, new_layers: tuple[str, ...], learning_rate: float, weight_decay: float, factor: float = 10.0
) -> list[dict[str, Any]]:
    """Groups: the backbone, and `new_layers` at `factor` times the rate. What takes no gradient is in none."""
    new, old = [], []
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            (new if name.split(".")[0] in new_layers else old).append(parameter)
    return [
        {"params": old, "lr": learning_rate, "weight_decay": weight_decay},
        {"params": new, "lr": factor * learning_rate, "weight_decay": weight_decay},
    ]
