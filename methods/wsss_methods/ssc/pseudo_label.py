"""Per-image functions from a trained CAM network to the pseudo label (SSC, sections 6.1 and 6.2).

Class ids count from 1 (0 is the background) everywhere: `keys` are the ids of an image's classes, ascending.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from wsss.data.transforms import channels_first, normalize
from wsss.ops.cam import class_ids, merge_scales, strided_size, thresholded_argmax, with_background
from wsss.ops.crf import DenseCrfSettings, refine_labels
from wsss.ops.random_walk import Method, random_walk
from wsss_methods.ssc.cam_transforms import UNSURE, cam_inputs
from wsss_methods.ssc.networks import CamNetwork
from wsss_methods.ssc.recipe import IrLabelSettings

Array = np.ndarray[Any, np.dtype[Any]]

STRIDE = 4
_PADDING_MULTIPLE = 16


@dataclass(frozen=True)
class ClassMaps:
    """CAM of one image.

    keys: int64 (K,), class ids from 1. cam: float32 (K, ceil(H/4), ceil(W/4)). high_res: float32 (K, H, W).
    Values in [0, 1).
    """

    keys: Array
    cam: Array
    high_res: Array


@torch.no_grad()
def infer_cam(
    network: CamNetwork, image: Array, label: Array, scales: Sequence[float] = (1.0, 0.5, 1.5, 2.0)
) -> ClassMaps:
    """Multi-scale CAM of an image with its mirror.

    Args:
        network: in evaluation mode, on any device.
        image: uint8 (H, W, 3) RGB.
        label: multi-hot (classes,) of the image.
    """
    device = network.classifier.weight.device
    outputs = [network.infer(torch.from_numpy(pair).to(device)) for pair in cam_inputs(image, scales)]
    return merged_class_maps(outputs, label, (image.shape[0], image.shape[1]))


def merged_class_maps(outputs: Sequence[Tensor], label: Array, size: tuple[int, int]) -> ClassMaps:
    """`ClassMaps` from the network's outputs (classes, h, w) at each scale; `size` is the image's (H, W)."""
    present = np.flatnonzero(np.asarray(label) > 0)
    cam, high_res = merge_scales(outputs, present, size)
    return ClassMaps(present + 1, cam, high_res)


@dataclass(frozen=True)
class IrLabelSteps:
    """Label of the affinity network and what leads to it; uint8 (H, W) each.

    label: class ids, 0 sure background, 255 unsure. foreground_argmax, foreground_crf: indices into
    (background, keys...) before and after the CRF of the foreground threshold.
    """

    label: Array
    foreground_argmax: Array
    foreground_crf: Array


def ir_label(image: Array, high_res: Array, keys: Array, settings: IrLabelSettings) -> Array:
    """Three-state label for the affinity network: sure classes, sure background 0, unsure 255.

    image uint8 (H, W, 3), high_res float32 (K, H, W), keys (K,) class ids -> uint8 (H, W).
    """
    return ir_label_steps(image, high_res, keys, settings).label


def ir_label_steps(image: Array, high_res: Array, keys: Array, settings: IrLabelSettings) -> IrLabelSteps:
    """`ir_label` with its intermediate maps. Both thresholds share the kernels of one CRF."""
    indices = np.arange(1, len(keys) + 1)

    thresholds = (settings.conf_fg_thres, settings.conf_bg_thres)
    argmax = [thresholded_argmax(high_res, indices, threshold) for threshold in thresholds]
    refined = refine_labels(image, argmax, len(keys) + 1, settings.crf_gt_prob, _dense_crf(settings))
    foreground, background = (labels.astype(np.uint8) for labels in refined)
    label = class_ids(keys)[foreground]
    label[foreground == 0] = UNSURE
    label[(foreground == 0) & (background == 0)] = 0
    return IrLabelSteps(label, argmax[0], foreground)


def _dense_crf(settings: IrLabelSettings) -> DenseCrfSettings:
    return DenseCrfSettings(
        iterations=settings.crf_iterations,
        gaussian_sxy=settings.crf_gaussian_sxy,
        gaussian_compat=settings.crf_gaussian_compat,
        bilateral_sxy=settings.crf_bilateral_sxy,
        bilateral_srgb=settings.crf_bilateral_srgb,
        bilateral_compat=settings.crf_bilateral_compat,
    )


@torch.no_grad()
def irn_edge_and_displacement(network: nn.Module, image: Array, crop_size: int = 512) -> tuple[Array, Array]:
    """Edge probabilities and displacements of a uint8 (H, W, 3) image; see `padded_affinity_forward`."""
    planes = torch.from_numpy(channels_first(normalize(image)))
    edge, displacement = padded_affinity_forward(network, planes, crop_size)
    return edge.cpu().numpy(), displacement.cpu().numpy()


@torch.no_grad()
def padded_affinity_forward(network: nn.Module, planes: Tensor, crop_size: int = 512) -> tuple[Tensor, Tensor]:
    """Affinity network on a padded image and its mirror.

    The image is padded with zeros at the right and bottom to `crop_size`; the padding matters, because the network's
    normalization sees it. A side longer than `crop_size` is padded to a multiple of 16 instead (the published
    program would cut it, which never happens on VOC).

    Args:
        network: affinity network in evaluation mode, on any device.
        planes: normalized image (3, H, W).

    Returns:
        edge (1, h, w): probabilities from the mean of the logits of image and mirror; displacement (2, h, w) of the
        image. (h, w) is the image size divided by 4, rounded up.
    """
    height, width = planes.shape[1:]
    padded = [max(crop_size, -(-side // _PADDING_MULTIPLE) * _PADDING_MULTIPLE) for side in (height, width)]
    pair = torch.stack([planes, planes.flip(-1)])
    pair = functional.pad(pair, (0, padded[1] - width, 0, padded[0] - height))
    logits, displacement = network(pair.to(next(network.parameters()).device))
    rows, columns = strided_size((height, width), STRIDE)
    logits, displacement = logits[..., :rows, :columns], displacement[..., :rows, :columns]
    edge = torch.sigmoid(logits[0] / 2 + logits[1].flip(-1) / 2)
    return edge, displacement[0]


def walked_cam(
    cam: Array,
    edge: Array,
    *,
    radius: int = 5,
    beta: float = 10,
    exp_times: int = 8,
    method: Method = "chebyshev",
) -> Array:
    """Class maps after the random walk, before any threshold: cam (K, h, w), edge (1, h, w) -> float32 (K, h, w)."""
    return random_walk(cam, edge[0], radius, beta, exp_times, method)


def upsampled_walk(walk: Array, size: tuple[int, int]) -> Array:
    """Walk at image size, divided by its maximum over all classes: (K, h, w) -> float32 (K, H, W) in [0, 1].

    Bilinear upsampling by 4, cut to `size` (H, W).
    """
    if len(walk) == 0:
        return np.zeros((0, *size), dtype=np.float32)
    maps = torch.from_numpy(np.ascontiguousarray(walk, dtype=np.float32))[None]
    maps = functional.interpolate(maps, scale_factor=STRIDE, mode="bilinear", align_corners=False)[0]
    maps = maps[:, : size[0], : size[1]]
    largest = float(maps.max())
    return (maps / largest if largest > 0 else maps).contiguous().numpy()


@dataclass(frozen=True)
class PseudoLabel:
    """score: float32 (K + 1, H, W), background first. label: uint8 (H, W), class ids. keys: int64 (K + 1,), 0 first."""

    score: Array
    label: Array
    keys: Array


def pseudo_label_of_walk(walk: Array, keys: Array, size: tuple[int, int], background: float = 0.25) -> PseudoLabel:
    """Pseudo label from a walk (K, h, w): cheap, so a threshold can be changed without walking again.

    keys (K,) class ids; `background` the constant score of the background.
    """
    score = with_background(upsampled_walk(walk, size), background)
    ids = class_ids(keys)
    return PseudoLabel(score, ids[score.argmax(axis=0)], ids.astype(np.int64))


def pseudo_label_scores(
    cam: Array,
    keys: Array,
    edge: Array,
    size: tuple[int, int],
    *,
    radius: int = 5,
    beta: float = 10,
    exp_times: int = 8,
    background: float = 0.25,
) -> PseudoLabel:
    """Random walk, upsampling and threshold of one image's class maps (SSC, section 6.2, S5)."""
    walk = walked_cam(cam, edge, radius=radius, beta=beta, exp_times=exp_times)
    return pseudo_label_of_walk(walk, keys, size, background)
