"""DeepLabV2 with multi-scale inputs (MSC) on ResNet-101, in its two published forms, and on MobileNetV2.

Chen et al., "DeepLab: Semantic Image Segmentation with Deep Convolutional Nets, Atrous Convolution, and Fully
Connected CRFs", 2017, sections 3 and 4.1.2. "caffe": kazuto1011/deeplab-pytorch, a port of the Caffe model.
"torchvision": the same head on torchvision's ResNet, whose first blocks are not dilated. "mobilenet_v2": the same head
on a network that two processor cores can train.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.nn.checkpoint import load_imagenet_body, load_weights, read_checkpoint, state_dict_of
from wsss.nn.deeplabv2 import DilatedClassifiers
from wsss.nn.mobilenet import MobileNetV2
from wsss.nn.norms import FrozenStatisticsBatchNorm2d, GroupedBatchNorm2d
from wsss.nn.resnet import ResNet, resnet_structure

Form = Literal["caffe", "torchvision", "mobilenet_v2"]
# Output stride -> strides and dilations of a ResNet's four layers.
_RESNET_SHAPES = {8: ((1, 2, 1, 1), (1, 1, 2, 4)), 16: ((1, 2, 2, 1), (1, 1, 1, 2))}
# Dilations of the head at output stride 8.
_RATES = (6, 12, 18, 24)

# Own name of a layer inside a block -> its name in the Caffe port.
_CAFFE_LAYERS = {
    "conv1": "reduce.conv",
    "bn1": "reduce.bn",
    "conv2": "conv3x3.conv",
    "bn2": "conv3x3.bn",
    "conv3": "increase.conv",
    "bn3": "increase.bn",
    "downsample.0": "shortcut.conv",
    "downsample.1": "shortcut.bn",
}
_BLOCK = re.compile(r"base\.backbone\.layer(\d)\.(\d+)\.(downsample\.\d|\w+)\.(.*)")


@dataclass(frozen=True)
class DeepLabV2Structure:
    """Shape of the network.

    Attributes:
        form: "caffe" has the stride on the first 1x1 of a bottleneck, pools with incomplete windows and dilates the
            first blocks too; "torchvision" has neither, and its head's biases start as PyTorch draws them.
            "mobilenet_v2" is no ResNet and takes RGB inputs normalized as ImageNet's.
        freeze_norm: batch norms use their running statistics in training too.
        depth: of the ResNet: 18, 34, 50, 101 or 152; "mobilenet_v2" has none.
        width: factor on the channel counts of the backbone.
        scales: of the inputs beside the whole image.
        norm_group: images over which a norm that is not frozen takes its statistics; 0: the batch.
        output_stride: 8 or 16, of the backbone; at 16 the head's dilations are half, and reach as far.
    """

    form: Form = "caffe"
    freeze_norm: bool = True
    depth: int = 101
    width: float = 1.0
    scales: tuple[float, ...] = (0.5, 0.75)
    norm_group: int = 0
    output_stride: int = 8

    def norm(self, channels: int) -> nn.BatchNorm2d:
        """A norm of the backbone."""
        if self.freeze_norm:
            return FrozenStatisticsBatchNorm2d(channels)
        return GroupedBatchNorm2d(channels, self.norm_group) if self.norm_group else nn.BatchNorm2d(channels)


class _SingleScale(nn.Module):
    """(N, 3, H, W) -> (N, num_classes, ~H / output stride, ~W / output stride)."""

    def __init__(self, structure: DeepLabV2Structure, num_classes: int) -> None:
        super().__init__()
        caffe, stride = structure.form == "caffe", structure.output_stride
        if structure.form == "mobilenet_v2":
            self.backbone = MobileNetV2(structure.width, cast(Any, stride), dilated=True, norm_layer=structure.norm)
        else:
            strides, dilations = _RESNET_SHAPES[stride]
            shape = resnet_structure(
                structure.depth,
                width=structure.width,
                strides=strides,
                dilations=dilations,
                first_dilations=None if caffe else (1, 1, 1, 1),
                stride_on_reduce=caffe,
                ceil_pooling=caffe,
            )
            self.backbone = ResNet(shape, structure.norm)
        rates = [rate * 8 // stride for rate in _RATES]
        self.aspp = DilatedClassifiers(self.backbone.channels[-1], num_classes, rates)
        if structure.form == "torchvision":
            for name in self.aspp.names:
                classifier = getattr(self.aspp, name)
                bound = classifier.weight[0].numel() ** -0.5
                nn.init.uniform_(classifier.bias, -bound, bound)

    def forward(self, images: Tensor) -> Tensor:
        return self.aspp(self.backbone(images)[-1])


class DeepLabV2Msc(nn.Module):
    """In training the logits of every scale and their maximum, in evaluation the maximum alone.

    `forward(images)` takes (N, 3, H, W) float32 and gives (N, num_classes, h, w) each, h and w about H and W by the
    output stride: first the whole image, then `scales` in their order, last the pixelwise maximum at the size of the
    first.
    """

    def __init__(self, structure: DeepLabV2Structure, num_classes: int = 21) -> None:
        super().__init__()
        self.structure = structure
        self.base = _SingleScale(structure, num_classes)

    def forward(self, images: Tensor) -> list[Tensor] | Tensor:
        logits = [self.base(images)]
        for scale in self.structure.scales:
            # With the factor itself as the ratio of coordinates: at odd sizes that is not the ratio of the sizes.
            small = F.interpolate(images, scale_factor=scale, mode="bilinear", align_corners=False)
            logits.append(self.base(small))
        size = logits[0].shape[2:]
        maximum = logits[0]
        for other in logits[1:]:
            maximum = torch.maximum(maximum, F.interpolate(other, size=size, mode="bilinear", align_corners=False))
        return [*logits, maximum] if self.training else maximum

    def published_state_dict(self) -> dict[str, Tensor]:
        """The weights on the CPU by the names of the official checkpoints."""
        return {published_name(name, self.structure.form): value.cpu() for name, value in self.state_dict().items()}

    def load_published(self, state: Mapping[str, Any], where: str = "") -> None:
        """Load an official checkpoint; CheckpointError when it does not fit."""
        names = {published_name(name, self.structure.form): name for name in self.state_dict()}
        load_weights(self, state, rename=lambda name: names.get(name.removeprefix("module."), name), where=where)

    def load_backbone(self, path: Path) -> None:
        """Start the backbone from a file of torchvision (ImageNet); "caffe" also from the port without head (COCO).

        Raises CheckpointError when the file does not cover the backbone exactly; a classifier may be left over.
        """
        if self.structure.form == "mobilenet_v2":
            load_imagenet_body(self.base.backbone, path)
            return
        own = self.base.backbone.state_dict()
        names = {published_name(f"base.backbone.{name}", "caffe").removeprefix("base."): name for name in own}
        state = state_dict_of(read_checkpoint(path), where=str(path))
        load_weights(
            self.base.backbone,
            {name: value for name, value in state.items() if not re.match(r"(base\.)?(fc|aspp)\.", name)},
            rename=lambda name: names.get(name.removeprefix("base."), name),
            where=str(path),
        )


def published_name(name: str, form: Form) -> str:
    """Name of an entry of `DeepLabV2Msc`'s state dict in the official checkpoints of a form; its own without any."""
    if form == "mobilenet_v2":
        return name
    if form == "torchvision":
        name = name.replace("base.backbone.", "base.features.")
        return re.sub(r"base\.aspp\.c(\d)\.", r"base.classifier.conv2d_list.\1.", name)
    block = _BLOCK.fullmatch(name)
    if block is None:
        return re.sub(r"base\.backbone\.(conv|bn)1\.", r"base.layer1.conv1.\1.", name)
    layer, index, part, rest = block.groups()
    return f"base.layer{int(layer) + 1}.block{int(index) + 1}.{_CAFFE_LAYERS[part]}.{rest}"


def parameter_groups(
    network: DeepLabV2Msc, learning_rate: float, weight_decay: float, head_factor: float = 10.0
) -> list[dict[str, Any]]:
    """Groups of an optimizer.

    "caffe": convolutions of the backbone; weights of the head at `head_factor` times the rate; its biases at twice that
    without decay. Norms are in none and are set to need no gradient. "torchvision" and "mobilenet_v2": the backbone
    with its norms, and the head at `head_factor` times the rate; published is 1.
    """
    head = list(network.base.aspp.named_parameters())
    weights = [value for name, value in head if name.endswith("weight")]
    biases = [value for name, value in head if name.endswith("bias")]
    body, head_rate = list(network.base.backbone.parameters()), head_factor * learning_rate
    if network.structure.form != "caffe":
        rates = [(body, learning_rate, weight_decay), ([value for _, value in head], head_rate, weight_decay)]
    else:
        norms = [value for value in body if value.dim() == 1]
        for value in norms:
            value.requires_grad_(False)
        body = [value for value in body if value.dim() > 1]
        rates = [(body, learning_rate, weight_decay), (weights, head_rate, weight_decay), (biases, 2 * head_rate, 0.0)]
    return [{"params": values, "lr": rate, "weight_decay": decay} for values, rate, decay in rates]
