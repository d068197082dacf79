"""Random walk of class maps over pairwise affinities (IRN's `misc/indexing.py`).

One step reaches the same few offsets from every position, so the transition matrix is kept as diagonals: one
for each direction, no indices, contiguous reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from wsss.ops.affinity_path import path_index

Step = Callable[[Tensor], Tensor]


def random_walk(
    x: np.ndarray,
    edge: np.ndarray,
    radius: int = 5,
    beta: float = 10,
    exp_times: int = 8,
    affinity: DirectionAffinity | None = None,
) -> np.ndarray:
    """`walk_maps` by the affinities of an edge map, which is also what the walk starts from: x * (1 - edge).

    Args:
        x: class maps, float32 (K, h, w).
        edge: edge probabilities, float32 (h, w).
        radius: reach of one step, in positions.
        beta, exp_times: as of `walk_maps`.
        affinity: of this edge map, within the radius or more, where several walks share it; None computes it.

    Returns:
        float32 (K, h, w).
    """
    if edge.shape != x.shape[1:]:
        raise ValueError(f"edge map {edge.shape} and class maps {x.shape} differ in size")
    affinity = affinity or direction_affinity(edge, radius)
    return walk_maps(x * (1.0 - edge), affinity.within(radius), beta, exp_times)


def walk_maps(x: np.ndarray, affinity: DirectionAffinity, beta: float, exp_times: int) -> np.ndarray:
    """Spread class maps along affinities for 2 ** exp_times steps, wherever the affinities come from.

    About 6 * sqrt(steps) sparse products instead of one for each step, equal to float32 rounding (1e-5). The published
    form squares the full matrix again and again: gigabytes for a full-size image.

    Args:
        x: class maps, float32 (K, h, w).
        affinity: on the grid of the maps.
        beta: power of the affinities.
        exp_times: doublings of the number of steps.

    Returns:
        float32 (K, h, w).
    """
    if len(x) == 0:
        return np.zeros(x.shape, dtype=np.float32)
    start = torch.from_numpy(x.reshape(len(x), -1).astype(np.float32))
    return walk_chebyshev(start, walk_step(affinity, beta), 2**exp_times).numpy().reshape(x.shape)


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
    """Affinities of a grid by direction: what the walks of one image have in common.

    Attributes:
        radius: every direction is shorter.
        directions: int64 (directions, 2), (dy, dx) from a source to its destination.
        values: float32 (directions, height, width), by source.
    """

    radius: int
    directions: np.ndarray
    values: Tensor

    def within(self, radius: int) -> DirectionAffinity:
        """Those of a smaller radius: a path depends on its ends alone."""
        if radius == self.radius:
            return self
        if radius > self.radius:
            raise ValueError(f"affinities within {self.radius} do not hold those within {radius}")
        near = (self.directions**2).sum(axis=1) < radius**2
        return DirectionAffinity(radius, self.directions[near], self.values[torch.from_numpy(near)])

    @property
    def offsets(self) -> list[int]:
        """Flat offset of every direction."""
        return (self.directions @ np.array([self.values.shape[2], 1])).tolist()

    def matrix(self) -> sparse.csr_array:
        """Symmetric affinity matrix, float32 (h * w, h * w), 1 on the diagonal."""
        return sparse.csr_array(_symmetric_diagonals(self.offsets, self.values.flatten(1).numpy()))


def walk_step(affinity: DirectionAffinity, beta: float) -> Step:
    """One step of the walk: (K, positions) maps -> (K, positions).

    Affinities to the power `beta`, each column of the transition divided by its sum.
    """
    # By the diagonals of the affinity matrix, which is symmetric, so that a product can be divided instead.
    matrix = _symmetric_diagonals(affinity.offsets, (affinity.values.flatten(1) ** beta).numpy())
    # Sums in double precision: an error of the normalization would grow with the number of steps.
    inverse = np.reciprocal(np.asarray(matrix @ np.ones(matrix.data.shape[1]))).astype(np.float32)

    def step(x: Tensor) -> Tensor:
        return torch.from_numpy(np.stack([(matrix @ row) * inverse for row in x.numpy()]))

    return step


def direction_affinity(edge: np.ndarray, radius: int) -> DirectionAffinity:
    """Affinities of an edge map float32 (h, w) in every direction that a step of `radius` reaches.

    As `wsss.ops.affinity.pair_affinity` on the map padded with edges (1.0) left, right and below, so that every
    position is a source; a path that leaves the map then has affinity 0. Directions that cannot fit on the map are
    left out.
    """
    height, width = edge.shape
    values = torch.from_numpy(np.array(edge, dtype=np.float32))
    padded = torch.nn.functional.pad(values, (radius, radius, 0, radius), value=1.0)
    index = path_index(radius, (padded.shape[0], padded.shape[1]))
    fits = np.flatnonzero((index.directions[:, 0] < height) & (np.abs(index.directions[:, 1]) < width))
    largest = padded.new_empty((len(fits), height, width))
    for place, direction in enumerate(fits):
        points = [padded[y : y + height, radius + x : radius + x + width] for y, x in index.paths[direction].tolist()]
        torch.maximum(points[0], points[-1], out=largest[place])
        for point in points[1:-1]:
            torch.maximum(largest[place], point, out=largest[place])
    return DirectionAffinity(radius, index.directions[fits], 1.0 - largest)


def _symmetric_diagonals(offsets: list[int], weights: np.ndarray) -> sparse.dia_array:
    """Symmetric float32 matrix with `weights[d][i]` at (i, i + offsets[d]) and its mirror, and 1 on the diagonal."""
    count = weights.shape[1]
    flat, places = np.unique(np.array(offsets, dtype=np.int64), return_inverse=True)
    if len(flat) < len(offsets):
        # On a narrow map two directions can share a flat offset; they never share a source.
        merged = np.zeros((len(flat), count), dtype=np.float32)
        np.add.at(merged, places, weights)
        offsets, weights = flat.tolist(), merged
    directions = len(offsets)
    data = np.zeros((2 * directions + 1, count), dtype=np.float32)
    data[:directions] = weights  # below the diagonal, at the column of the source
    for row, offset, weight in zip(data[directions:], offsets, weights, strict=False):
        row[offset:] = weight[: count - offset]
    data[-1] = 1
    return sparse.dia_array((data, [*(-offset for offset in offsets), *offsets, 0]), shape=(count, count))
