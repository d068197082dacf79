"""Affinities by the distance of features, their labels from two label maps, and the random walk over them.

Ahn and Kwak, "Learning Pixel-level Semantic Affinity with Image-level Supervision for Weakly Supervised Semantic
Segmentation" (PSA), 2018, sections 3.2 to 3.4; the details are those of the official code (jiwoon-ahn/psa).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.data.transforms import IMAGENET_MEAN
from wsss.ops.affinity_path import PathIndex, search_directions
from wsss.ops.crf import DenseCrfSettings, refine_probabilities
from wsss.ops.random_walk import DirectionAffinity, walk_maps

STRIDE = 8
UNSURE = 255


@lru_cache(maxsize=32)
def pair_index(radius: int, size: tuple[int, int]) -> PathIndex:
    """Pairs closer than `radius` on a grid (h, w), in search order; pairs have no paths here.

    The radius shrinks on a grid that is narrower than twice the radius and one; there is no pair at all on one narrower
    than 5.
    """
    radius = min(radius, (min(size) - 1) // 2)
    directions = search_directions(radius) if radius > 1 else []
    return PathIndex(radius, size, np.array(directions, dtype=np.int64).reshape(-1, 2), (), ())


def feature_pair_affinity(features: Tensor, index: PathIndex) -> Tensor:
    """exp of minus the mean absolute difference: (N, C, h, w) on the grid of `index` -> (N, directions, sources)."""
    rows, columns = index.source_shape
    left = index.radius - 1
    source = features[:, :, :rows, left : left + columns]
    found = [
        torch.exp(-(source - features[:, :, y : y + rows, left + x : left + x + columns]).abs().mean(dim=1))
        for y, x in index.directions.tolist()
    ]
    return torch.stack(found, dim=1).flatten(2) if found else features.new_zeros((len(features), 0, rows * columns))


def feature_affinity(features: Tensor, radius: int) -> DirectionAffinity:
    """Affinities for a walk: features (C, h, w) -> by direction and source.

    Positions in the last rows and the outer columns are no sources, as published: their affinities are 0.
    """
    index = pair_index(radius, (features.shape[1], features.shape[2]))
    rows, columns = index.source_shape
    values = torch.zeros((len(index.directions), *index.size))
    left = max(0, index.radius - 1)
    if len(values):
        pairs = feature_pair_affinity(features[None], index)[0].cpu()
        values[:, :rows, left : left + columns] = pairs.unflatten(1, (rows, columns))
    return DirectionAffinity(index.radius, index.directions, values)


def pooled(maps: np.ndarray, stride: int = STRIDE) -> np.ndarray:
    """Mean over cells: float32 (K, H, W) -> (K, H // stride, W // stride)."""
    return F.avg_pool2d(torch.from_numpy(np.ascontiguousarray(maps, dtype=np.float32))[None], stride)[0].numpy()


def affinity_label(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Which cells are surely what, from scores of two CRFs: uint8 (h, w).

    low, high: float32 (1 + K, h, w), background first: of the background with the smaller and the larger power, the
    first surer of the background's absence and the second of its presence. A cell is class j (1..K) where `low` says
    so, 0 where `high` says background, else 255; also where no score reaches 1e-5.
    """
    label = low.argmax(axis=0).astype(np.uint8)
    label[label == 0] = UNSURE
    label[high.argmax(axis=0) == 0] = 0
    label[np.maximum(low.max(axis=0), high.max(axis=0)) < 1e-5] = UNSURE
    return label


def power_background_scores(cam: np.ndarray, alpha: float) -> np.ndarray:
    """Class maps in [0, 1] after a background (1 - largest) ** alpha: (K, H, W) -> float32 (1 + K, H, W)."""
    background = (1.0 - cam.max(axis=0, initial=0.0)) ** alpha
    return np.concatenate([background[None], cam]).astype(np.float32)


def walk_with_background(
    cam: np.ndarray, affinity: DirectionAffinity, alpha: float, beta: float, exp_times: int, stride: int = STRIDE
) -> np.ndarray:
    """Scores after the walk: class maps float32 (K, H, W) at full size -> float32 (1 + K, h, w), background first.

    The maps are padded with 0 at the bottom and the right to whole cells, the background too.
    """
    height, width = affinity.values.shape[1:]
    missing = [(0, 0), (0, height * stride - cam.shape[1]), (0, width * stride - cam.shape[2])]
    return walk_maps(pooled(np.pad(power_background_scores(cam, alpha), missing), stride), affinity, beta, exp_times)


def walked_label(
    walk: np.ndarray, keys: Sequence[int] | np.ndarray, size: tuple[int, int], stride: int = STRIDE
) -> np.ndarray:
    """The class of the largest score, upsampled bilinearly: (1 + K, h, w), class ids (K,) -> uint8 `size`."""
    ids = np.array([0, *keys], dtype=np.uint8)
    return ids[_upsampled(walk, stride).argmax(axis=0)[: size[0], : size[1]]]


def walked_label_by_crf(
    walk: np.ndarray,
    keys: Sequence[int] | np.ndarray,
    image: np.ndarray,
    num_classes: int,
    settings: DenseCrfSettings,
    stride: int = STRIDE,
) -> np.ndarray:
    """`walked_label` after a dense CRF on all classes: image uint8 (H, W, 3) -> uint8 (H, W).

    As published the CRF sees the scores as they are, absent classes at 0, and the picture padded with the mean color.
    """
    full = _upsampled(walk, stride)
    scores = np.zeros((num_classes, *full.shape[1:]), dtype=np.float32)
    scores[[0, *keys]] = full
    padded = np.empty((*full.shape[1:], 3), dtype=np.uint8)
    padded[:] = [int(255 * mean) for mean in IMAGENET_MEAN]
    padded[: image.shape[0], : image.shape[1]] = image
    label = refine_probabilities(padded, scores, settings).argmax(axis=0).astype(np.uint8)
    return label[: image.shape[0], : image.shape[1]]


def _upsampled(walk: np.ndarray, stride: int) -> np.ndarray:
    batch = torch.from_numpy(walk)[None]
    return F.interpolate(batch, scale_factor=stride, mode="bilinear", align_corners=False)[0].numpy()
