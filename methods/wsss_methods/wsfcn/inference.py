"""Multi-scale inference: scores and merged soft masks of one image, and what becomes of them (WS-FCN, section 7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.ops.crf import DenseCrf, DenseCrfSettings, unary_from_probabilities
from wsss_methods.wsfcn.losses import FocalPenalty, class_scores, resized
from wsss_methods.wsfcn.networks import WsFcn
from wsss_methods.wsfcn.transforms import Placement, canvas_inputs

Array = np.ndarray


# WS-FCN, section 7, step 5; the background is (1 - largest class) ** PUBLISHED_ALPHA.
PUBLISHED_CRF = DenseCrfSettings(
    iterations=10,
    gaussian_sxy=3.0,
    gaussian_compat=3.0,
    bilateral_sxy=30.0,
    bilateral_srgb=13.0,
    bilateral_compat=10.0,
)
PUBLISHED_ALPHA = 5.0


@dataclass(frozen=True)
class SoftMasks:
    """What the network says of one image.

    Attributes:
        scores: class scores before the sigmoid of every input, float32 (2 S, K), K foreground classes.
        masks: mean over the inputs of the foreground masks at the image's size, float32 (K, H, W) in [0, 1]; of all
            classes, whether the scores find them in the image or not.
    """

    scores: Array
    masks: Array


@torch.no_grad()
def soft_masks(
    network: WsFcn, image: Array, scales: Sequence[float], canvas: int, focal: FocalPenalty, device: str = "cpu"
) -> SoftMasks:
    """Run the network on every scale and its mirror image and merge. image: uint8 (H, W, 3) RGB.

    The network must be in evaluation mode, where the inputs of a batch do not see one another: two at a time go
    through it, so that memory does not grow with the number of scales. Scores are pooled over the whole canvas, and
    the padding takes part in them as published.
    """
    size = (image.shape[0], image.shape[1])
    inputs = canvas_inputs(image, scales, canvas)
    scores: list[Tensor] = []
    total: Tensor | None = None
    for start in range(0, len(inputs), 2):
        pair = inputs[start : start + 2]
        batch = torch.from_numpy(np.stack([each.image for each in pair])).to(device)
        logits = network(batch).float()
        masks = logits.softmax(dim=1)
        scores.append(class_scores(logits, masks, focal))
        masks = resized(masks, (canvas, canvas))
        for index, each in enumerate(pair):
            merged = content(masks[index], each.placement, size)[1:]
            total = merged if total is None else total + merged
    assert total is not None
    return SoftMasks(torch.cat(scores).cpu().numpy(), (total / len(inputs)).cpu().numpy())


def content(masks: Tensor, placement: Placement, size: tuple[int, int]) -> Tensor:
    """The part of the canvas that holds the image, at the image's size and not mirrored: (C, S, S) -> (C, *size).

    Half-pixel centers, unlike the network's own resizing.
    """
    rows = slice(placement.top, placement.top + placement.height)
    columns = slice(placement.left, placement.left + placement.width)
    cut = F.interpolate(masks[None, :, rows, columns], size=size, mode="bilinear", align_corners=False)[0]
    return cut.flip(-1) if placement.mirrored else cut


def best_scores(scores: Array) -> Array:
    """Highest probability of each class over the inputs: scores (2 S, K) before the sigmoid -> float32 (K,)."""
    return (1.0 / (1.0 + np.exp(-scores.astype(np.float64)))).max(axis=0).astype(np.float32)


def label_from_masks(masks: Array, keys: Array, background: float) -> Array:
    """The class of the largest mask where it exceeds `background`: (K, H, W), (K,) class ids -> uint8 (H, W)."""
    if not len(keys):
        return np.zeros(masks.shape[1:], dtype=np.uint8)
    return np.where(masks.max(axis=0) > background, keys[masks.argmax(axis=0)], 0).astype(np.uint8)


def with_power_background(masks: Array, keys: Array, alpha: float, num_classes: int) -> Array:
    """Probabilities of all classes for the CRF: absent classes 0, background (1 - largest class) ** alpha.

    masks: (K, H, W), keys: (K,) class ids. Returns float32 (num_classes, H, W), not normalized.
    """
    probabilities = np.zeros((num_classes, *masks.shape[1:]), dtype=np.float32)
    probabilities[keys] = masks
    probabilities[0] = (1.0 - probabilities[1:].max(axis=0)) ** alpha
    return probabilities


def refined_probabilities(image: Array, probabilities: Array, crf: DenseCrfSettings) -> Array:
    """Marginals of the dense CRF over all classes, float32 (C, H, W). image: uint8 (H, W, 3) RGB."""
    return DenseCrf(image, len(probabilities), crf).marginals(unary_from_probabilities(probabilities))


def label_after_crf(
    image: Array, masks: Array, keys: Array, num_classes: int, alpha: float, crf: DenseCrfSettings
) -> Array:
    """Labels after the CRF, uint8 (H, W); all `num_classes` take part, as published."""
    probabilities = with_power_background(masks, keys, alpha, num_classes)
    return refined_probabilities(image, probabilities, crf).argmax(axis=0).astype(np.uint8)
