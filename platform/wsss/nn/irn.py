"""Affinity network of IRN: class boundaries and displacements to instance centers.

Ahn, Cho, Kwak, "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations", 2019; official file
`net/resnet50_irn.py`. Several methods use it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from wsss.nn.backbone import Backbone, scaled_channels
from wsss.nn.backbones import Normalization, backbone_name, build_backbone
from wsss.nn.checkpoint import Aliases
from wsss.ops.affinity_path import path_index

# Further names of the published file when the backbone is `resnet50`.
RESNET50_ALIASES: Aliases = (
    *((f"{stage}.0", "resnet50.conv1") for stage in ("stage1", "backbone.0")),
    *((f"{stage}.1", "resnet50.bn1") for stage in ("stage1", "backbone.0")),
    *((f"stage{number + 1}.0", f"resnet50.layer{number}") for number in range(1, 5)),
    *((f"backbone.{number}.0", f"resnet50.layer{number}") for number in range(1, 5)),
)
HEAD_ALIASES: Aliases = (
    *((f"edge_layers.{number - 1}", f"fc_edge{number}") for number in range(1, 7)),
    *((f"dp_layers.{number - 1}", f"fc_dp{number}") for number in range(1, 8)),
    ("fc_dp7.4", "mean_shift"),
    ("dp_layers.6.4", "mean_shift"),
)
# Buffers of the training program in a published file; inference does not need them.
TRAINING_BUFFERS = (r"path_indices\d+", r"disp_target")

_EDGE_CHANNELS, _EDGE_GROUPS = 32, 4
_DISPLACEMENT = ((64, 8), (128, 16), (256, 16), (256, 16), (256, 16), (256, 16), (256, 16))


class MeanShift(nn.Module):
    """Subtracts a stored mean in evaluation mode; the identity in training mode."""

    running_mean: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training else x - self.running_mean[None, :, None, None]


class AffinityNetwork(nn.Module):
    """Edge logits and displacement field at a quarter of the image size.

    Args:
        backbone: five stages at strides 4, 4, 8, 16, 16.
        backbone_name: name under which the backbone's parameters appear; published files say `resnet50`.
        train_backbone: let the gradient reach the backbone. The published network detaches every stage.
        head_width: factor on the channels of the heads; 1 is the published network.
    """

    def __init__(
        self,
        backbone: Backbone,
        backbone_name: str = "resnet50",
        train_backbone: bool = False,
        head_width: float = 1.0,
    ) -> None:
        super().__init__()
        if tuple(backbone.strides) != (4, 4, 8, 16, 16):
            raise ValueError(f"the heads need stages at strides 4, 4, 8, 16, 16, not {backbone.strides}")
        self.backbone_name = backbone_name
        self.train_backbone = train_backbone
        self.add_module(backbone_name, cast(nn.Module, backbone))
        if not train_backbone:
            self._backbone_module.requires_grad_(False)
        self.mean_shift = MeanShift(2)

        width = scaled_channels(_EDGE_CHANNELS, head_width)
        for number, (channels, stride) in enumerate(zip(backbone.channels, backbone.strides, strict=True), 1):
            head = _head(channels, width, _EDGE_GROUPS, upsampling=stride // 4)
            self.add_module(f"fc_edge{number}", head)
        self.fc_edge6 = nn.Conv2d(5 * width, 1, 1)

        widths = [scaled_channels(channels, head_width, 16) for channels, _ in _DISPLACEMENT]
        groups = [count for _, count in _DISPLACEMENT]
        upsampling = (1, 1, 1, 2, 2)
        for index, channels in enumerate(backbone.channels):
            head = _head(channels, widths[index], groups[index], upsampling[index])
            self.add_module(f"fc_dp{index + 1}", head)
        self.fc_dp6 = _head(sum(widths[2:5]), widths[5], groups[5], upsampling=2)
        self.fc_dp7 = nn.Sequential(
            nn.Conv2d(widths[0] + widths[1] + widths[5], widths[6], 1, bias=False),
            nn.GroupNorm(groups[6], widths[6]),
            nn.ReLU(inplace=True),
            nn.Conv2d(widths[6], 2, 1, bias=False),
        )

    @property
    def _backbone_module(self) -> nn.Module:
        return self.get_submodule(self.backbone_name)

    def aliases(self) -> Aliases:
        """Further names of the published file."""
        return (*RESNET50_ALIASES, *HEAD_ALIASES) if self.backbone_name == "resnet50" else HEAD_ALIASES

    def edge_parameters(self) -> list[nn.Parameter]:
        """Parameters of the edge heads."""
        return [parameter for name, parameter in self.named_parameters() if name.startswith("fc_edge")]

    def displacement_parameters(self) -> list[nn.Parameter]:
        """Parameters of the displacement heads."""
        return [parameter for name, parameter in self.named_parameters() if name.startswith("fc_dp")]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalized images (N, 3, H, W) -> edge logits (N, 1, h, w) and displacements (N, 2, h, w).

        (h, w) is the size of stage 1, ceil(H / 4) by ceil(W / 4). Channel 0 of the displacement is dy, channel 1
        dx, in positions. In evaluation mode the mean displacement is subtracted.
        """
        if self.train_backbone:
            features = self._backbone_module(x)
        else:
            with torch.no_grad():
                features = self._backbone_module(x)

        quarter = features[1].shape[2:]
        edges = [_cropped(getattr(self, f"fc_edge{i}")(feature), quarter) for i, feature in enumerate(features, 1)]
        edge = self.fc_edge6(torch.cat(edges, dim=1))

        fields = [getattr(self, f"fc_dp{i}")(feature) for i, feature in enumerate(features, 1)]
        eighth = fields[2].shape[2:]
        coarse = self.fc_dp6(torch.cat([fields[2], *(_cropped(field, eighth) for field in fields[3:])], dim=1))
        displacement = self.fc_dp7(torch.cat([fields[0], fields[1], _cropped(coarse, quarter)], dim=1))
        return edge, self.mean_shift(displacement)


def _head(in_channels: int, out_channels: int, groups: int, upsampling: int) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        nn.GroupNorm(groups, out_channels),
    ]
    if upsampling > 1:
        layers.append(nn.Upsample(scale_factor=upsampling, mode="bilinear", align_corners=False))
    return nn.Sequential(*layers, nn.ReLU(inplace=True))


def _cropped(x: Tensor, size: torch.Size) -> Tensor:
    return x[..., : size[0], : size[1]]


def training_buffers(radius: int, size: tuple[int, int]) -> dict[str, Tensor]:
    """The buffers that the official training program stores beside the weights.

    `path_indices<i>` int64 (paths, points, sources) of group i on a grid of `size`, and `disp_target` float32
    (1, 2, directions, 1) with (dy, dx) of every direction.
    """
    index = path_index(radius, size)
    bounds = [0, *index.group_ends]
    groups = [index.paths[start:end] for start, end in pairwise(bounds)]
    buffers = {f"path_indices{i}": torch.from_numpy(index.flat_paths(group)) for i, group in enumerate(groups)}
    target = torch.from_numpy(index.directions.astype("float32"))
    buffers["disp_target"] = target.T[None, :, :, None].contiguous()
    return buffers


def build_affinity_network(
    backbone: str = "resnet50",
    width: float = 1.0,
    *,
    train_backbone: bool = False,
    head_width: float = 1.0,
    depths: tuple[int, int, int, int] | None = None,
) -> AffinityNetwork:
    """The affinity network on a backbone of `build_backbone`, without suppression.

    A trained backbone (`train_backbone`) uses batch statistics, a frozen one stored statistics.
    """
    normalization: Normalization = "batch" if train_backbone else "frozen"
    body = build_backbone(backbone, width, normalization, None, depths)
    return AffinityNetwork(body, backbone_name(backbone), train_backbone, head_width)
