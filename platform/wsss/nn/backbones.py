"""Backbones at output stride 16 by name, with their normalization and suppression."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, cast

from torch import nn

from wsss.nn.backbone import Backbone
from wsss.nn.frozen_norm import FrozenStatisticsBatchNorm2d
from wsss.nn.mobilenet import MobileNetV2
from wsss.nn.resnet import DEPTHS, ResNet, ResNetStructure
from wsss.nn.suppression import DiscriminativeRegionSuppression
from wsss.nn.sync_norm import SynchronizedBatchNorm2d

Normalization = Literal["frozen", "batch"]

BACKBONES = ("resnet50", "resnet18", "mobilenet_v2")


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
