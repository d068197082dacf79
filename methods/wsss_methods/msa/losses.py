"""Losses of the classification network: image labels, and intra-patch prototype contrast (IPC).

IPC: a patch of superpixel colors (or of saliency) is described by one prototype for each class, the mean under that
class's CAM, and rebuilt from the prototypes; where the CAM is right, what comes back is what was there.
"""

from __future__ import annotations

from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.nn.norms import sum_over_workers
from wsss.ops.superpixel_affinity import pooled_to_superpixels

_EPSILON = 1e-5


def classification_loss(pooled: Tensor, labels: Tensor) -> Tensor:
    """Multi-label soft margin loss of each image, mean over classes without the background.

    pooled (N, C, 1, 1), labels (N, C - 1) in {0, 1} -> (N,).
    """
    scores = pooled[:, 1:].flatten(1)
    return F.binary_cross_entropy_with_logits(scores, labels.to(scores.dtype), reduction="none").mean(dim=1)


def normalized_cam(scores: Tensor) -> Tensor:
    """Each map of (N, C, h, w) in [0, 1]: relu(relu(s) - 1e-5) / (its maximum + 1e-5), differentiable throughout."""
    positive = scores.relu()
    return (positive - _EPSILON).relu() / (positive.amax(dim=(2, 3), keepdim=True) + _EPSILON)


def foreground_cam(scores: Tensor, labels: Tensor) -> Tensor:
    """Normalized maps of the classes of each image's label, the others 0: (N, C, h, w) -> (N, C - 1, h, w)."""
    return normalized_cam(scores[:, 1:]) * labels[:, :, None, None].to(scores.dtype)


def content_mask(image: Tensor, cell: int) -> Tensor:
    """1 for cells of a crop that hold a picture, 0 for padding: (N, 3, H, W) -> (N, 1, H / cell, W / cell).

    Looks at the first pixel of each cell: padding is 0 in every channel.
    """
    corner = image[:, :, ::cell, ::cell]
    return (corner.sum(dim=1, keepdim=True) != 0).to(image.dtype)


@torch.no_grad()
def contrast_target(image: Tensor, saliency: Tensor | None, association: Tensor | None, cell: int) -> Tensor:
    """What IPC reconstructs, (N, 3, h, w) of colors or (N, 2, h, w) of saliency and its complement; 0 where padded.

    Args:
        image: normalized, (N, 3, H, W).
        saliency: (N, H, W) in 0..255, or None for colors.
        association: (N, 9, H, W), over whose superpixels means are taken; None: colors are resized bilinearly,
            saliency to the nearest pixel.
    """
    source = image if saliency is None else saliency[:, None].to(image.dtype) / 255
    size = (image.shape[2] // cell, image.shape[3] // cell)
    if association is not None:
        target = pooled_to_superpixels(source, association, cell)
    elif saliency is None:
        target = F.interpolate(source, size, mode="bilinear", align_corners=False)
    else:
        target = F.interpolate(source, size, mode="nearest")
    if saliency is not None:
        target = torch.cat([target, 1 - target], dim=1)
    return target * content_mask(image, cell)


def tiled(maps: Tensor, patches: int) -> Tensor:
    """Cut (N, C, h, w) into n x n patches, n the square root rounded down -> (n * n * N, C, h // n, w // n).

    The first patch of every image comes first. Rows and columns beyond the patches are dropped.
    """
    side = isqrt(patches)
    height, width = maps.shape[2] // side, maps.shape[3] // side
    cut = maps[:, :, : side * height, : side * width].unflatten(3, (side, width)).unflatten(2, (side, height))
    return cut.permute(2, 4, 0, 1, 3, 5).flatten(0, 2)


def prototypes(features: Tensor, probabilities: Tensor) -> Tensor:
    """Mean feature under each probability map: (N, F, h, w), (N, C, h, w) -> (N, F, C)."""
    weights = probabilities.flatten(2)
    return features.flatten(2) @ (weights / (weights.sum(dim=2, keepdim=True) + _EPSILON)).transpose(1, 2)


def reconstruction(found: Tensor, probabilities: Tensor) -> Tensor:
    """Every position from the prototypes of its classes: (N, F, C), (N, C, h, w) -> (N, F, h, w)."""
    return (found @ probabilities.flatten(2)).unflatten(2, probabilities.shape[2:])


def contrast_loss(foreground: Tensor, target: Tensor, ignore_threshold: float) -> tuple[Tensor, Tensor]:
    """Squared error of the reconstruction over the positions that take part, as this worker's share of a sum.

    The denominator counts positions of the whole batch, and where no patch of the whole batch is kept all of them
    are: with several workers both are formed over all of them, and the shares add up to the loss of the batch.

    Args:
        foreground: CAM of the patches, (b, C - 1, h, w) in [0, 1].
        target: (b, F, h, w), 0 where nothing is known.

    Returns:
        The share of the loss, and how many patches have both background and class.
    """
    known = (target.sum(dim=1, keepdim=True) != 0).to(foreground.dtype)
    # `max`, not `amax`: of equal maps the first takes the whole gradient, as published.
    background = 1 - foreground.max(dim=1, keepdim=True).values
    certain = background.detach() * known
    keep = ((1 - certain).amax(dim=(1, 2, 3)) > ignore_threshold) & (certain.amax(dim=(1, 2, 3)) > ignore_threshold)
    kept = known * keep[:, None, None, None]
    of_kept, of_all = sum_over_workers(torch.stack([kept.sum(), known.sum()]))
    part, count = torch.where(of_kept > 0, kept, known), torch.where(of_kept > 0, of_kept, of_all)
    probabilities = torch.cat([background, foreground], dim=1) * part
    direction = F.normalize(target, dim=1) * part
    rebuilt = reconstruction(prototypes(direction, probabilities), probabilities)
    return ((rebuilt - direction).square() * part).sum() / (count + 1e-3), keep.sum()
