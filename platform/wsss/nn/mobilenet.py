"""MobileNetV2 as a five-stage backbone, with torchvision's parameter names.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from wsss.nn.backbone import STAGES, scaled_channels

# Expansion, channels, blocks, stride: one row of the paper's table 2 each.
_ROWS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
# Indices of `features` in each stage: strides 4, 4, 8, 16 and 16 to 32.
_STAGES = ((0, 3), (3, 4), (4, 7), (7, 14), (14, 19))


def dilation_version(backbone: str) -> int:
    """Version of a stage that trains a dilated backbone: 2 of "mobilenet_v2", whose dilation was wrong in version 1."""
    return 2 if backbone == "mobilenet_v2" else 1


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, linear 1x1 projection; a shortcut where the shapes allow it."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        expansion: int,
        dilation: int,
        norm_layer: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        hidden = in_channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(_conv_norm_relu(in_channels, hidden, 1, norm_layer))
        layers.append(_conv_norm_relu(hidden, hidden, 3, norm_layer, stride=stride, dilation=dilation, groups=hidden))
        layers += [nn.Conv2d(hidden, out_channels, 1, bias=False), norm_layer(out_channels)]
        self.conv = nn.Sequential(*layers)
        self.shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.shortcut else self.conv(x)


def _conv_norm_relu(
    in_channels: int,
    out_channels: int,
    kernel: int,
    norm_layer: Callable[[int], nn.Module],
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
) -> nn.Sequential:
    padding = (kernel - 1) // 2 * dilation
    return nn.Sequential(
        nn.Conv2d(
            in_channels,
            out_channels,
            kernel,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=False,
        ),
        norm_layer(out_channels),
        nn.ReLU6(inplace=True),
    )


class MobileNetV2(nn.Module):
    """MobileNetV2 without its classifier, as stages of strides 4, 4, 8, 16 and `output_stride`.

    Parameters are named `features.*` as torchvision's; the last stage ends in the 1280-channel convolution.

    Args:
        width: factor on every channel count, rounded to multiples of 8; 1 fits the published weights.
        output_stride: 32, 16 or 8; strides beyond it become 1.
        dilated: replace those strides by dilation, so that every position keeps its value and others come between.
        norm_layer: makes a normalization layer for a channel count.
        after_last: parameterless module after the last stage's activation, or None (suppression of peaks; the
            blocks before it end in linear projections, which have no peak to bound).

    Attributes:
        channels, strides: of the output of each stage.
        layer_channels: of the output of each of the 19 layers of `features`.
    """

    def __init__(
        self,
        width: float = 1.0,
        output_stride: Literal[8, 16, 32] = 16,
        dilated: bool = False,
        norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
        after_last: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride must be 8, 16 or 32, got {output_stride}")
        channels = scaled_channels(32, width)
        features: list[nn.Module] = [_conv_norm_relu(3, channels, 3, norm_layer, stride=2)]
        widths, reached = [channels], [2]
        total, dilation = 2, 1
        for expansion, row_channels, blocks, row_stride in _ROWS:
            out_channels = scaled_channels(row_channels, width)
            stride, further_dilation = row_stride, dilation
            if total * stride > output_stride:
                further_dilation *= stride if dilated else 1
                stride = 1
            total *= stride
            for block in range(blocks):
                # The block that had the stride still reads neighbours of its input; those after it read further ones.
                block_stride, block_dilation = (stride, dilation) if block == 0 else (1, further_dilation)
                features.append(
                    InvertedResidual(channels, out_channels, block_stride, expansion, block_dilation, norm_layer)
                )
                channels = out_channels
                widths.append(channels)
                reached.append(total)
            dilation = further_dilation
        last = scaled_channels(1280, width)
        features.append(_conv_norm_relu(channels, last, 1, norm_layer))
        widths.append(last)
        reached.append(total)
        self.features = nn.Sequential(*features)
        self.after_last = after_last
        self.layer_channels: tuple[int, ...] = tuple(widths)
        self.channels: tuple[int, ...] = tuple(widths[end - 1] for _, end in _STAGES)
        self.strides: tuple[int, ...] = tuple(reached[end - 1] for _, end in _STAGES)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def stage(self, index: int, x: Tensor) -> Tensor:
        """Output of stage `index` (0..4) for the output of the stage before it, the image for stage 0."""
        start, end = _STAGES[index]
        x = self.features[start:end](x)
        return self.after_last(x) if index == STAGES - 1 and self.after_last is not None else x

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, 3, H, W) -> outputs of the five stages, channels `self.channels`, strides `self.strides`."""
        outputs = []
        for index in range(STAGES):
            x = self.stage(index, x)
            outputs.append(x)
        return outputs
