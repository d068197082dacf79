"""Plain forms of what the platform computes faster or on less memory; tests and benchmarks hold it against them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.nn import functional

from wsss.ops.affinity import EPSILON, AffinityTargets, affinity_loss_sums, pair_affinity
from wsss.ops.affinity_path import PathIndex, path_index
from wsss.ops.random_walk import DirectionAffinity, direction_affinity, walk, walk_maps, walk_step

WalkForm = Literal["chebyshev", "sparse", "dense"]


def label_at_threshold(maps: np.ndarray, keys: np.ndarray, threshold: float) -> np.ndarray:
    """Labels of one threshold by the definition: argmax over (constant background, maps).

    maps: (K, H, W) floating point, float16 counting as float32. keys: (K,) class ids, 1-based. Returns int64 (H, W).
    The background stands first and argmax takes the first maximum, so background wins ties with a class,
    and the earlier class wins ties with a later one. The constant is rounded to the maps' dtype.
    """
    maps = maps.astype(np.promote_types(maps.dtype, np.float32))
    background = np.full((1, *maps.shape[1:]), threshold, dtype=maps.dtype)
    winner = np.concatenate([background, maps]).argmax(axis=0)
    return np.concatenate([[0], keys.astype(np.int64)])[winner]


def superpixel_mean_one_hot(values: Tensor, ids: Tensor) -> Tensor:
    """`superpixel_mean` through one-hot superpixel masks, (n, superpixels, h * w) of memory."""
    flat = ids.reshape(ids.shape[0], -1).long()
    one_hot = functional.one_hot(flat, int(flat.max()) + 1).to(values.dtype)
    sums = torch.einsum("np,nps->ns", values.reshape(values.shape[0], -1), one_hot)
    means = sums / one_hot.sum(dim=1).clamp_min(1.0)
    return torch.einsum("ns,nps->np", means, one_hot).reshape(values.shape)


@dataclass(frozen=True)
class PixelReading:
    """Soft superpixels (`wsss.ops.superpixel_affinity`) read pixel by pixel. association: (9, H, W)."""

    association: np.ndarray
    cell: int

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of superpixels."""
        height, width = self.association.shape[1:]
        return height // self.cell, width // self.cell

    def members(self) -> Iterator[tuple[int, int, list[tuple[int, int, float]]]]:
        """Every pixel (y, x) with the superpixels (i, j) inside the grid that it belongs to, and how much."""
        height, width = self.association.shape[1:]
        for y in range(height):
            for x in range(width):
                found = []
                for k in range(9):
                    i, j = y // self.cell + k // 3 - 1, x // self.cell + k % 3 - 1
                    if 0 <= i < self.grid[0] and 0 <= j < self.grid[1]:
                        found.append((i, j, float(self.association[k, y, x])))
                yield y, x, found

    def pooled(self, features: np.ndarray) -> np.ndarray:
        """(C, H, W) -> (C, h, w): every superpixel's weighted mean."""
        total, weight = np.zeros((len(features), *self.grid)), np.zeros(self.grid)
        for y, x, found in self.members():
            for i, j, share in found:
                total[:, i, j] += share * features[:, y, x]
                weight[i, j] += share
        return total / (weight + 1e-8 * self.cell**2)

    def lifted(self, values: np.ndarray) -> np.ndarray:
        """(C, h, w) -> (C, H, W): every pixel's weighted mean."""
        result = np.zeros((len(values), *self.association.shape[1:]))
        for y, x, found in self.members():
            for i, j, share in found:
                result[:, y, x] += share * values[:, i, j]
        return result

    def affinity(self) -> np.ndarray:
        """(25, h, w): what superpixels up to two cells apart share of their pixels."""
        shared, weight = np.zeros((25, *self.grid)), np.zeros(self.grid)
        for _, _, found in self.members():
            for i, j, share in found:
                weight[i, j] += share
                for other_i, other_j, other in found:
                    shared[5 * (other_i - i + 2) + other_j - j + 2, i, j] += share * other
        return shared / (weight + 1e-8 * self.cell**2)


def propagated_by_matrix(scores: Tensor, features: Tensor, iterations: int, threshold: float) -> Tensor:
    """`wsss.ops.feature_affinity.propagated` on the whole matrix of all positions."""
    normal = functional.normalize(features.flatten(2), dim=1)
    affinity = torch.bmm(normal.transpose(1, 2), normal).clamp(0.01, 0.999)
    affinity = torch.where(affinity < threshold, torch.zeros_like(affinity), affinity)
    affinity = affinity / affinity.sum(dim=1, keepdim=True)
    flat = scores.flatten(2)
    for _ in range(iterations):
        flat = torch.bmm(flat, affinity)
    return flat.reshape(scores.shape)


def affinity_loss_counts(targets: AffinityTargets) -> dict[str, Tensor]:
    """Denominator of each loss: number of pairs (twice for the two displacement components) + 1e-5, as published."""
    background, foreground = targets.background.sum().float(), targets.foreground.sum().float()
    return {
        "background_positive": background + EPSILON,
        "foreground_positive": foreground + EPSILON,
        "negative": targets.negative.sum().float() + EPSILON,
        "displacement_foreground": 2 * foreground + EPSILON,
        "displacement_background": 2 * background + EPSILON,
    }


def affinity_losses(
    edge_logits: Tensor, displacement: Tensor, targets: AffinityTargets, index: PathIndex
) -> dict[str, Tensor]:
    """The five losses of one batch, each a ratio; their weighted sum is the objective."""
    counts = affinity_loss_counts(targets)
    sums = affinity_loss_sums(edge_logits, displacement, targets, index)
    return {name: value / counts[name] for name, value in sums.items()}


def pair_destinations(index: PathIndex) -> np.ndarray:
    """Flat positions of the destinations, int64 (directions, sources)."""
    return index.directions @ np.array([[index.size[1]], [1]]) + index.sources


def grid_affinity(edge: np.ndarray, radius: int) -> sparse.csr_array:
    """Symmetric affinity matrix of a grid, float32 (h * w, h * w), 1 on the diagonal; edge float32 (h, w)."""
    return direction_affinity(edge, radius).matrix()


def padded_pair_affinity(edge: np.ndarray, radius: int) -> np.ndarray:
    """Affinities of all pairs, as training computes them, on the grid that `direction_affinity` pads the map to.

    edge float32 (h, w) -> float32 (directions, sources).
    """
    padded = functional.pad(torch.from_numpy(edge), (radius, radius, 0, radius), value=1.0)
    return pair_affinity(padded[None, None], path_index(radius, (padded.shape[0], padded.shape[1])))[0].numpy()


def dense_transition(affinity: sparse.csr_array, beta: float, exp_times: int = 0) -> np.ndarray:
    """Transition matrix as published: float32 (positions, positions), columns sum to 1.

    `exp_times` is how often it is multiplied by itself, 2 ** exp_times steps of the walk.
    """
    powered = affinity.toarray().astype(np.float32) ** np.float32(beta)
    transition = torch.from_numpy(powered / powered.sum(axis=0, keepdims=True))
    for _ in range(exp_times):
        transition = transition @ transition
    return transition.numpy()


def walk_in_form(form: WalkForm, x: np.ndarray, affinity: DirectionAffinity, beta: float, exp_times: int) -> np.ndarray:
    """`walk_maps` ("chebyshev"), one product for each step ("sparse"), or the squared full matrix ("dense")."""
    if form == "chebyshev":
        return walk_maps(x, affinity, beta, exp_times)
    start = x.reshape(len(x), -1).astype(np.float32)
    if form == "dense":
        return (start @ dense_transition(affinity.matrix(), beta, exp_times)).reshape(x.shape)
    return walk(torch.from_numpy(start), walk_step(affinity, beta), 2**exp_times).numpy().reshape(x.shape)


def edge_walk_in_form(
    form: WalkForm, x: np.ndarray, edge: np.ndarray, radius: int = 5, beta: float = 10, exp_times: int = 8
) -> np.ndarray:
    """`random_walk` in one of the forms of `walk_in_form`."""
    return walk_in_form(form, x * (1.0 - edge), direction_affinity(edge, radius), beta, exp_times)
