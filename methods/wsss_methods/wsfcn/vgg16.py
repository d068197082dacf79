"""VGG-16 with a large field of view as WS-FCN uses it: strides 4 and 16, `fc6` and `fc7` as convolutions.

The parameter names are those of the published file `vgg16_20M.pth` (WS-FCN, section 3.3).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from wsss.nn.backbone import scaled_channels

# Name, channels, stride, dilation; "pool" rows give the stride of a 3x3 maximum.
_LAYERS: tuple[tuple[str, int, int, int], ...] = (
    ("conv1_1", 64, 1, 1),
    ("conv1_2", 64, 1, 1),
    ("pool1", 0, 2, 1),
    ("conv2_1", 128, 1, 1),
    ("conv2_2", 128, 1, 1),
    ("pool2", 0, 2, 1),
    ("conv3_1", 256, 1, 1),
    ("conv3_2", 256, 1, 1),
    ("conv3_3", 256, 1, 1),
    ("pool3", 0, 2, 1),
    ("conv4_1", 512, 2, 1),  # a stride of 2 here is WS-FCN's own; the network it descends from has 1
    ("conv4_2", 512, 1, 1),
    ("conv4_3", 512, 1, 1),
    ("pool4", 0, 1, 1),
    ("conv5_1", 512, 1, 2),
    ("conv5_2", 512, 1, 2),
    ("conv5_3", 512, 1, 2),
)


class Vgg16(nn.Module):
    """(N, 3, H, W) -> (`conv3_3` after ReLU, stride 4; `fc7` after ReLU, stride 16). No batch normalization.

    `width` scales every channel count; 1 fits the published weights.
    """

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        channels = 3
        for name, layer_channels, stride, dilation in _LAYERS:
            if name.startswith("pool"):
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
        for name, _, stride, _ in _LAYERS:
            if name.startswith("pool"):
                x = F.max_pool2d(x, 3, stride=stride, padding=1)
            else:
                x = F.relu(getattr(self, name)(x))
            if name == "conv3_3":
                low = x
        x = self.dropout6(F.relu(self.fc6(x)))
        return low, F.relu(self.fc7(x))
