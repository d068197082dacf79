"""The single-stage network of WS-FCN and its published parameter names.

Flexible context aggregation (FCA): large separable kernels of growing dilation, attention. Semantically consistent
feature fusion (SF2): flow alignment, cross fusion. Between them and the decoder: the stochastic gate of 1-stage-wseg.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.nn.backbones import Normalization, Taps
from wsss.nn.norms import FrozenStatisticsBatchNorm2d, GroupedBatchNorm2d
from wsss.nn.resnet import NormLayer

PUBLISHED_BACKBONES = ("resnet38", "resnet50", "resnet101", "vgg16")
_BODY = "backbone.body."
# Kernel and dilation of the four branches.
BRANCHES = ((1, 1), (3, 12), (5, 24), (7, 36))


@dataclass(frozen=True)
class Structure:
    """Shape of the network.

    Attributes:
        num_classes: with the background.
        backbone: one of `wsss.nn.backbones.TAP_BACKBONES`.
        backbone_width: factor on the body's channel counts.
        head_width: channels of everything behind the body, 256 as published.
        normalization: of the body, see `Taps`.
        norm_group: images over which a trained norm takes its statistics, 0 for the whole batch.
        gate_psi: share of the shallow map in the stochastic gate.
        fca_dropout, decoder_dropout1, decoder_dropout2: probabilities of element-wise dropout.
    """

    num_classes: int
    backbone: str = "resnet38"
    backbone_width: float = 1.0
    head_width: int = 256
    normalization: Normalization = "frozen"
    norm_group: int = 0
    gate_psi: float = 0.3
    fca_dropout: float = 0.5
    decoder_dropout1: float = 0.5
    decoder_dropout2: float = 0.1


class LargeKernelBranch(nn.Module):
    """A k x k kernel as the sum of two pairs of one-dimensional convolutions. (N, F, h, w) -> (N, width, h, w).

    `bn` is never called. The official network owns it too, so checkpoints hold it; it gets no gradient.
    """

    def __init__(self, in_channels: int, width: int, kernel: int, dilation: int) -> None:
        super().__init__()
        padding = dilation * (kernel - 1) // 2

        def conv(channels: int, tall: bool) -> nn.Conv2d:
            def sides(along: int, across: int) -> tuple[int, int]:
                return (along, across) if tall else (across, along)

            size, pad, dilated = sides(kernel, 1), sides(padding, 0), sides(dilation, 1)
            return nn.Conv2d(channels, width, size, padding=pad, dilation=dilated, bias=False)

        self.conv1_1 = conv(in_channels, tall=True)
        self.conv1_2 = conv(width, tall=False)
        self.bn = FrozenStatisticsBatchNorm2d(width)
        self.conv2_1 = conv(in_channels, tall=False)
        self.conv2_2 = conv(width, tall=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv1_2(self.conv1_1(x)) + self.conv2_2(self.conv2_1(x))


class ChannelAttention(nn.Module):
    """(N, C, h, w) -> (N, C, 1, 1) in (0, 1), from the mean and the maximum over positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.sharedMLP = nn.Sequential(
            nn.Conv2d(channels, channels, 1, bias=False), nn.ReLU(), nn.Conv2d(channels, channels, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        mean = self.sharedMLP(x.mean(dim=(2, 3), keepdim=True))
        return torch.sigmoid(mean + self.sharedMLP(x.amax(dim=(2, 3), keepdim=True)))


class SpatialAttention(nn.Module):
    """(N, C, h, w) -> (N, 1, h, w) in (0, 1), from the mean and the maximum over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.conv(torch.cat([x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)], dim=1)))


class ContextAggregation(nn.Module):
    """FCA: (N, in_channels, h, w) -> (N, width, h, w).

    The two norms that are called keep their initial statistics 0 and 1 for ever; their weight and bias are trained.
    At 321 pixels most taps of the far branches fall outside the map and see only zeros; they matter on the large
    canvas of inference, so they are neither removed nor initialized otherwise.
    """

    def __init__(self, in_channels: int, width: int = 256, dropout: float = 0.5) -> None:
        super().__init__()
        self.sa = SpatialAttention()
        self.ca = ChannelAttention(width)
        for number, (kernel, dilation) in enumerate(BRANCHES, 1):
            self.add_module(f"fca{number}", LargeKernelBranch(in_channels, width, kernel, dilation))
        self.global_avg_pool = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(in_channels, width, 1, bias=False),
            FrozenStatisticsBatchNorm2d(width),
            nn.ReLU(),
        )
        self.conv1 = nn.Conv2d(width * (len(BRANCHES) + 1), width, 1, bias=False)
        self.bn1 = FrozenStatisticsBatchNorm2d(width)
        self.dropout = nn.Dropout(dropout)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def branches(self, x: Tensor) -> list[Tensor]:
        """The four large-kernel branches before channel attention, each (N, width, h, w)."""
        return [getattr(self, f"fca{number}")(x) for number in range(1, len(BRANCHES) + 1)]

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.ca(branch) * branch for branch in self.branches(x)]
        parts.append(self.global_avg_pool(x).expand_as(parts[0]))
        mixed = self.bn1(self.conv1(torch.cat(parts, dim=1)))
        return self.dropout(self.sa(mixed) * mixed + mixed)


class FlowAlignment(nn.Module):
    """Warps a deep map to the grid of a shallow one along a learned flow.

    Args:
        low_channels, high_channels: of the shallow and the deep map.
        width: channels in which the two are compared, 128 as published.
    """

    def __init__(self, low_channels: int, high_channels: int, width: int = 128) -> None:
        super().__init__()
        self.down_h = nn.Conv2d(high_channels, width, 1, bias=False)
        self.down_l = nn.Conv2d(low_channels, width, 1, bias=False)
        self.flow_make = nn.Conv2d(2 * width, 2, 3, padding=1, bias=False)

    def flow(self, low: Tensor, high: Tensor) -> Tensor:
        """(N, 2, H, W): offsets in x and y, before they are divided by the width and the height of the grid."""
        # Half-pixel centers here, while the sampling below and all other resizing of the network align corners.
        resized = F.interpolate(self.down_h(high), size=low.shape[2:], mode="bilinear", align_corners=False)
        return self.flow_make(torch.cat([resized, self.down_l(low)], dim=1))

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """low (N, L, H, W), high (N, C, h, w) -> high at (N, C, H, W), zero where the flow leaves the map."""
        flow = self.flow(low, high)
        flow = flow.to(torch.promote_types(flow.dtype, torch.float32))  # half precision would move the sampling points
        height, width = low.shape[2:]
        x = torch.linspace(-1.0, 1.0, width, dtype=flow.dtype, device=flow.device).expand(height, width)
        y = torch.linspace(-1.0, 1.0, height, dtype=flow.dtype, device=flow.device)[:, None].expand(height, width)
        grid = torch.stack([x + flow[:, 0] / width, y + flow[:, 1] / height], dim=-1)
        return F.grid_sample(high.to(grid.dtype), grid, mode="bilinear", padding_mode="zeros", align_corners=True)


class FeatureFusion(nn.Module):
    """SF2: shallow (N, L, H, W) and deep (N, C, H, W) -> shallow and deep outputs, both (N, width, H, W)."""

    def __init__(
        self, left_channels: int, down_channels: int, width: int = 256, norm_layer: NormLayer = nn.BatchNorm2d
    ) -> None:
        super().__init__()
        for side, first_channels in (("h", left_channels), ("v", down_channels)):
            for number in range(1, 5):
                channels = first_channels if number == 1 else width
                self.add_module(f"conv{number}{side}", nn.Conv2d(channels, width, 3, padding=1))
                self.add_module(f"bn{number}{side}", norm_layer(width))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
                nn.init.zeros_(module.bias)  # pyright: ignore[reportArgumentType]

    def _step(self, name: str, x: Tensor) -> Tensor:
        return F.relu(getattr(self, f"bn{name}")(getattr(self, f"conv{name}")(x)))

    def forward(self, left: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        if down.shape[2:] != left.shape[2:]:
            down = F.interpolate(down, size=left.shape[2:], mode="bilinear", align_corners=False)
        shallow = self._step("1h", left)
        deep = self._step("1v", down)
        fused = self._step("2h", shallow) * self._step("2v", deep)
        shallow = self._step("4h", self._step("3h", fused) + shallow)
        deep = self._step("4v", self._step("3v", fused) + deep)
        return shallow, deep


class StochasticGate(nn.Module):
    """Mixes a deep and a shallow map; in training each element comes from one of them.

    Inference: (1 - psi) deep + psi shallow. Training: shallow with probability psi, else
    (deep - psi shallow) / (1 - psi), whose expectation is the deep map, not the inference mixture: the behaviour
    of 1-stage-wseg (`models/mods/sg.py`).
    """

    def __init__(self, psi: float = 0.3) -> None:
        super().__init__()
        if not 0 <= psi < 1:
            raise ValueError(f"psi must lie in [0, 1), got {psi}")
        self.psi = psi

    def forward(self, deep: Tensor, shallow: Tensor) -> Tensor:
        if not self.training:
            return (1 - self.psi) * deep + self.psi * shallow
        return self.mix(deep, shallow, torch.rand_like(deep) >= self.psi)

    def mix(self, deep: Tensor, shallow: Tensor, keep: Tensor) -> Tensor:
        """The training output for a given mask, bool of the maps' shape: True takes the deep map."""
        return torch.where(keep, (deep - self.psi * shallow) / max(1e-8, 1 - self.psi), shallow)


class WsFcn(nn.Module):
    """Image -> logits of all classes at stride 4; the background's is the constant 1 and has no parameter.

    Below `backbone.body.` lie the body's own names; `official_state_dict` gives the published ones.
    """

    def __init__(self, structure: Structure) -> None:
        super().__init__()
        self.structure = structure
        norm_layer: NormLayer = nn.BatchNorm2d
        if structure.norm_group:
            norm_layer = partial(GroupedBatchNorm2d, group=structure.norm_group)
        width = structure.head_width
        self.backbone = Taps(structure.backbone, structure.backbone_width, structure.normalization, norm_layer)
        low = self.backbone.low_channels
        self.align1 = FlowAlignment(low, width, max(1, width // 2))
        self.sf2 = FeatureFusion(low, width, width, norm_layer)
        self.fca = ContextAggregation(self.backbone.deep_channels, width, structure.fca_dropout)
        self.gate = StochasticGate(structure.gate_psi)
        self.last_conv = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            norm_layer(width),
            nn.ReLU(),
            nn.Dropout(structure.decoder_dropout1),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            norm_layer(width),
            nn.ReLU(),
            nn.Dropout(structure.decoder_dropout2),
            nn.Conv2d(width, structure.num_classes - 1, 1),
        )
        for module in self.last_conv.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def features(self, image: Tensor) -> dict[str, Tensor]:
        """Every intermediate map by its published name: conv3, conv6, fca, align, sf2_h, sf2_v, gate."""
        maps: dict[str, Tensor] = {}
        maps["conv3"], maps["conv6"] = self.backbone(image)
        maps["fca"] = self.fca(maps["conv6"])
        maps["align"] = self.align1(maps["conv3"], maps["fca"])
        maps["sf2_h"], maps["sf2_v"] = self.sf2(maps["conv3"], maps["align"])
        maps["gate"] = self.gate(maps["sf2_v"], maps["sf2_h"])
        return maps

    def forward(self, image: Tensor) -> Tensor:
        """Normalized image (N, 3, H, W) -> logits (N, num_classes, h, w), channel 0 the constant 1."""
        return with_background(self.last_conv(self.features(image)["gate"]))


def with_background(foreground: Tensor) -> Tensor:
    """Logits (N, K, h, w) behind a background logit that is 1 everywhere: (N, K + 1, h, w)."""
    return torch.cat([torch.ones_like(foreground[:, :1]), foreground], dim=1)


def official_name(name: str) -> str:
    """The published name of a parameter or buffer."""
    return name.removeprefix(_BODY)


def own_name(name: str) -> str:
    """Our name of a published one."""
    head = name.split(".", 1)[0]
    return name if head in ("align1", "sf2", "fca", "last_conv", "fc8", "_aff") else _BODY + name


def official_state_dict(network: WsFcn) -> dict[str, Tensor]:
    """The state dict under its published names and in its published order, the constant PAMR kernels included."""
    state: dict[str, Tensor] = {}
    for name, value in network.state_dict().items():
        if name == "last_conv.0.weight":
            state.update(pamr_kernels())
        state[official_name(name)] = value
    return state


def pamr_kernels() -> dict[str, Tensor]:
    """The constant buffers of the published state dict: shifts of PAMR as 3x3 kernels (`models/mods/pamr.py`)."""
    others = [position for position in range(9) if position != 4]
    shift = torch.zeros(8, 1, 3, 3)
    difference = torch.zeros(8, 1, 3, 3)
    difference[:, 0, 1, 1] = 1.0
    for index, position in enumerate(others):
        shift[index, 0, position // 3, position % 3] = 1.0
        difference[index, 0, position // 3, position % 3] = -1.0
    every = torch.eye(9).reshape(9, 1, 3, 3)
    return {"_aff.aff_x.kernel": difference, "_aff.aff_m.kernel": shift, "_aff.aff_std.kernel": every}


def parameter_groups(
    network: WsFcn, *, learning_rate: float, weight_decay: float, multipliers: tuple[float, float, float, float]
) -> list[dict[str, Any]]:
    """Parameters that are trained, in the four published groups and their order (`train.py`).

    Weights and biases of the body, then weights and biases of everything new; norms count by the same rule. Biases
    have no weight decay. Each group also carries "names", the published parameter names. A group may be empty.
    """
    names: list[list[str]] = [[], [], [], []]
    parameters: Mapping[str, nn.Parameter] = dict(network.named_parameters())
    for name, parameter in parameters.items():
        if parameter.requires_grad:
            is_new = not name.startswith(_BODY)
            names[2 * is_new + name.endswith(".bias")].append(name)
    return [
        {
            "params": [parameters[name] for name in members],
            "names": [official_name(name) for name in members],
            "lr": learning_rate * multiplier,
            "weight_decay": 0.0 if index % 2 else weight_decay,
        }
        for index, (members, multiplier) in enumerate(zip(names, multipliers, strict=True))
    ]
