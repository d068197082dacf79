"""The losses of SBNet's CAM training: SEAM's, the boundary loss and the smoothness loss (`train_SB.py`).

Class maps have the background first. Each loss is the sum over the batch of a value of each image, so that it is
divided by the number of images, however many workers hold them. `present` (N, C) is 1 for the background and for the
classes of an image, else 0; what an image does not hold adds nothing and is left out of the work.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_methods.sbnet.networks import Maps, kept_maximum, resized
from wsss_methods.sbnet.recipe import CamSettings

_EPSILON = 1e-5
_SOFTENING = 1e-3
_SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))
_LAPLACIAN = ((-1.0, -1.0, -1.0), (-1.0, 8.0, -1.0), (-1.0, -1.0, -1.0))


def classification_loss(cam: Tensor, label: Tensor) -> Tensor:
    """Binary cross entropy of the mean over positions: cam (N, C, h, w) logits, label (N, C - 1). Mean over classes."""
    scores = cam[:, 1:].mean(dim=(2, 3))
    return F.binary_cross_entropy_with_logits(scores, label, reduction="none").mean(dim=1).sum()


def min_pooling_loss(refined: Tensor, label: Tensor, ratio: float = 0.25) -> Tensor:
    """Mean of the smallest values of the largest class: refined (N, C, h, w), label (N, C - 1).

    ratio: share of the positions that counts. What the correlation spreads everywhere is pushed down.
    """
    largest = (refined[:, 1:] * label[:, :, None, None]).amax(dim=1).flatten(1)
    count = max(1, int(largest.shape[1] * ratio))
    return F.relu(largest.topk(count, largest=False).values).sum() / count


def normalized(maps: Tensor) -> Tensor:
    """Each map of (..., h, w), rectified, brought to the range from 0 to just below 1."""
    maps = F.relu(maps)
    least, largest = maps.amin(dim=(-2, -1), keepdim=True), maps.amax(dim=(-2, -1), keepdim=True)
    return F.relu(maps - least - _EPSILON) / (largest - least + _EPSILON)


def aligned(maps: Tensor, present: Tensor, size: torch.Size) -> Tensor:
    """`normalized` maps of the present classes at another size: (N, C, h, w) -> (N, C, *size), 0 for other classes."""
    images, channels = present.nonzero(as_tuple=True)
    kept = resized(normalized(maps[images, channels])[:, None], size)
    result = maps.new_zeros((*maps.shape[:2], *size))
    result[images, channels] = kept[:, 0]
    return result


def cross_equivariance_loss(cam: Tensor, refined: Tensor, ratio: float = 0.2) -> Tensor:
    """Mean of the largest differences of the refined maps of one image from the fixed CAM of the other.

    Both (N, C, h, w) of `aligned`; the background of the CAM is what its classes leave. ratio: share of the values.
    """
    with torch.no_grad():
        target = kept_maximum(torch.cat([1 - cam[:, 1:].amax(dim=1, keepdim=True), cam[:, 1:]], dim=1))
    difference = (target - refined).abs().flatten(1)
    count = max(1, int(difference.shape[1] * ratio))
    return difference.topk(count).values.sum() / count


def boundary_loss(boundary: Tensor, target: Tensor, present: Tensor) -> Tensor:
    """Binary cross entropy of boundaries: logits and target in [0, 1], both (N, C, h, w). Mean over classes, positions.

    Of the probabilities, with logarithms of at least -100: the logits saturate where a Canny edge lies, and there
    neither value nor gradient is that of the usual form.
    """
    entropy = F.binary_cross_entropy(boundary.sigmoid(), target * present[:, :, None, None], reduction="sum")
    return entropy / target[0].numel()


def charbonnier(x: Tensor) -> Tensor:
    """The absolute value, smooth at 0."""
    return (x.square() + _SOFTENING**2).sqrt()


def differences(maps: Tensor) -> Tensor:
    """Sobel differences along x and y, and the Laplacian: (M, h, w) -> (M, 3, h, w). Beyond the border is 0."""
    sobel = torch.tensor(_SOBEL, dtype=maps.dtype, device=maps.device)
    laplacian = torch.tensor(_LAPLACIAN, dtype=maps.dtype, device=maps.device)
    return F.conv2d(maps[:, None], torch.stack([sobel, sobel.T, laplacian])[:, None], padding=1)


def smoothness_loss(cam: Tensor, boundary: Tensor, present: Tensor, settings: CamSettings) -> Tensor:
    """Differences of the probabilities where there is no boundary: logits and map in [0, 1], both (N, C, h, w).

    Mean over all classes and positions; classes that are not present count as 0.
    """
    images, channels = present.nonzero(as_tuple=True)
    gate = torch.exp(-settings.smoothness_alpha * boundary[images, channels])
    along_x, along_y, second = charbonnier(differences(cam[images, channels].sigmoid()) * gate[:, None]).unbind(dim=1)
    first_order = settings.smoothness_first_order_weight * (along_x + along_y).sum()
    return (first_order + settings.smoothness_second_order_weight * second.sum()) / cam[0].numel()


def cam_losses(
    views: list[Maps], boundaries: list[Tensor] | None, label: Tensor, settings: CamSettings
) -> dict[str, Tensor]:
    """The losses of a step by name, before their weights; those of weight 0 are left out.

    Args:
        views: maps of the images and, in siamese training, of the smaller images.
        boundaries: boundary map of each view, (N, C, h, w) in [0, 1]; None where no loss reads it.
        label: (N, classes without background), 0 or 1.
    """
    present = torch.cat([torch.ones_like(label[:, :1]), label], dim=1)

    def mean(losses: list[Tensor]) -> Tensor:
        return torch.stack(losses).mean(dim=0)

    found = {"classification": mean([classification_loss(view.cam, label) for view in views])}
    refined = [view.refined for view in views if view.refined is not None]
    if settings.rvmin_loss_weight:
        found["min_pooling"] = mean([min_pooling_loss(maps, label, settings.rvmin_ratio) for maps in refined])
    if settings.siamese:
        size = views[1].cam.shape[2:]
        first, second = (aligned(view.cam, present, size) for view in views)
        if settings.er_loss_weight:
            found["equivariance"] = (first - second)[:, 1:].abs().mean(dim=(1, 2, 3)).sum()
        if settings.ecr_loss_weight:
            own, smaller = (aligned(maps, present, size) for maps in refined)
            # A sum, not a mean: each of the two is compared with the CAM of the other.
            found["cross_equivariance"] = cross_equivariance_loss(
                second, own, settings.ecr_topk_ratio
            ) + cross_equivariance_loss(first, smaller, settings.ecr_topk_ratio)
    if boundaries is not None:
        pairs = list(zip(views, boundaries, strict=True))
        if settings.branch:
            found["boundary"] = mean(
                [boundary_loss(view.boundary, target, present) for view, target in pairs if view.boundary is not None]
            )
        if settings.smoothness_loss_weight:
            found["smoothness"] = mean([smoothness_loss(view.cam, target, present, settings) for view, target in pairs])
    return found


def loss_weights(settings: CamSettings) -> dict[str, float]:
    """Factor of each loss in the total."""
    return {
        "classification": 1.0,
        "min_pooling": settings.rvmin_loss_weight,
        "equivariance": settings.er_loss_weight,
        "cross_equivariance": settings.ecr_loss_weight,
        "boundary": settings.boundary_loss_weight,
        "smoothness": settings.smoothness_loss_weight,
    }
