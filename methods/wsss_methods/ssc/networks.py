"""Networks: classifier with class maps, reconstruction decoder, and the segmentation networks by architecture."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import Tensor, nn

from wsss.nn.backbone import Backbone, scaled_channels
from wsss.nn.backbones import Normalization, SegmentationBackbone, backbone_name, build_backbone
from wsss.nn.checkpoint import Aliases
from wsss.nn.deeplabv2 import DeepLabV2
from wsss.nn.deeplabv3plus import RESNET101_D, DeepLabV3Plus
from wsss.nn.mobilenet import MobileNetV2
from wsss.nn.resnet import ResNet
from wsss.nn.segformer import MIT_B2_WIDTHS, SegFormer
from wsss.nn.suppression import DiscriminativeRegionSuppression
from wsss_methods.ssc.recipe import SegmentationSettings

CAM_ALIASES: Aliases = (
    *((f"{stage}.0", "resnet50.conv1") for stage in ("stage1", "backbone.0")),
    *((f"{stage}.1", "resnet50.bn1") for stage in ("stage1", "backbone.0")),
    *((f"{stage}.4", "resnet50.layer1") for stage in ("stage1", "backbone.0")),
    *((f"stage{number}.0", f"resnet50.layer{number}") for number in range(2, 5)),
    *((f"backbone.{number - 1}.0", f"resnet50.layer{number}") for number in range(2, 5)),
    ("newly_added.0", "classifier"),
)


@dataclass
class CamStages:
    """Outputs of the training forward; `stage2` is before the suppression and the gradient stop."""

    stage2: Tensor
    stage2_suppressed: Tensor
    stage3: Tensor
    stage4: Tensor
    maps: Tensor


class CamNetwork(nn.Module):
    """Classifier whose class maps are trained and read as class activation maps.

    Args:
        backbone, width, normalization, depths: see `build_backbone`.
        drs_delta: bound of the discriminative region suppression in the last stage; 1 turns it off.
        drs_after_stage2: also suppress after `layer2`, in the training forward only.
        gradient_stop: no gradient before `layer3`; everything before it stays as loaded.
        num_classes: classes without the background.
    """

    def __init__(
        self,
        backbone: str = "resnet50",
        width: float = 1.0,
        *,
        num_classes: int = 20,
        normalization: Normalization = "frozen",
        drs_delta: float = 0.55,
        drs_after_stage2: bool = True,
        gradient_stop: bool = True,
        depths: tuple[int, int, int, int] | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.gradient_stop = gradient_stop
        self.backbone_name = backbone_name(backbone)
        body = build_backbone(backbone, width, normalization, drs_delta, depths)
        self.add_module(self.backbone_name, cast(nn.Module, body))
        self.classifier = nn.Conv2d(body.channels[-1], num_classes, 1, bias=False)
        self.stage2_suppression = DiscriminativeRegionSuppression(drs_delta) if drs_after_stage2 else nn.Identity()
        if gradient_stop:
            for parameter in self._frozen_parameters():
                parameter.requires_grad_(False)

    @property
    def body(self) -> Backbone:
        """The backbone."""
        return cast(Backbone, self.get_submodule(self.backbone_name))

    def _frozen_parameters(self) -> list[nn.Parameter]:
        """Parameters of the stages before the gradient stop."""
        body = self.body
        if isinstance(body, MobileNetV2):
            later = {id(parameter) for parameter in body.features[7:].parameters()}
        else:
            assert isinstance(body, ResNet)
            later = {id(p) for number in (3, 4) for p in body.get_submodule(f"layer{number}").parameters()}
        return [p for p in cast(nn.Module, body).parameters() if id(p) not in later]

    def aliases(self) -> Aliases:
        """Further names of the tensors in the published file."""
        return CAM_ALIASES if self.backbone_name == "resnet50" else ()

    def backbone_parameters(self) -> list[nn.Parameter]:
        """Trained parameters of the backbone."""
        return [p for p in cast(nn.Module, self.body).parameters() if p.requires_grad]

    def classifier_parameters(self) -> list[nn.Parameter]:
        """Parameters of the classifier."""
        return list(self.classifier.parameters())

    def stages(self, x: Tensor) -> CamStages:
        """Training forward with its intermediate outputs; see `forward`."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.gradient_stop):
            stage2 = x
            for index in range(3):
                stage2 = self.body.stage(index, stage2)
        suppressed = self.stage2_suppression(stage2)
        stage3 = self.body.stage(3, suppressed)
        stage4 = self.body.stage(4, stage3)
        return CamStages(stage2, suppressed, stage3, stage4, self.classifier(stage4))

    def forward(self, x: Tensor) -> Tensor:
        """Class maps for training: normalized images (N, 3, H, W) -> (N, classes, ceil(H/16), ceil(W/16)).

        Values may be negative. `class_scores` turns them into classification scores.
        """
        return self.stages(x).maps

    @torch.no_grad()
    def infer(self, pair: Tensor) -> Tensor:
        """Class maps of an image and its mirror, added: (2, 3, H, W) -> (classes, ceil(H/16), ceil(W/16)), >= 0.

        Without the suppression after `layer2`. The network should be in evaluation mode.
        """
        x = pair
        for index in range(5):
            x = self.body.stage(index, x)
        maps = torch.relu(self.classifier(x))
        return maps[0] + maps[1].flip(-1)


def class_scores(maps: Tensor) -> Tensor:
    """Classification scores: spatial mean of the class maps, (N, C, h, w) -> (N, C)."""
    return maps.mean(dim=(2, 3))


class SampleNorm(nn.Module):
    """Normalization over all of C, H, W of a sample, with a scale and a shift for each channel.

    The unbiased standard deviation is used and the epsilon added to it (not to the variance). The scale starts
    uniform in [0, 1). (N, C, H, W) -> the same shape.
    """

    def __init__(self, channels: int, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.gamma = nn.Parameter(torch.rand(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        mean = flat.mean(dim=1)[:, None, None, None]
        deviation = flat.std(dim=1)[:, None, None, None]
        normalized = (x - mean) / (deviation + self.epsilon)
        return self.gamma[None, :, None, None] * normalized + self.beta[None, :, None, None]


class _Block(nn.Module):
    """Padding, 3x3 convolution, `SampleNorm`, and ReLU unless `relu` is false."""

    def __init__(
        self, in_channels: int, out_channels: int, *, reflect: bool = False, bias: bool = True, relu: bool = True
    ) -> None:
        super().__init__()
        self.norm = SampleNorm(out_channels)
        padding_mode = "reflect" if reflect else "zeros"
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias, padding_mode=padding_mode)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.conv(x))
        return torch.relu(out) if self.relu else out


class _Residual(nn.Module):
    """Two blocks around a shortcut, no ReLU after the second nor after the sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.model = nn.Sequential(_Block(channels, channels), _Block(channels, channels, relu=False))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.model(x)


def _upsample(channels: int, out_channels: int, *further: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1, bias=False),
        nn.InstanceNorm2d(channels),
        nn.ReLU(inplace=True),
        _Block(channels, out_channels),
        *further,
    )


class ReconstructionDecoder(nn.Module):
    """Rebuilds the image from the class maps alone: (N, classes, h, w) -> (N, 3, 16 h, 16 w) in (-1, 1).

    width: factor on the channels, 1 is the published decoder.
    """

    def __init__(self, num_classes: int = 20, width: float = 1.0) -> None:
        super().__init__()
        c256, c128, c64, c32 = (scaled_channels(channels, width) for channels in (256, 128, 64, 32))
        self.upsample_1 = _upsample(c256, c256)
        self.upsample_2 = _upsample(c256, c128)
        self.upsample_3 = _upsample(c128, c64)
        self.upsample_4 = _upsample(c64, c32, nn.Conv2d(c32, 3, 3, padding=1))
        first = _Block(num_classes, c256, reflect=True, bias=False)
        # The official decoder wraps its one residual twice.
        self.main = nn.Sequential(first, nn.Sequential(OrderedDict(model=nn.Sequential(_Residual(c256)))))

    def forward(self, maps: Tensor) -> Tensor:
        x = self.main(maps)
        x = self.upsample_2(self.upsample_1(x))
        return torch.tanh(self.upsample_4(self.upsample_3(x)))


# The two co-trained networks, by their names in the official checkpoint.
NETWORKS = ("network1", "network2")

_DEEPLABV2 = {
    "deeplabv2_r101": "resnet101",
    "deeplabv2_r18": "resnet18",
    "deeplabv2_mobilenet_v2": "mobilenet_v2",
}


def build_segmentation_network(settings: SegmentationSettings, num_classes: int) -> nn.Module:
    """One network with random weights: (N, 3, H, W) -> (pre_logits, logits (N, num_classes, H, W))."""
    width = settings.width
    if settings.architecture == "deeplabv3plus_r101":
        return DeepLabV3Plus(num_classes, replace(RESNET101_D, width=width))
    if settings.architecture == "segformer_b2":
        # A stage's width stays a multiple of 8 for each of its attention heads.
        heads = (1, 2, 5, 8)
        pairs = zip(MIT_B2_WIDTHS, heads, strict=True)
        widths = [max(1, round(full * width / (8 * count))) * 8 * count for full, count in pairs]
        return SegFormer(num_classes, widths=widths)
    # The small one is for CPUs, where output stride 8 would cost four times as much.
    stride: Literal[8, 16] = 16 if settings.architecture == "deeplabv2_mobilenet_v2" else 8
    backbone = SegmentationBackbone(_DEEPLABV2[settings.architecture], output_stride=stride, width=width)
    return DeepLabV2(num_classes, backbone)
