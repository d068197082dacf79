"""WS-FCN: the single-stage network, its plain CAM baseline, and their published parameter names (WS-FCN, section 3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.nn.grouped_norm import GroupedBatchNorm2d
from wsss_methods.wsfcn.backbones import Normalization, Taps
from wsss_methods.wsfcn.context_aggregation import ContextAggregation
from wsss_methods.wsfcn.feature_fusion import FeatureFusion, FlowAlignment, StochasticGate

HEAD_WIDTH = 256
_BODY = "backbone.body."


@dataclass(frozen=True)
class Structure:
    """Shape of the network.

    Attributes:
        num_classes: with the background.
        backbone: one of `backbones.BACKBONES`.
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
    head_width: int = HEAD_WIDTH
    normalization: Normalization = "frozen"
    norm_group: int = 0
    gate_psi: float = 0.3
    fca_dropout: float = 0.5
    decoder_dropout1: float = 0.5
    decoder_dropout2: float = 0.1


class WsFcn(nn.Module):
    """Image -> logits of all classes at stride 4; the background's is the constant 1 and has no parameter.

    Below `backbone.body.` lie the body's own names; `official_state_dict` gives the published ones.
    """

    def __init__(self, structure: Structure) -> None:
        super().__init__()
        self.structure = structure
        norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d
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
        conv3, conv6 = self.backbone(image)
        fca = self.fca(conv6)
        align = self.align1(conv3, fca)
        shallow, deep = self.sf2(conv3, align)
        return {
            "conv3": conv3,
            "conv6": conv6,
            "fca": fca,
            "align": align,
            "sf2_h": shallow,
            "sf2_v": deep,
            "gate": self.gate(deep, shallow),
        }

    def forward(self, image: Tensor) -> Tensor:
        """Normalized image (N, 3, H, W) -> logits (N, num_classes, h, w), channel 0 the constant 1."""
        return with_background(self.last_conv(self.features(image)["gate"]))


class CamBaseline(nn.Module):
    """The plain CAM network that the official code calls "bsl" (WS-FCN, section 3.11).

    Scores: channel dropout, global mean, 1x1 classifier. Masks: the classifier at every position, upsampled,
    rectified, divided by each class's maximum, behind a constant background.
    """

    def __init__(self, backbone: str, num_classes: int, width: float = 1.0, background: float = 0.1) -> None:
        super().__init__()
        self.background = background
        self.backbone = Taps(backbone, width)
        self.dropout = nn.Dropout2d(0.5)
        self.fc8 = nn.Conv2d(self.backbone.deep_channels, num_classes - 1, 1, bias=False)
        nn.init.xavier_uniform_(self.fc8.weight)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W) -> scores (N, K) and class maps (N, K, h, w) of the K foreground classes."""
        deep = self.backbone(image)[1]
        scores = self.fc8(self.dropout(deep).mean(dim=(2, 3), keepdim=True))[:, :, 0, 0]
        return scores, self.fc8(deep)

    def masks(self, class_maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Class maps (N, K, h, w) -> masks (N, K + 1, *size) in [0, 1], background first."""
        maps = F.interpolate(class_maps, size=size, mode="bilinear", align_corners=True).relu()
        maps = maps / (1e-5 + maps.amax(dim=(2, 3), keepdim=True))
        return torch.cat([torch.full_like(maps[:, :1], self.background), maps], dim=1)


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
    """The constant buffers of the published state dict: shifts of PAMR as 3x3 kernels (WS-FCN, section 3.10)."""
    others = [position for position in range(9) if position != 4]
    shift = torch.zeros(8, 1, 3, 3)
    difference = torch.zeros(8, 1, 3, 3)
    difference[:, 0, 1, 1] = 1.0
    for index, position in enumerate(others):
        shift[index, 0, position // 3, position % 3] = 1.0
        difference[index, 0, position // 3, position % 3] = -1.0
    every = torch.eye(9).reshape(9, 1, 3, 3)
    return {"_aff.aff_x.kernel": difference, "_aff.aff_m.kernel": shift, "_aff.aff_std.kernel": every}


def official_baseline_state_dict(network: CamBaseline) -> dict[str, Tensor]:
    """The baseline's state dict: published names, the classifier under all three of its names."""
    state = {official_name(name): value for name, value in network.state_dict().items()}
    for alias in ("cls_branch.2.weight", "mask_branch.0.weight"):
        state[alias] = state["fc8.weight"]
    return state


def parameter_groups(
    network: WsFcn,
    *,
    learning_rate: float,
    weight_decay: float,
    multipliers: tuple[float, float, float, float],
) -> list[dict[str, Any]]:
    """Parameters that are trained, in the four published groups and their order (WS-FCN, section 6).

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
