"""Losses of the CAM stage as (sum, count) pairs, so that the parts of a split batch combine exactly.

The loss of a batch is the sum over its parts divided by the count over its parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsss.nn.checkpoint import load_imagenet_body, load_weights, read_checkpoint
from wsss.nn.mobilenet import MobileNetV2
from wsss.nn.norms import FrozenStatisticsBatchNorm2d
from wsss.nn.vgg import Vgg19Slices, slices_from_torchvision
from wsss.ops.superpixel_mean import superpixel_mean

Features = Callable[[Tensor], Sequence[Tensor]]

LAYER_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)
_EPSILON = 1e-5


def ratio(loss: tuple[Tensor, Tensor]) -> Tensor:
    """The loss of a (sum, count) pair."""
    return loss[0] / loss[1]


def classification_loss(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Multi-label soft margin loss: scores and multi-hot labels (N, C) -> sum over all, count N * C."""
    total = functional.binary_cross_entropy_with_logits(scores, labels, reduction="sum")
    return total, total.new_tensor(float(scores.numel()))


def perceptual_levels(features: Features, reconstruction: Tensor, image: Tensor) -> list[Tensor]:
    """Mean absolute feature difference of every image at every level: one tensor (N,) for each level.

    The image's features are constants; the gradient runs into the reconstruction.
    """
    with torch.no_grad():
        targets = features(image)
    return [
        (own - target.detach()).abs().flatten(1).mean(dim=1)
        for own, target in zip(features(reconstruction), targets, strict=True)
    ]


def perceptual_loss(
    features: Features,
    reconstruction: Tensor,
    image: Tensor,
    layer_weights: Sequence[float] = LAYER_WEIGHTS,
    rescale_reconstruction: bool = False,
) -> tuple[Tensor, Tensor]:
    """Weighted feature distance between a reconstruction and its image ("CAM-driven reconstruction").

    Args:
        features: five feature levels of (N, 3, H, W), fine to coarse, without trained parameters.
        reconstruction: (N, 3, H, W) in (-1, 1).
        image: ImageNet-normalized (N, 3, H, W), both compared as they are in the published program.
        layer_weights: weight of each level.
        rescale_reconstruction: bring (-1, 1) to the normalized range of the image first.

    Returns:
        Sum over the images, and their number.
    """
    if rescale_reconstruction:
        mean = reconstruction.new_tensor((0.485, 0.456, 0.406))[None, :, None, None]
        std = reconstruction.new_tensor((0.229, 0.224, 0.225))[None, :, None, None]
        reconstruction = ((reconstruction + 1) / 2 - mean) / std
    levels = perceptual_levels(features, reconstruction, image)
    per_image = torch.stack([weight * level for weight, level in zip(layer_weights, levels, strict=True)])
    return per_image.sum(), per_image.new_tensor(float(image.shape[0]))


class MobileNetFeatures(nn.Module):
    """Five levels of a frozen MobileNetV2 at strides 2, 4, 8, 16, 32: a small stand-in for VGG-19."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        self.network = MobileNetV2(width, output_stride=32, norm_layer=FrozenStatisticsBatchNorm2d)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = []
        for start, end in ((0, 2), (2, 4), (4, 7), (7, 14), (14, 19)):
            x = self.network.features[start:end](x)
            outputs.append(x)
        return outputs


def pixel_pyramid(x: Tensor) -> list[Tensor]:
    """Five levels without weights: the image averaged over squares of 1, 2, 4, 8 and 16 pixels."""
    return [x, *(functional.avg_pool2d(x, size) for size in (2, 4, 8, 16))]


def build_perceptual_features(kind: str, weights: Path | None, device: str) -> Features:
    """Frozen features in which a reconstruction is compared with its image.

    Normalized images (N, 3, H, W) -> five maps, fine to coarse. Published is VGG-19; the other two are for machines
    without its weights.

    Args:
        kind: "vgg19", "mobilenet_v2" or "pixel_pyramid".
        weights: torchvision's ImageNet file; None leaves random weights. Not used by "pixel_pyramid".

    Raises CheckpointError when the file does not fit.
    """
    if kind == "pixel_pyramid":
        return pixel_pyramid
    network = Vgg19Slices() if kind == "vgg19" else MobileNetFeatures()
    if weights is not None and isinstance(network, Vgg19Slices):
        load_weights(network, slices_from_torchvision(read_checkpoint(weights)), where=str(weights))
    elif weights is not None:
        load_imagenet_body(network.get_submodule("network"), weights)
    return network.to(device).eval()


@dataclass(frozen=True)
class AlignmentSettings:
    """Self-modulation constraint.

    downscale: size of maps and superpixels in the constraint, of the input.
    threshold: activation above which a region counts as reliable.
    erosion_kernel: side of the square by which the reliable region is eroded; 0: not at all.
    """

    downscale: float = 0.5
    threshold: float = 0.3
    erosion_kernel: int = 8


def alignment_size(size: tuple[int, int], settings: AlignmentSettings) -> tuple[int, int]:
    """Size of the constraint's maps for superpixels of `size`."""
    return max(1, int(size[0] * settings.downscale)), max(1, int(size[1] * settings.downscale))


def alignment_terms(
    maps: Tensor, labels: Tensor, superpixels: Tensor, settings: AlignmentSettings = AlignmentSettings()
) -> tuple[Tensor, Tensor]:
    """Activations and their targets for every present (image, class) pair, in row-major order.

    Args:
        maps: raw class maps (N, C, h, w), negative values included.
        labels: multi-hot (N, C).
        superpixels: integer ids (N, H, W).

    Returns:
        Activations (pairs, H', W'), differentiable, and targets of the same shape without gradient. The target is
        the larger of the superpixel mean and, where the activation is reliable, the activation itself.
    """
    size = alignment_size((superpixels.shape[1], superpixels.shape[2]), settings)
    images, classes = torch.nonzero(labels > 0, as_tuple=True)
    present = maps[images, classes][:, None].float()
    raw = functional.interpolate(present, size, mode="bilinear", align_corners=False)[:, 0]
    activation = _activation(raw)
    with torch.no_grad():
        ids = _nearest(superpixels, size)[images]
        mean = _activation(superpixel_mean(raw, ids))
        reliable = eroded(activation > settings.threshold, settings.erosion_kernel)
        target = torch.maximum(mean, activation * reliable)
    return activation, target


def alignment_loss(
    maps: Tensor, labels: Tensor, superpixels: Tensor, settings: AlignmentSettings = AlignmentSettings()
) -> tuple[Tensor, Tensor]:
    """Squared distance of activations and targets ("activation self-modulation"), and the number of positions.

    Arguments as in `alignment_terms`; without any present pair the sum is 0 and the count 0.
    """
    activation, target = alignment_terms(maps, labels, superpixels, settings)
    total = (activation - target).square().sum() if len(activation) else maps.sum() * 0.0
    return total, alignment_count(labels, (superpixels.shape[1], superpixels.shape[2]), settings)


def alignment_count(labels: Tensor, size: tuple[int, int], settings: AlignmentSettings) -> Tensor:
    """Positions of all present (image, class) pairs: what `alignment_loss` divides by, from the batch alone."""
    height, width = alignment_size(size, settings)
    return (labels > 0).sum().float() * (height * width)


def eroded(region: Tensor, kernel: int) -> Tensor:
    """Positions all of whose offsets -(kernel // 2) .. kernel - 1 - kernel // 2 lie in the region.

    Outside the map counts as inside. bool (n, h, w) -> bool (n, h, w).
    """
    if kernel <= 1:
        return region
    before, after = kernel // 2, kernel - 1 - kernel // 2
    outside = functional.pad((~region).float()[:, None], (before, after, before, after))
    return functional.max_pool2d(outside, kernel, stride=1)[:, 0] == 0


def _activation(raw: Tensor) -> Tensor:
    positive = torch.relu(raw)
    return positive / (positive.amax(dim=(1, 2), keepdim=True) + _EPSILON)


def _nearest(ids: Tensor, size: tuple[int, int]) -> Tensor:
    rows, columns = (
        torch.div(torch.arange(target, device=ids.device) * source, target, rounding_mode="floor")
        for source, target in zip(ids.shape[1:], size, strict=True)
    )
    return ids[:, rows][:, :, columns]
