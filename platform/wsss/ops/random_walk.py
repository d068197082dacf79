"""Random walk of class maps over pairwise affinities (SSC, section 6.2, S5).

One step reaches the same few offsets from every position, so the transition matrix is kept as diagonals: one
for each direction, no indices, contiguous reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from wsss.ops.affinity import pair_affinity
from wsss.ops.affinity_path import PathIndex, path_index

Array = np.ndarray[Any, np.dtype[Any]]
Method = Literal["chebyshev", "sparse", "dense"]
Step = Callable[[Tensor], Tensor]


def random_walk(
    x: Array,
    edge: Array,
    radius: int = 5,
    beta: float = 10,
    exp_times: int = 8,
    method: Method = "chebyshev",
    device: str = "cpu",
    affinity: DirectionAffinity | None = None,
) -> Array:
    """Spread class maps along affinities for 2 ** exp_times steps.

    Args:
        x: class maps, float32 (K, h, w).
        edge: edge probabilities, float32 (h, w); the walk starts from x * (1 - edge).
        radius: reach of one step, in positions.
        beta: power of the affinities.
        exp_times: doublings of the number of steps.
        method: "chebyshev": about 6 * sqrt(steps) sparse products instead of one for each step, equal to float32
            rounding (1e-5); "sparse": one product for each step; "dense": the published form, repeated squaring
            of the full matrix (gigabytes for a full-size image).
        device: where the sparse methods compute.
        affinity: of this edge map and radius, on `device`, where several walks share it; None computes it.

    Returns:
        float32 (K, h, w).
    """
    classes, height, width = x.shape
    if edge.shape != (height, width):
        raise ValueError(f"edge map {edge.shape} and class maps {x.shape} differ in size")
    if classes == 0:
        return np.zeros(x.shape, dtype=np.float32)
    start = (x * (1.0 - edge)).reshape(classes, -1).astype(np.float32)
    if method == "dense":
        result = walk_dense(start, grid_affinity(edge, radius), beta, exp_times)
        return result.reshape(x.shape)
    step = walk_step(affinity or direction_affinity(edge, radius, device), beta)
    walking = walk_chebyshev if method == "chebyshev" else walk
    result = walking(torch.from_numpy(start).to(device), step, 2**exp_times)
    return result.cpu().numpy().reshape(x.shape)


def walk(start: Tensor, step: Step, steps: int) -> Tensor:
    """`steps` steps from (K, positions) maps, one by one."""
    for _ in range(steps):
        start = step(start)
    return start


def walk_chebyshev(start: Tensor, step: Step, steps: int, tolerance: float = 1e-7) -> Tensor:
    """`walk` as a sum of Chebyshev polynomials of the transition, cut where the rest is below `tolerance`.

    z ** n is the mean of T_|n - 2k|(z) over k binomial (n, 1/2). The transition is similar to a symmetric matrix
    with spectrum in [-1, 1], where every T is bounded by 1; so leaving out the degrees beyond d costs at most
    the binomial tail, 2 exp(-d ** 2 / 2n): 256 steps take some 90 products. (Sachdeva and Vishnoi, "Faster
    Algorithms via Approximation Theory", 2014, theorem 3.3.)
    """
    degree = math.ceil(math.sqrt(2 * steps * math.log(2 / tolerance)))
    if degree >= steps:
        return walk(start, step, steps)
    weights = _binomial_weights(steps, degree)
    previous, current = start, step(start)
    total = weights[0] * previous + weights[1] * current
    for number in range(2, degree + 1):
        previous, current = current, 2.0 * step(current) - previous
        if weights[number]:
            total += weights[number] * current
    # The cut series may fall below zero by its tolerance; the exact walk of such maps never does.
    return total.clamp_min_(0.0) if bool((start >= 0).all()) else total


def _binomial_weights(steps: int, degree: int) -> list[float]:
    """Weight of T_0..T_degree in z ** steps: the probability that |n - 2k| is that degree."""
    weights = [0.0] * (degree + 1)
    for number in range(steps % 2, degree + 1, 2):
        k = (steps - number) // 2
        log_probability = math.lgamma(steps + 1) - math.lgamma(k + 1) - math.lgamma(steps - k + 1) - steps * math.log(2)
        weights[number] = (1 if number == 0 else 2) * math.exp(log_probability)
    return weights


@dataclass(frozen=True)
class DirectionAffinity:
    """Affinities of a grid by direction: what walks of one edge map and radius have in common.

    Attributes:
        offsets: flat offset of every direction.
        values: float32 (directions, positions), by source.
    """

    offsets: list[int]
    values: Tensor


def walk_step(affinity: DirectionAffinity, beta: float) -> Step:
    """One step of the walk: (K, positions) maps -> (K, positions), on the affinities' device.

    Affinities to the power `beta`, each column of the transition divided by its sum.
    """
    weights = affinity.values**beta
    if weights.device.type == "cpu":
        return _diagonal_step(affinity.offsets, weights.numpy())
    return _gather_step(affinity.offsets, weights)


def direction_affinity(edge: Array, radius: int, device: str = "cpu") -> DirectionAffinity:
    """Affinities of an edge map float32 (h, w) in every direction that a step of `radius` reaches.

    The map is padded with edges (1.0) left, right and below, so that every position is a source; a path that
    leaves the map then has affinity 0. Directions that cannot fit on the map are left out.
    """
    on_device = torch.from_numpy(np.array(edge, dtype=np.float32)).to(device)
    height, width = edge.shape
    affinity, index = _padded_affinity(on_device, radius)
    affinity = affinity.reshape(-1, *index.source_shape)[:, :height, 1 : width + 1].reshape(-1, height * width)
    fits = (index.directions[:, 0] < height) & (np.abs(index.directions[:, 1]) < width)
    kept = torch.from_numpy(np.flatnonzero(fits)).to(device)
    offsets = index.directions[fits] @ np.array([width, 1])
    return DirectionAffinity(offsets.tolist(), affinity[kept])


def _padded_affinity(edge: Tensor, radius: int) -> tuple[Tensor, PathIndex]:
    padded = torch.nn.functional.pad(edge[None, None], (radius, radius, 0, radius), value=1.0)
    index = path_index(radius, (padded.shape[2], padded.shape[3]))
    with torch.no_grad():
        return pair_affinity(padded, index)[0], index


def _diagonal_step(offsets: list[int], weights: Array) -> Step:
    """The step by the stored diagonals of the transposed transition, each row divided by its sum."""
    matrix = _symmetric_diagonals(offsets, weights)
    # Sums in double precision: an error of the normalization would grow with the number of steps.
    inverse: Array = np.reciprocal(np.asarray(matrix @ np.ones(weights.shape[1])))
    for row, offset in zip(matrix.data, matrix.offsets, strict=True):
        columns = slice(max(0, offset), min(len(inverse), len(inverse) + offset))
        row[columns] *= inverse[columns.start - offset : columns.stop - offset]

    def step(x: Tensor) -> Tensor:
        return torch.from_numpy(np.stack([matrix @ row for row in x.numpy()]))

    return step


def _symmetric_diagonals(offsets: list[int], weights: Array) -> sparse.dia_array:
    """Symmetric float32 matrix with `weights[d][i]` at (i, i + offsets[d]) and its mirror, and 1 on the diagonal."""
    count = weights.shape[1]
    diagonals: dict[int, Array] = {0: np.ones(count, dtype=np.float32)}
    for offset, weight in zip(offsets, weights, strict=True):
        # On a narrow map two directions can share a flat offset; they never share a source.
        above = diagonals.setdefault(offset, np.zeros(count, dtype=np.float32))
        above[offset:] += weight[: count - offset]
        below = diagonals.setdefault(-offset, np.zeros(count, dtype=np.float32))
        below += weight
    return sparse.dia_array((np.stack(list(diagonals.values())), list(diagonals)), shape=(count, count))


def _gather_step(offsets: list[int], weights: Tensor) -> Step:
    """The same step by gathering all neighbors at once, for a GPU."""
    count = weights.shape[1]
    position = torch.arange(count, device=weights.device)
    shifts = torch.tensor(offsets, device=weights.device)[:, None]
    ahead, behind = position[None] + shifts, position[None] - shifts
    behind_weights = weights.gather(1, behind.clamp_min(0)) * (behind >= 0)
    self_weight = weights.new_ones((1, count))
    neighbors = torch.cat([ahead.clamp_max(count - 1), behind.clamp_min(0), position[None]])
    values = torch.cat([weights * (ahead < count), behind_weights, self_weight])
    values = (values / values.double().sum(dim=0)).to(weights.dtype)

    def step(x: Tensor) -> Tensor:
        return torch.stack([(row[neighbors] * values).sum(dim=0) for row in x])

    return step


def grid_affinity(edge: Array, radius: int) -> sparse.csr_array:
    """Symmetric affinity matrix of a grid, float32 (h * w, h * w), 1 on the diagonal; edge float32 (h, w)."""
    affinity = direction_affinity(edge, radius)
    return sparse.csr_array(_symmetric_diagonals(affinity.offsets, affinity.values.numpy()))


def padded_pair_affinity(edge: Array, radius: int) -> Array:
    """Affinities of all pairs on the padded grid, float32 (directions, sources); edge float32 (h, w)."""
    return _padded_affinity(torch.from_numpy(np.array(edge, dtype=np.float32)), radius)[0].numpy()


def dense_transition(affinity: sparse.csr_array, beta: float, exp_times: int = 0) -> Array:
    """Transition matrix as published: float32 (positions, positions), columns sum to 1.

    `exp_times` is how often it is multiplied by itself, 2 ** exp_times steps of the walk.
    """
    powered = affinity.toarray().astype(np.float32) ** np.float32(beta)
    transition = torch.from_numpy(powered / powered.sum(axis=0, keepdims=True))
    for _ in range(exp_times):
        transition = transition @ transition
    return transition.numpy()


def walk_dense(start: Array, affinity: sparse.csr_array, beta: float, exp_times: int) -> Array:
    """Reference: (K, positions) maps times the repeatedly squared dense transition matrix."""
    return start @ dense_transition(affinity, beta, exp_times)
