"""The classification networks whose scores are the CAM: with dynamic convolutional reconstruction, and the plain one.

Dynamic convolutional reconstruction (DCR): 3x3 kernels, one for each position, predicted from the image's features and
from which pixels belong to which superpixels, rebuild the features before the last stage and the class scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wsss.nn.backbones import Normalization, build_backbone
from wsss.nn.checkpoint import Aliases, official_state_dict
from wsss.ops.superpixel_affinity import NEIGHBORS, lifted_to_pixels

BODY = "model."
_SLOPE = 0.1
# The official module registers its ResNet a second time, stage by stage.
STAGES = (
    ("stage1.0", "model.conv1"),
    ("stage1.1", "model.bn1"),
    *((f"stage{number + 1}.0", f"model.layer{number}") for number in range(1, 5)),
)


@dataclass(frozen=True)
class Structure:
    """Shape of a network; see the recipe's section `network`. `num_classes` counts the background."""

    num_classes: int
    backbone: str = "resnet50"
    width: float = 1.0
    normalization: Normalization = "frozen"
    head_width: int = 128
    dcr: bool = True
    dcr_inputs: str = "both"
    gradient_stop: bool = True


class ScoreMaps(NamedTuple):
    """What a network says of images.

    scores (N, C, h, w): of every class, the background first, at stride 16. pooled (N, C, 1, 1): what is classified.
    features (N, F, h, w): by which positions are alike.
    """

    scores: Tensor
    pooled: Tensor
    features: Tensor


def _convolution(in_channels: int, channels: int, kernel: int, stride: int = 1, norm: bool = False) -> nn.Sequential:
    # Half of a kernel of 4, rounded down, is padded by 1: a multiple of 16 is divided by 4 exactly.
    convolution = nn.Conv2d(in_channels, channels, kernel, stride, (kernel - 1) // 2, bias=not norm)
    return nn.Sequential(convolution, *([nn.BatchNorm2d(channels)] if norm else []), nn.LeakyReLU(_SLOPE))


class _Gate(nn.Sequential):
    """A factor in (0, 1) for each channel, from the channels' means: (N, F, 1, 1) -> (N, F, 1, 1)."""

    def __init__(self, channels: int) -> None:
        hidden = max(1, channels // 16)
        super().__init__(
            nn.Conv2d(channels, hidden, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(hidden, channels, 1, bias=False),
            nn.Sigmoid(),
        )


class ReconstructionNetwork(nn.Module):
    """Backbone with DCR and channel gates (official `sp_cam`); parameters bear the published names.

    `forward`: normalized image (N, 3, H, W) and association (N, 9, H, W) -> `ScoreMaps`, H and W multiples of 16.
    """

    def __init__(self, structure: Structure) -> None:
        super().__init__()
        self.structure = structure
        body = build_backbone(structure.backbone, structure.width, structure.normalization, dilated=True)
        fourth, fifth = body.channels[3:]
        width, inputs = structure.head_width, structure.dcr_inputs
        self.model: Any = body
        if inputs != "features":
            self.get_qfeats = nn.Sequential(
                _convolution(len(NEIGHBORS), width // 4, 4, 4, norm=True),
                _convolution(width // 4, width, 4, 4, norm=True),
                _convolution(width, width, 3),
            )
        if inputs != "superpixels":
            self.x4_feats = nn.Sequential(_convolution(fourth, width, 1, norm=True))
            self.x5_feats = nn.Sequential(_convolution(fifth, width, 1, norm=True))
        seen = width * (2 if inputs == "both" else 1)
        for number in (5, 4):
            head = nn.Sequential(_convolution(seen, 2 * width, 3), _convolution(2 * width, len(NEIGHBORS), 1))
            self.add_module(f"get_tran_conv{number}", head)
        self.ala2 = _Gate(fifth)
        self.ala1 = _Gate(fourth)
        self.classifier = nn.Sequential(nn.Conv2d(fifth, structure.num_classes, 1, bias=False))

    def features(self, image: Tensor, association: Tensor) -> dict[str, Tensor]:
        """Every intermediate map: q, x4, kernels4, gate4, x4_rebuilt, x5, kernels5, gate5, scores, rebuilt."""
        maps: dict[str, Tensor] = {}
        if self.structure.dcr_inputs != "features":
            maps["q"] = self.get_qfeats(association)
        x = image
        for index in range(4):
            x = self.model.stage(index, x)
        maps["x4"] = x
        maps["kernels4"] = self._kernels(4, x, maps)
        maps["gate4"] = self.ala1(x.mean(dim=(2, 3), keepdim=True))
        maps["x4_rebuilt"] = lifted_to_pixels(x * maps["gate4"], maps["kernels4"], 1)
        maps["x5"] = x = self.model.stage(4, maps["x4_rebuilt"])
        maps["kernels5"] = self._kernels(5, x, maps)
        maps["gate5"] = self.ala2(x.detach().mean(dim=(2, 3), keepdim=True))
        maps["scores"] = self.classifier(x * maps["gate5"])
        maps["rebuilt"] = lifted_to_pixels(maps["scores"], maps["kernels5"], 1)
        return maps

    def _kernels(self, number: int, x: Tensor, maps: dict[str, Tensor]) -> Tensor:
        """Weights of the nine positions around each, (N, 9, h, w); no gradient into the backbone."""
        seen = []
        if self.structure.dcr_inputs != "superpixels":
            seen.append(self.get_submodule(f"x{number}_feats")(x.detach()))
        seen += [maps["q"]] if "q" in maps else []
        # As published the last convolution has an activation, so the softmax sees negative values shrunk.
        return self.get_submodule(f"get_tran_conv{number}")(torch.cat(seen, dim=1)).softmax(dim=1)

    def forward(self, image: Tensor, association: Tensor) -> ScoreMaps:
        maps = self.features(image, association)
        return ScoreMaps(maps["rebuilt"], maps["scores"].mean(dim=(2, 3), keepdim=True), maps["x4_rebuilt"])


class PlainNetwork(nn.Module):
    """The baseline (official `cam_baseline`): backbone and classifier; the association is not looked at.

    `ala1` and `ala2` are in the published files of a ResNet-50; nothing calls or trains them.
    """

    def __init__(self, structure: Structure) -> None:
        super().__init__()
        self.structure = structure
        body = build_backbone(structure.backbone, structure.width, structure.normalization, dilated=True)
        self.model: Any = body
        fourth, fifth = body.channels[3:]
        self.classifier = nn.Conv2d(fifth, structure.num_classes, 1, bias=False)
        if structure.backbone == "resnet50":
            self.ala2 = nn.Conv2d(fifth, fifth, 1, bias=False).requires_grad_(False)
            self.ala1 = nn.Conv2d(fourth, fourth, 1, bias=False).requires_grad_(False)

    def forward(self, image: Tensor, association: Tensor | None = None) -> ScoreMaps:
        x = image
        for index in range(3):
            x = self.model.stage(index, x)
        fourth = self.model.stage(3, x.detach() if self.structure.gradient_stop else x)
        scores = self.classifier(self.model.stage(4, fourth))
        return ScoreMaps(scores, scores.mean(dim=(2, 3), keepdim=True), fourth)


CamNetwork = ReconstructionNetwork | PlainNetwork


def build_network(structure: Structure) -> CamNetwork:
    """The network with random weights."""
    return ReconstructionNetwork(structure) if structure.dcr else PlainNetwork(structure)


def aliases(network: CamNetwork) -> Aliases:
    """Further names of its tensors in the published file."""
    return STAGES if network.structure.backbone.startswith("resnet") else ()


def published_state_dict(network: CamNetwork) -> dict[str, Tensor]:
    """The state dict with both names of the backbone."""
    return official_state_dict(network, aliases(network))


def parameter_groups(
    network: CamNetwork, *, learning_rate: float, head_lr_mult: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Trained parameters in the four published groups: weights and biases of the backbone, then of what is new.

    Norms count by the same rule. Biases learn twice as fast, without weight decay. A group may be empty.
    """
    groups: list[list[nn.Parameter]] = [[], [], [], []]
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            groups[2 * (not name.startswith(BODY)) + name.endswith(".bias")].append(parameter)
    factors = (1.0, 2.0, head_lr_mult, 2 * head_lr_mult)
    return [
        {"params": members, "lr": learning_rate * factor, "weight_decay": 0.0 if index % 2 else weight_decay}
        for index, (members, factor) in enumerate(zip(groups, factors, strict=True))
    ]
