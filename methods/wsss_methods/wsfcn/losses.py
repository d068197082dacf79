"""Scores, pseudo labels and losses behind the last convolution, those of 1-stage-wseg (Araslanov and Roth, 2020)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from wsss.ops.pamr import pamr_present
from wsss_methods.wsfcn.recipe import PseudoLabelSettings

UNLABELED = 255


@dataclass(frozen=True)
class FocalPenalty:
    """Reward for masks that are large enough: (1 - mean mask) ** power * ln(floor + mean mask)."""

    power: float = 3.0
    floor: float = 0.01


@dataclass(frozen=True)
class PseudoLabel:
    """Pseudo labels of a batch without gradient: what `refine` and `label_map` return."""

    refined: Tensor
    label: Tensor


def focal_penalty(masks: Tensor, focal: FocalPenalty) -> Tensor:
    """Penalty of every class, background included: masks (N, C, h, w) -> (N, C), at most about 0."""
    size = masks.mean(dim=(2, 3))
    return (1 - size) ** focal.power * torch.log(focal.floor + size)


def class_scores(logits: Tensor, masks: Tensor, focal: FocalPenalty) -> Tensor:
    """Normalized global weighted pooling plus the penalty: (N, C, h, w) twice -> (N, C - 1), background left out."""
    pooled = (masks * logits).sum(dim=(2, 3)) / (1.0 + masks.sum(dim=(2, 3)))
    return (pooled + focal_penalty(masks, focal))[:, 1:]


def foreground_share(masks: Tensor, labels: Tensor) -> Tensor:
    """Mean mask size over an image's classes: masks (N, C, h, w), labels (N, C - 1) -> (N,). A number to log."""
    return (labels * masks.mean(dim=(2, 3))[:, 1:]).sum(dim=1) / labels.sum(dim=1).clamp(min=1.0)


def classification_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Multi-label soft margin loss: (N, K) twice -> (N,), mean over classes."""
    return F.binary_cross_entropy_with_logits(scores, labels, reduction="none").mean(dim=1)


def denormalized(image: Tensor) -> Tensor:
    """Normalized image (N, 3, H, W) -> RGB in [0, 1]."""
    mean = torch.tensor(IMAGENET_MEAN, dtype=image.dtype, device=image.device)[:, None, None]
    std = torch.tensor(IMAGENET_STD, dtype=image.dtype, device=image.device)[:, None, None]
    return image * std + mean


def resized(maps: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Bilinear with aligned corners, the network's way of resizing."""
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=True)


@torch.no_grad()
def refine(image: Tensor, masks: Tensor, labels: Tensor, rule: PseudoLabelSettings) -> Tensor:
    """Masks refined by PAMR on their own grid, at the image's size, zero for classes that are not in the image.

    image: RGB in [0, 1], (N, 3, H, W). masks: (N, C, h, w). labels: (N, C - 1). Returns float32 (N, C, H, W).
    """
    masks = masks.float()
    small = resized(image.float(), masks.shape[2:])
    present = torch.cat([torch.ones_like(labels[:, :1]), labels], dim=1) > 0
    # Classes that are not in the image would be zeroed afterwards, so they are not refined at all.
    return resized(pamr_present(small, masks, present, rule.pamr_iters, rule.pamr_dilations), image.shape[2:])


@torch.no_grad()
def label_map(refined: Tensor, rule: PseudoLabelSettings) -> Tensor:
    """Refined masks (N, C, H, W) -> uint8 (N, H, W): the one class that exceeds its threshold, else `UNLABELED`.

    A class's threshold is its ratio times its highest value in the image, and at least the minimum.
    """
    ratio = torch.full((refined.shape[1],), rule.pseudo_fg_ratio, dtype=refined.dtype, device=refined.device)
    ratio[0] = rule.pseudo_bg_ratio
    threshold = (refined.amax(dim=(2, 3)) * ratio).clamp(min=rule.pseudo_min_score)
    candidate = refined > threshold[:, :, None, None]
    label = candidate.to(torch.uint8).argmax(dim=1).to(torch.uint8)
    return torch.where(candidate.sum(dim=1) == 1, label, torch.full_like(label, UNLABELED))


def pseudo_label(image: Tensor, masks: Tensor, labels: Tensor, rule: PseudoLabelSettings) -> PseudoLabel:
    """`refine` and `label_map`; arguments as in `refine`."""
    refined = refine(image, masks, labels, rule)
    return PseudoLabel(refined, label_map(refined, rule))


def class_counts(label: Tensor, num_classes: int) -> Tensor:
    """Pixels of every class: uint8 (N, H, W) -> int64 (N, num_classes); unlabeled pixels count nowhere."""
    flat = label.flatten(1).long()
    counts = torch.zeros(len(flat), UNLABELED + 1, dtype=torch.int64, device=label.device)
    counts.scatter_add_(1, flat, torch.ones_like(flat))
    return counts[:, :num_classes]


def presence_gate(counts: Tensor, labels: Tensor) -> Tensor:
    """1 for images whose pseudo label holds as many classes as it should, else 0: float (N,).

    counts: (N, C) of `class_counts`. labels: (N, C - 1). Expected are the background and every image label.
    """
    return ((counts > 0).sum(dim=1) == labels.sum(dim=1) + 1).to(labels.dtype)


def mask_loss(logits: Tensor, label: Tensor, labels: Tensor) -> Tensor:
    """`balanced_entropy` against the pseudo label, times the presence gate: (N,).  labels: (N, C - 1)."""
    gate = presence_gate(class_counts(label, logits.shape[1]), labels)
    return gate.to(logits.dtype) * balanced_entropy(logits, label)


def balanced_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Class-balanced cross entropy against label maps: (N,).

    logits: (N, C, h, w), resized to the label's size. label: uint8 (N, H, W).
    A class of N_c among N labeled pixels weighs (N - N_c) / (1 + N). The mean runs over all pixels, unlabeled ones
    included, as in the official code.
    """
    counts = class_counts(label, logits.shape[1])
    total = counts.sum(dim=1, keepdim=True)
    weights = (total - counts).to(logits.dtype) / (1 + total).to(logits.dtype)
    entropy = F.cross_entropy(
        resized(logits, label.shape[1:]), label.long(), ignore_index=UNLABELED, reduction="none"
    ).flatten(1)
    labeled = label != UNLABELED
    index = torch.where(labeled, label, torch.zeros_like(label)).flatten(1).long()
    weight = weights.gather(1, index) * labeled.flatten(1)
    return (weight * entropy).mean(dim=1)
