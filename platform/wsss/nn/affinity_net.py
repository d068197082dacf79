"""AffinityNet: features whose distances are affinities, on Wide-ResNet-38 (Ahn and Kwak, 2018, section 3.2)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.nn.backbone import scaled_channels
from wsss.nn.backbones import freeze
from wsss.nn.checkpoint import load_imagenet_body
from wsss.nn.wide_resnet38 import WideResNet38

# Layer, the tap that it reads (None: the last map) and its channels.
_HEADS = (("f8_3", "b5.bn_branch2a", 64), ("f8_4", "b6.bn_branch2a", 128), ("f8_5", None, 256))
NEW_LAYERS = (*(name for name, *_ in _HEADS), "f9")


class AffinityNet(WideResNet38):
    """(N, 3, H, W) ImageNet-normalized -> features (N, 448, ~H / 8, ~W / 8).

    State-dict names are those of the official file. All norms and the first blocks take no gradient.
    """

    def __init__(self, width: float = 1.0) -> None:
        super().__init__(width)
        total = 0
        for name, tap, channels in _HEADS:
            channels = scaled_channels(channels, width)
            layer = nn.Conv2d(self.channels[tap or "b7"], channels, 1, bias=False)
            nn.init.kaiming_normal_(layer.weight)
            self.add_module(name, layer)
            total += channels
        self.f9 = nn.Conv2d(total, total, 1, bias=False)
        nn.init.xavier_uniform_(self.f9.weight, gain=4)
        freeze(self, "resnet38")

    def load_backbone(self, path: Path) -> None:
        """Start the backbone from an ImageNet file; CheckpointError when the file does not cover it."""
        load_imagenet_body(self, path, NEW_LAYERS)

    def features(self, images: Tensor) -> Tensor:
        """The features; `forward` is the backbone's."""
        last, taps = self(images, tuple(tap for _, tap, _ in _HEADS if tap))
        parts = [F.elu(getattr(self, name)(taps[tap] if tap else last)) for name, tap, _ in _HEADS]
        return F.elu(self.f9(torch.cat(parts, dim=1)))


def parameter_groups(
    network: WideResNet38, new_layers: tuple[str, ...], learning_rate: float, weight_decay: float, factor: float = 10.0
) -> list[dict[str, Any]]:
    """Groups: convolutions of the backbone, and those of `new_layers` at `factor` times the rate.

    Norms and what takes no gradient are in none.
    """
    new, old = [], []
    for name, parameter in network.named_parameters():
        if parameter.requires_grad and parameter.dim() > 1:
            (new if name.split(".")[0] in new_layers else old).append(parameter)
    return [
        {"params": old, "lr": learning_rate, "weight_decay": weight_decay},
        {"params": new, "lr": factor * learning_rate, "weight_decay": weight_decay},
    ]
