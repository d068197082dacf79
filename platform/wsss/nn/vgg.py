"""VGG (Simonyan and Zisserman, 2015) by torchvision's names, as a loss network, and with a large field of view."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from wsss.nn.backbone import scaled_channels

# Convolutions of the five blocks; a ReLU follows each, a pooling each block.
_CONVOLUTIONS = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_CHANNELS = (64, 128, 256, 512, 512)
# VGG-16 with a large field of view, layers from the picture on: name -> channels, stride, dilation; a pooling has no
# channels. 1-stage-wseg has stride 1 in conv4_1; programs that descend from it have 2, as here.
_VGG16: dict[str, tuple[int, int, int]] = {
    "conv1_1": (64, 1, 1), "conv1_2": (64, 1, 1), "pool1": (0, 2, 1),
    "conv2_1": (128, 1, 1), "conv2_2": (128, 1, 1), "pool2": (0, 2, 1),
    "conv3_1": (256, 1, 1), "conv3_2": (256, 1, 1), "conv3_3": (256, 1, 1), "pool3": (0, 2, 1),
    "conv4_1": (512, 2, 1), "conv4_2": (512, 1, 1), "conv4_3": (512, 1, 1), "pool4": (0, 1, 1),
    "conv5_1": (512, 1, 2), "conv5_2": (512, 1, 2), "conv5_3": (512, 1, 2),
}  # fmt: skip
_SLICES = ((0, 2), (2, 7), (7, 12), (12, 21), (21, 30))


def vgg_features(
    depth: Literal[16, 19], width: float = 1.0, output_stride: Literal[8, 32] = 32, end: int | None = None
) -> nn.Sequential:
    """torchvision's `features` by index: (N, 3, H, W) -> (N, 512 * width, H', W'), sides divided by the stride and
    rounded down at every pooling.

    Args:
        output_stride: at 8 the fourth pooling is 3x3 with stride 1, the last block has dilation 2, and the last pooling
            is left out.
        end: leave out the layers from this index on.
    """
    layers: list[nn.Module] = []
    channels = 3
    for block, (count, full) in enumerate(zip(_CONVOLUTIONS[depth], _CHANNELS, strict=True), 1):
        dilation = 2 if output_stride == 8 and block == 5 else 1
        for _ in range(count):
            if end is not None and len(layers) >= end:
                break
            out_channels = scaled_channels(full, width)
            layers += [
                nn.Conv2d(channels, out_channels, 3, padding=dilation, dilation=dilation),
                nn.ReLU(inplace=True),
            ]
            channels = out_channels
        if output_stride == 32 or block < 4:
            layers.append(nn.MaxPool2d(2, 2))
        elif block == 4:
            layers.append(nn.MaxPool2d(3, 1, padding=1))
    return nn.Sequential(*layers[:end])


class Vgg19Slices(nn.Module):
    """Features after relu1_1, relu2_1, relu3_1, relu4_1, relu5_1 at strides 1, 2, 4, 8, 16.

    Parameters keep torchvision's index: `slice2.5.weight` is `features.5.weight`. They are not trained.
    """

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        features = vgg_features(19, width, end=_SLICES[-1][1])
        for number, (start, end) in enumerate(_SLICES, 1):
            self.add_module(f"slice{number}", features[start:end])
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, 3, H, W) -> five feature maps, fine to coarse."""
        outputs = []
        for number in range(1, len(_SLICES) + 1):
            x = getattr(self, f"slice{number}")(x)
            outputs.append(x)
        return outputs


def slices_from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename torchvision's `vgg19` state dict (`features.5.weight`) to slices, the classifier dropped."""
    renamed = {}
    for name, value in state.items():
        if not name.startswith("features."):
            continue
        index = int(name.split(".")[1])
        for number, (start, end) in enumerate(_SLICES, 1):
            if start <= index < end:
                renamed[f"slice{number}.{name.removeprefix('features.')}"] = value
    return renamed


class Vgg16(nn.Module):
    """(N, 3, H, W) -> (`conv3_3` after ReLU, stride 4; `fc7` after ReLU, stride 16). No batch normalization.

    Parameter names are those of the published file `vgg16_20M.pth`, where `fc6` and `fc7` are convolutions. `width`
    scales every channel count; 1 fits the published weights.
    """

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        channels = 3
        for name, (layer_channels, stride, dilation) in _VGG16.items():
            if not layer_channels:
                continue
            out_channels = scaled_channels(layer_channels, width)
            self.add_module(
                name, nn.Conv2d(channels, out_channels, 3, stride=stride, padding=dilation, dilation=dilation)
            )
            channels = out_channels
            if name == "conv3_3":
                self.low_channels = channels
        self.deep_channels = scaled_channels(1024, width)
        self.fc6 = nn.Conv2d(channels, self.deep_channels, 3, padding=1)
        self.dropout6 = nn.Dropout2d(0.5)
        self.fc7 = nn.Conv2d(self.deep_channels, self.deep_channels, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        low = x
        for name, (layer_channels, stride, _) in _VGG16.items():
            if not layer_channels:
                x = F.max_pool2d(x, 3, stride=stride, padding=1)
            else:
                x = F.relu(getattr(self, name)(x))
            if name == "conv3_3":
                low = x
        x = self.dropout6(F.relu(self.fc6(x)))
        return low, F.relu(self.fc7(x))
