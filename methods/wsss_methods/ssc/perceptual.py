"""The fixed features in which the reconstruction is compared with the image, by name (SSC, sections 4.3 and 5.2).

The published one is VGG-19. The other two are for machines without its weights: MobileNetV2's ImageNet
features, and a pyramid of averaged pixels that needs no weights at all.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from wsss.nn.checkpoint import load_weights, read_checkpoint
from wsss.nn.vgg import Vgg19Slices, slices_from_torchvision
from wsss_methods.ssc.losses import Features, MobileNetFeatures, pixel_pyramid


def build_perceptual_features(kind: str, weights: Path | None, device: str) -> Features:
    """Frozen features: normalized images (N, 3, H, W) -> five maps, fine to coarse.

    Args:
        kind: "vgg19", "mobilenet_v2" or "pixel_pyramid".
        weights: torchvision's ImageNet file; None leaves random weights. Not used by "pixel_pyramid".

    Raises CheckpointError when the file does not fit.
    """
    if kind == "pixel_pyramid":
        return pixel_pyramid
    network: nn.Module
    if kind == "vgg19":
        network = Vgg19Slices()
        if weights is not None:
            load_weights(network, slices_from_torchvision(read_checkpoint(weights)), where=str(weights))
    else:
        network = MobileNetFeatures()
        if weights is not None:
            content = read_checkpoint(weights)
            load_weights(network.network, content, ignore=(r"classifier\..*",), where=str(weights))
    return network.to(device).eval()
