"""SBNet's network: SEAM's classifier with its pixel correlation module, and a branch that finds semantic boundaries.

Liu, Zhang, Hong and Barnes, 2021; `network/resnet38_SEAM_BD.py` and `network/auxiliary.py` of the official program.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from wsss.nn.backbone import scaled_channels
from wsss.nn.backbones import freeze
from wsss.nn.checkpoint import Aliases
from wsss.nn.mobilenet import MobileNetV2
from wsss.nn.norms import FrozenStatisticsBatchNorm2d
from wsss.nn.wide_resnet38 import WideResNet38
from wsss_methods.sbnet.recipe import CamSettings

# Official name of a map -> tap of Wide-ResNet-38, and the layer of MobileNetV2 that takes its place.
TAPS = {
    "conv1": ("b2.bn_branch2a", 1),
    "conv3": ("b4.bn_branch2a", 3),
    "conv4": ("b5.bn_branch2a", 6),
    "conv5": ("b6.bn_branch2a", 13),
    "conv6": ("b7.bn_branch2a", 17),
}
LAST = "conv7"
# Layers that no ImageNet file has and that train at a higher rate.
NEW_LAYERS = ("fc8", "f8_3", "f8_4", "f9")
EDGE_LAYERS = ("edge_layer", "fuse_canny_edge")
_BODY = "body."
_EPSILON = 1e-5
# Columns of the correlation matrix that are made at once. A training crop has fewer; a large image needs less memory.
_COLUMNS = 4096


@dataclass(frozen=True)
class Maps:
    """What the network says of a batch of images (N, 3, H, W), all (N, C, H, W) with the background first.

    Attributes:
        cam: logits of the classifier.
        refined: `cam` after the pixel correlation module, at least 0; None without it.
        boundary: logits of the boundaries of each class; None without the branch.
    """

    cam: Tensor
    refined: Tensor | None
    boundary: Tensor | None

    def precise(self) -> Maps:
        """In float32 at least, as the losses want them."""
        optional = (None if maps is None else precise(maps) for maps in (self.refined, self.boundary))
        return Maps(precise(self.cam), *optional)


class ChannelAttention(nn.Module):
    """Adds two 1x1 convolutions of the mean over positions to every position. (N, C, h, w) -> the same shape.

    Added, without a sigmoid, where channel attention usually multiplies: so is the official module.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        inner = max(1, channels // reduction)
        self.conv_du = nn.Sequential(nn.Conv2d(channels, inner, 1), nn.ReLU(), nn.Conv2d(inner, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_du(x.mean(dim=(2, 3), keepdim=True))


class AttentionBlock(nn.Module):
    """Two 3x3 convolutions and `ChannelAttention` around a shortcut, as in RCAN. (N, C, h, w) -> the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            ChannelAttention(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + x


class EdgeModule(nn.Module):
    """Boundary logits of every class from four maps of the backbone, at the size of the first.

    Args:
        channels: of the maps conv1, conv3, conv5 and conv6.
        num_classes: with the background.
        width: factor on the 32 channels of each of the four.
    """

    def __init__(self, channels: tuple[int, int, int, int], num_classes: int, width: float = 1.0) -> None:
        super().__init__()
        inner = scaled_channels(32, width)
        self.levels = (1, 3, 5, 6)
        for level, given in zip(self.levels, channels, strict=True):
            self.add_module(f"conv{level}", nn.Conv2d(given, inner, 1))
            self.add_module(f"conv8_{level}", nn.Conv2d(inner, inner, 3, padding=1))
        self.rcab = AttentionBlock(4 * inner)
        self.classifier = nn.Conv2d(4 * inner, num_classes, 3, padding=1)

    def forward(self, *maps: Tensor) -> Tensor:
        """Four maps (N, C_k, h_k, w_k) -> (N, num_classes, h_1, w_1)."""
        size = maps[0].shape[2:]
        parts = []
        for level, x in zip(self.levels, maps, strict=True):
            x = F.relu(self.get_submodule(f"conv{level}")(x))
            parts.append(resized(F.relu(self.get_submodule(f"conv8_{level}")(x)), size))
        return self.classifier(self.rcab(torch.cat(parts, dim=1)))


class CamNetwork(nn.Module):
    """Classifier, pixel correlation module and boundary branch; which of the two there are follows from the settings.

    On Wide-ResNet-38 `published_state_dict` has the names of the official files.

    Args:
        num_classes: with the background.
    """

    def __init__(self, settings: CamSettings, num_classes: int) -> None:
        super().__init__()
        norm = FrozenStatisticsBatchNorm2d if settings.normalization == "frozen" else nn.BatchNorm2d
        if settings.backbone == "resnet38":
            self.body: WideResNet38 | MobileNetV2 = WideResNet38(settings.width, norm)
            channels = {name: self.body.channels[tap] for name, (tap, _) in TAPS.items()}
            channels[LAST] = self.body.channels["b7"]
        else:
            stride = cast(Literal[8, 16], settings.output_stride)
            self.body = MobileNetV2(settings.width, stride, dilated=True, norm_layer=norm)
            channels = {name: self.body.layer_channels[layer] for name, (_, layer) in TAPS.items()}
            channels[LAST] = self.body.layer_channels[-1]
        if settings.normalization == "frozen":
            freeze(self.body, settings.backbone)

        self.dropout7 = nn.Dropout2d(0.5)
        self.fc8 = nn.Conv2d(channels[LAST], num_classes, 1, bias=False)
        nn.init.xavier_uniform_(self.fc8.weight)
        self.correlation = settings.correlation
        if self.correlation:
            inner = [scaled_channels(length, settings.width) for length in (64, 128, 192)]
            self.f8_3 = nn.Conv2d(channels["conv4"], inner[0], 1, bias=False)
            self.f8_4 = nn.Conv2d(channels["conv5"], inner[1], 1, bias=False)
            self.f9 = nn.Conv2d(3 + inner[0] + inner[1], inner[2], 1, bias=False)
            for layer in (self.f8_3, self.f8_4):
                nn.init.kaiming_normal_(layer.weight)
            nn.init.xavier_uniform_(self.f9.weight, gain=4)
        self.edge_layer: EdgeModule | None = None
        if settings.branch:
            read = (channels["conv1"], channels["conv3"], channels["conv5"], channels["conv6"])
            self.fuse_canny_edge = nn.Conv2d(2 * num_classes, num_classes, 1, bias=False)
            self.edge_layer = EdgeModule(read, num_classes, settings.edge_width)

    def published_state_dict(self) -> dict[str, Tensor]:
        """The state dict on the CPU with the names of the official files: the backbone's without a prefix."""
        return {published_name(name): value.detach().cpu() for name, value in self.state_dict().items()}

    def aliases(self) -> Aliases:
        """Published name of every part of the backbone -> its name here."""
        return tuple((name, _BODY + name) for name, _ in self.body.named_children())

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W), ImageNet-normalized -> the maps of TAPS and the last one, by official name."""
        if isinstance(self.body, WideResNet38):
            last, found = self.body(x, tuple(tap for tap, _ in TAPS.values()))
            return {**{name: found[tap] for name, (tap, _) in TAPS.items()}, LAST: last}
        names = {layer: name for name, (_, layer) in TAPS.items()}
        maps: dict[str, Tensor] = {}
        for index, layer in enumerate(self.body.features):
            x = layer(x)
            if index in names:
                maps[names[index]] = x
        return {**maps, LAST: x}

    def refine(self, cam: Tensor, x: Tensor, features: dict[str, Tensor]) -> Tensor:
        """Class maps (N, C, h, w) -> what the pixel correlation module makes of them, of the same shape.

        Gradients reach its own layers alone.
        """
        small = resized(x, cam.shape[2:])
        parts = [resized(F.relu(layer(features[name].detach())), cam.shape[2:]) for layer, name in self._correlated()]
        return propagated(correlation_input(cam), self.f9(torch.cat([small, *parts], dim=1)))

    def _correlated(self) -> tuple[tuple[nn.Module, str], ...]:
        return (self.f8_3, "conv4"), (self.f8_4, "conv5")

    def edges(self, canny: Tensor, features: dict[str, Tensor]) -> Tensor:
        """Boundary logits (N, C, H, W) at the size of the map `canny` (N, 1, H, W)."""
        assert self.edge_layer is not None
        semantic = self.edge_layer(*(features[name] for name in ("conv1", "conv3", "conv5", "conv6")))
        return self.fused(resized(semantic, canny.shape[2:]), canny)

    def fused(self, semantic: Tensor, canny: Tensor) -> Tensor:
        """`fuse_canny_edge` of the logits (N, C, H, W) and of `canny` (N, 1, H, W), repeated for each class."""
        own, repeated = self.fuse_canny_edge.weight.chunk(2, dim=1)
        # The repeated map is one channel times the sum of the weights.
        return F.conv2d(torch.cat([semantic, canny], dim=1), torch.cat([own, repeated.sum(dim=1, keepdim=True)], dim=1))

    def forward(self, x: Tensor, canny: Tensor | None = None) -> Maps:
        """Images (N, 3, H, W), ImageNet-normalized -> maps at their size.

        canny: (N, 1, H, W) of `canny_edges`; None leaves the boundary branch out.
        """
        features = self.features(x)
        cam = self.fc8(self.dropout7(features[LAST]))
        refined = self.refine(cam.detach(), x, features) if self.correlation else None
        return Maps(
            cam=resized(cam, x.shape[2:]),
            refined=None if refined is None else resized(refined, x.shape[2:]),
            boundary=None if canny is None or self.edge_layer is None else self.edges(canny, features),
        )

    @torch.no_grad()
    def infer(self, pair: Tensor) -> Tensor:
        """Class maps of an image and its mirror, added: (2, 3, H, W) -> (classes without background, H, W), >= 0.

        Without the correlation module the maps are those of the classifier, rectified as in PSA.
        """
        features = self.features(pair)
        cam = self.fc8(features[LAST])
        maps = self.refine(cam, pair, features) if self.correlation else F.relu(cam)
        added = maps[:1, 1:] + maps[1:, 1:].flip(-1)
        return resized(added, pair.shape[2:])[0]


def build_cam_network(settings: CamSettings, num_classes: int) -> CamNetwork:
    """The network with random weights; `num_classes` counts the background."""
    return CamNetwork(settings, num_classes)


def published_name(name: str) -> str:
    """Name in the official file of a parameter of `CamNetwork`."""
    return name.removeprefix(_BODY)


def precise(maps: Tensor) -> Tensor:
    """In float32, or float64 where it is that already."""
    return maps.to(torch.promote_types(maps.dtype, torch.float32))


def resized(maps: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Bilinear with aligned corners; as it is where the size is that one already."""
    if maps.shape[2:] == size:
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=True)


def kept_maximum(maps: Tensor) -> Tensor:
    """At each position the largest foreground value stays and smaller ones become 0; the background stays too.

    (N, C, h, w), the background first. Values that tie for the largest stay all.
    """
    foreground = maps[:, 1:]
    largest = foreground.amax(dim=1, keepdim=True)
    return torch.cat([maps[:, :1], torch.where(foreground < largest, 0.0, foreground)], dim=1)


@torch.no_grad()
def correlation_input(cam: Tensor) -> Tensor:
    """Class maps (N, C, h, w) -> scores in [0, 1) that the correlation spreads: one class at a position, background."""
    rectified = F.relu(cam)
    largest = rectified.amax(dim=(2, 3), keepdim=True) + _EPSILON
    foreground = F.relu(rectified[:, 1:] - _EPSILON) / largest[:, 1:]
    return kept_maximum(torch.cat([1 - foreground.amax(dim=1, keepdim=True), foreground], dim=1))


def propagated(scores: Tensor, features: Tensor) -> Tensor:
    """Each position's mean of all scores, weighted by the similarity of the features (the pixel correlation module).

    scores: (N, C, h, w). features: (N, F, h, w). The weight is the cosine where it is positive. In float32 at least.
    Returns (N, C, h, w).
    """
    with torch.autocast(features.device.type, enabled=False):
        flat = precise(features).flatten(2)
        unit = flat / (flat.norm(dim=1, keepdim=True) + _EPSILON)
        spread, parts = scores.to(unit.dtype).flatten(2), []
        for columns in unit.split(_COLUMNS, dim=2):
            similarity = F.relu(unit.transpose(1, 2) @ columns)
            parts.append(spread @ similarity / (similarity.sum(dim=1, keepdim=True) + _EPSILON))
        return torch.cat(parts, dim=2).reshape(scores.shape)


@torch.no_grad()
def canny_edges(images: Tensor, settings: CamSettings) -> Tensor:
    """Canny edges of ImageNet-normalized images (N, 3, H, W): (N, 1, H, W), 0 or 255, as the network is fed them.

    "wrapped" casts the normalized values to 8 bits: they are truncated and wrapped modulo 256, as the official program
    has it on x86-64. What is left of the picture is the sign of each channel.
    """
    if settings.canny_input == "none":
        return images.new_zeros((len(images), 1, *images.shape[2:]))
    values = images.float().cpu().permute(0, 2, 3, 1).numpy()
    if settings.canny_input == "rgb":
        mean, std = (np.asarray(numbers, dtype=np.float32) for numbers in (IMAGENET_MEAN, IMAGENET_STD))
        pixels = (255 * (values * std + mean)).round().clip(0, 255)
    else:
        pixels = values.astype(np.int32)
    found = [cv2.Canny(image, settings.canny_low, settings.canny_high) for image in pixels.astype(np.uint8)]
    return torch.from_numpy(np.stack(found)[:, None]).to(images)
