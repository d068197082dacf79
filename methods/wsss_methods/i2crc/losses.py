"""Losses of the classifier as sums over the batch, so that the parts of a split batch combine exactly."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

_EPSILON = 1e-5


@dataclass(frozen=True)
class RelationSums:
    """Sums over images and classes; their mean is the loss. Without an image they are 0.

    Attributes:
        intra_object, intra_background: squared distances of the class maps to the prototype of their region: L_cad_ob
            and L_cad_bg, which run over all classes.
        inter: prototype of the background minus that of the object, in the image's class: L_csd, without a bound.
    """

    intra_object: Tensor
    intra_background: Tensor
    inter: Tensor


def classification_loss(maps: Tensor, labels: Tensor) -> Tensor:
    """Multi-label soft margin loss of the maps' spatial means, summed: maps (N, C, h, w), multi-hot labels (N, C)."""
    scores = maps.mean(dim=(2, 3))
    return F.binary_cross_entropy_with_logits(scores, labels.to(scores.dtype), reduction="sum")


def of_one_class(labels: Tensor) -> Tensor:
    """Which images have exactly one class, bool (N,): multi-hot labels (N, C)."""
    return labels.sum(dim=1) == 1


def relation_losses(maps: Tensor, saliency: Tensor, labels: Tensor) -> RelationSums:
    """Inter- and intra-class relation losses of the images with one class, summed, as the official `classification/`.

    Nothing is detached, and the maps may be negative. A soft mask enters the squared distances squared, but their
    denominator as it is.

    Args:
        maps: class maps (N, C, h, w).
        saliency: (N, H, W) in [0, 1]; the maps are resized to it bilinearly.
        labels: multi-hot (N, C).
    """
    chosen = of_one_class(labels)
    if not chosen.any():
        zero = maps.new_zeros(())
        return RelationSums(zero, zero, zero)
    large = F.interpolate(maps[chosen], size=saliency.shape[1:], mode="bilinear", align_corners=False).flatten(2)
    saliency = saliency[chosen].to(large.dtype).flatten(1)
    salient, rest = prototypes(large, saliency), prototypes(large, 1 - saliency)
    return RelationSums(
        squared_distances(large, salient, saliency).sum(),
        squared_distances(large, rest, 1 - saliency).sum(),
        ((rest - salient) * labels[chosen]).sum(),
    )


def prototypes(maps: Tensor, mask: Tensor) -> Tensor:
    """Mean of each map under a soft mask: maps (N, C, P), mask (N, P) -> (N, C)."""
    return (maps @ mask[:, :, None])[..., 0] / (mask.sum(dim=1, keepdim=True) + _EPSILON)


def squared_distances(maps: Tensor, prototype: Tensor, mask: Tensor) -> Tensor:
    """Squared distance of each map to its prototype (N, C) under a soft mask, (N, C); shapes as of `prototypes`."""
    distance = (maps - prototype[:, :, None]) * mask[:, None]
    return distance.square().sum(dim=2) / (mask.sum(dim=1, keepdim=True) + _EPSILON)
