"""Segmentation networks of a recipe by architecture, and their ImageNet starts (SSC, sections 4.5 to 4.7)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal, cast

from torch import nn

from wsss.nn.deeplabv2 import DeepLabV2
from wsss.nn.deeplabv3plus import RESNET101_D, DeepLabV3Plus
from wsss.nn.imagenet_backbones import load_imagenet_backbone
from wsss.nn.segformer import MIT_B2_WIDTHS, SegFormer
from wsss.nn.segmentation_backbone import SegmentationBackbone
from wsss_methods.ssc.recipe import SegmentationSettings

_DEEPLABV2 = {
    "deeplabv2_r101": "resnet101",
    "deeplabv2_r18": "resnet18",
    "deeplabv2_mobilenet_v2": "mobilenet_v2",
}

_IMAGENET_SOURCES = {
    "deeplabv2_r101": "torchvision_resnet",
    "deeplabv2_r18": "torchvision_resnet",
    "deeplabv2_mobilenet_v2": "torchvision_mobilenet",
    "deeplabv3plus_r101": "mmcls_resnetv1d",
    "segformer_b2": "mix_transformer",
}


def build_segmentation_network(settings: SegmentationSettings, num_classes: int) -> nn.Module:
    """One network with random weights: (N, 3, H, W) -> (pre_logits, logits (N, num_classes, H, W))."""
    width = settings.width
    if settings.architecture == "deeplabv3plus_r101":
        return DeepLabV3Plus(num_classes, replace(RESNET101_D, width=width))
    if settings.architecture == "segformer_b2":
        # A stage's width stays a multiple of 8 for each of its attention heads.
        heads = (1, 2, 5, 8)
        widths = [
            max(1, round(full * width / (8 * count))) * 8 * count
            for full, count in zip(MIT_B2_WIDTHS, heads, strict=True)
        ]
        return SegFormer(num_classes, widths=widths)
    # The small one is for CPUs, where output stride 8 would cost four times as much.
    stride: Literal[8, 16] = 16 if settings.architecture == "deeplabv2_mobilenet_v2" else 8
    backbone = SegmentationBackbone(_DEEPLABV2[settings.architecture], output_stride=stride, width=width)
    return DeepLabV2(num_classes, backbone)


def load_imagenet_weights(network: nn.Module, architecture: str, path: Path) -> None:
    """Start the backbone of a network from the ImageNet file of its architecture.

    Raises CheckpointError when the file does not cover the backbone exactly.
    """
    load_imagenet_backbone(cast(nn.Module, network.backbone), path, _IMAGENET_SOURCES[architecture])
