"""DeepLabV2: a dilated backbone at output stride 8 and a sum of four dilated classifiers.

Chen et al., "DeepLab: Semantic Image Segmentation with Deep Convolutional Nets, Atrous Convolution, and Fully
Connected CRFs", 2017; the variant of BECO (Rong et al., 2023).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from wsss.nn.backbones import SegmentationBackbone


class DilatedClassifiers(nn.Module):
    """Sum of 3x3 classifiers with dilations `rates`: (N, in_channels, h, w) -> (N, num_classes, h, w)."""

    def __init__(self, in_channels: int, num_classes: int, rates: Sequence[int] = (6, 12, 18, 24)) -> None:
        super().__init__()
        self.names = tuple(f"c{i}" for i in range(len(rates)))
        for name, rate in zip(self.names, rates, strict=True):
            classifier = nn.Conv2d(in_channels, num_classes, 3, padding=rate, dilation=rate)
            nn.init.normal_(classifier.weight, std=0.01)
            nn.init.zeros_(classifier.bias)  # type: ignore[arg-type]
            setattr(self, name, classifier)

    def forward(self, x: Tensor) -> Tensor:
        total = getattr(self, self.names[0])(x)
        for name in self.names[1:]:
            total = total + getattr(self, name)(x)
        return total


class DeepLabV2(nn.Module):
    """DeepLabV2 with a ResNet-101 at output stride 8; smaller through `backbone`.

    `forward(images)` takes (N, 3, H, W) float32 ImageNet-normalized images and returns `pre_logits`
    (N, num_classes, ~H/8, ~W/8) and `logits` (N, num_classes, H, W), the bilinear upsampling of the former.
    State-dict names are those of the official file (`backbone.stem_layer.conv1.weight`, `aspp.c0.weight`).
    """

    def __init__(self, num_classes: int = 21, backbone: SegmentationBackbone | None = None) -> None:
        super().__init__()
        self.backbone = (backbone or SegmentationBackbone()).build()
        self.aspp = DilatedClassifiers(self.backbone.channels[-1], num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pre_logits = self.aspp(self.backbone(images)[-1])
        logits = F.interpolate(pre_logits, size=images.shape[2:], mode="bilinear", align_corners=False)
        return pre_logits, logits
