"""Pixel-adaptive mask refinement (Araslanov and Roth, "Single-Stage Semantic Segmentation from Image Labels", 2020).

A mask is replaced, again and again, by the mean of its neighbours weighted by how alike their colours are. The
neighbours lie at several dilations, so a few iterations reach far.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

DILATIONS = (1, 2, 4, 8, 12, 24)
# The eight neighbours of a pixel in row-major order, (row, column).
NEIGHBOURS = tuple((row, column) for row in (-1, 0, 1) for column in (-1, 0, 1) if (row, column) != (0, 0))
_EPSILON = 1e-8
_BANDWIDTH = 0.1


def local_deviation(image: Tensor, dilations: Sequence[int] = DILATIONS) -> Tensor:
    """Standard deviation (unbiased) of each channel over the 3x3 windows at all dilations around each pixel.

    The center counts once for each dilation. (N, C, H, W) -> (N, C, H, W).
    """
    windows = [image] * len(dilations)
    windows += [shifted for _, shifted in _shifts(image, dilations)]
    return torch.stack(windows).std(dim=0, unbiased=True)


def pamr_affinity(image: Tensor, dilations: Sequence[int] = DILATIONS) -> Tensor:
    """Weights of the neighbours of each pixel, from colours alone.

    image: float (N, 3, H, W) in [0, 1]. Returns (N, 8 * len(dilations), H, W), sums over dim 1 are 1; ordered by
    dilation, then row-major over the eight neighbours. Beyond the border the image is replicated.
    """
    scale = _EPSILON + _BANDWIDTH * local_deviation(image, dilations)
    likeness = [-((image - shifted).abs() / scale).mean(dim=1) for _, shifted in _shifts(image, dilations)]
    return torch.stack(likeness, dim=1).softmax(dim=1)


def refine_masks(affinity: Tensor, masks: Tensor, iterations: int, dilations: Sequence[int] = DILATIONS) -> Tensor:
    """`iterations` weighted means over the neighbours, the pixel itself not included.

    affinity: (N, 8 * len(dilations), H, W) of `pamr_affinity`. masks: (N, C, H, W). Returns (N, C, H, W).
    """
    for _ in range(iterations):
        refined = torch.zeros_like(masks)
        for index, shifted in _shifts(masks, dilations):
            refined.addcmul_(affinity[:, index, None], shifted)
        masks = refined
    return masks


@torch.no_grad()
def pamr(image: Tensor, masks: Tensor, iterations: int = 10, dilations: Sequence[int] = DILATIONS) -> Tensor:
    """Masks refined by the image: (N, C, h, w) -> (N, C, H, W), (H, W) the size of the image. No gradient.

    image: float32 (N, 3, H, W) in [0, 1]. Masks of another size are first resized bilinearly (corners aligned).
    """
    if masks.shape[2:] != image.shape[2:]:
        masks = F.interpolate(masks, size=image.shape[2:], mode="bilinear", align_corners=True)
    return refine_masks(pamr_affinity(image, dilations), masks, iterations, dilations)


@torch.no_grad()
def pamr_present(
    image: Tensor, masks: Tensor, present: Tensor, iterations: int = 10, dilations: Sequence[int] = DILATIONS
) -> Tensor:
    """`pamr` times `present`, computed for the present channels alone.

    Channels do not see one another, so refining those that are zeroed afterwards would be wasted: with 21 classes
    and two or three in an image this is several times less work. Masks must have the size of the image.

    present: bool (N, C). Returns (N, C, H, W), zero where a channel is not present.
    """
    if masks.shape[2:] != image.shape[2:]:
        raise ValueError(f"masks {tuple(masks.shape)} do not have the size of the image {tuple(image.shape)}")
    affinity = pamr_affinity(image, dilations)
    owner, _ = places = present.nonzero(as_tuple=True)
    refined = refine_masks(affinity[owner], masks[places][:, None], iterations, dilations)
    result = torch.zeros_like(masks)
    result[places] = refined[:, 0]
    return result


def _shifts(x: Tensor, dilations: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
    """(index, the map moved so that each pixel holds that neighbour) for every dilation and neighbour."""
    height, width = x.shape[2:]
    reach = max(dilations)
    padded = F.pad(x, (reach, reach, reach, reach), mode="replicate")
    index = 0
    for dilation in dilations:
        for row, column in NEIGHBOURS:
            top, left = reach + row * dilation, reach + column * dilation
            yield index, padded[:, :, top : top + height, left : left + width]
            index += 1
