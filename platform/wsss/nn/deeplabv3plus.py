"""DeepLabV3+: separable atrous pyramid on an output-stride-16 backbone, refined by low-level features at stride 4.

Chen et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation", 2018; the
variant of BECO (ResNet-101-D with multi-grid).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.nn.backbones import SegmentationBackbone

RESNET101_D = SegmentationBackbone(
    name="resnet101", output_stride=16, multi_grid=(1, 2, 4), deep_stem=True, average_pool_shortcut=True
)


def _conv_norm_relu(in_channels: int, out_channels: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    return nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU()


class SeparableBlock(nn.Module):
    """Depthwise 3x3, BN, ReLU, pointwise, BN, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, dilation: int = 1) -> None:
        super().__init__()
        depthwise = nn.Conv2d(
            in_channels, in_channels, 3, padding=dilation, dilation=dilation, groups=in_channels, bias=False
        )
        self.convs = nn.Sequential(
            depthwise, nn.BatchNorm2d(in_channels), nn.ReLU(), *_conv_norm_relu(in_channels, out_channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.convs(x)


class PooledBlock(nn.Module):
    """Global average, pointwise, BN, ReLU, spread over the map again."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(nn.AdaptiveAvgPool2d(1), *_conv_norm_relu(in_channels, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.convs(x).expand(-1, -1, *x.shape[2:])


class SeparableAtrousPyramid(nn.Module):
    """Pointwise, three dilated separable and one pooled branch, joined and projected to `width` channels."""

    def __init__(
        self, in_channels: int, width: int = 256, rates: Sequence[int] = (6, 12, 18), dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [
                nn.Sequential(*_conv_norm_relu(in_channels, width)),
                *(SeparableBlock(in_channels, width, rate) for rate in rates),
                PooledBlock(in_channels, width),
            ]
        )
        self.projector = nn.Sequential(*_conv_norm_relu((len(rates) + 2) * width, width), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        return self.projector(torch.cat([branch(x) for branch in self.convs], dim=1))


class DeepLabV3Plus(nn.Module):
    """DeepLabV3+ with a ResNet-101-D at output stride 16; smaller through `backbone` and `width`.

    `forward(images)` takes (N, 3, H, W) float32 ImageNet-normalized images and returns `pre_logits` (N,
    num_classes, ~H/4, ~W/4) and `logits` (N, num_classes, H, W), the bilinear upsampling of the former.
    With ResNet-D shortcuts H and W must be multiples of 16, because the shortcut's pooling floors;
    ValueError if not. State-dict names are those of the official file (`aspp.convs.1.convs.0.weight`,
    `projector.0.weight`).
    """

    def __init__(self, num_classes: int = 21, backbone: SegmentationBackbone | None = None, width: int = 256) -> None:
        super().__init__()
        chosen = backbone or RESNET101_D
        self.backbone = chosen.build()
        self.size_multiple = chosen.output_stride if chosen.average_pool_shortcut else 1
        self.aspp = SeparableAtrousPyramid(self.backbone.channels[-1], width)
        self.projector = nn.Sequential(*_conv_norm_relu(self.backbone.channels[1], 48))
        self.pre_classifier = SeparableBlock(48 + width, width)
        self.classifier = nn.Conv2d(width, num_classes, 1)
        for part in (self.aspp, self.projector, self.pre_classifier, self.classifier):
            for module in part.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        size = images.shape[2:]
        if any(side % self.size_multiple for side in size):
            raise ValueError(
                f"DeepLabV3+ with pooled shortcuts needs sides that are multiples of {self.size_multiple}, "
                f"got {tuple(size)}"
            )
        features = self.backbone(images)
        low_level = self.projector(features[1])
        pyramid = F.interpolate(self.aspp(features[-1]), size=low_level.shape[2:], mode="bilinear", align_corners=False)
        pre_logits = self.classifier(self.pre_classifier(torch.cat([low_level, pyramid], dim=1)))
        return pre_logits, F.interpolate(pre_logits, size=size, mode="bilinear", align_corners=False)
