"""Random walk of class maps over pairwise affinities (SSC, section 6.2, S5)."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
from scipy import sparse

from wsss.ops.affinity import pair_affinity
from wsss.ops.affinity_path import path_index

Array = np.ndarray[Any, np.dtype[Any]]
Method = Literal["chebyshev", "sparse", "dense"]


def grid_affinity(edge: Array, radius: int) -> sparse.csr_array:
    """Symmetric affinity matrix of a grid, float32 (h * w, h * w), 1 on the diagonal.

    edge: probabilities, float32 (h, w). The map is padded with edges (1.0) left, right and below, so that every
    position has all its neighbors; pairs with the padding are dropped.
    """
    height, width = edge.shape
    rows, columns, values = _pairs(edge, radius)
    count = height * width
    diagonal = np.arange(count)
    return sparse.csr_array(
        (
            np.concatenate([values, values, np.ones(count, dtype=np.float32)]),
            (np.concatenate([rows, columns, diagonal]), np.concatenate([columns, rows, diagonal])),
        ),
        shape=(count, count),
    )


def padded_pair_affinity(edge: Array, radius: int) -> Array:
    """Affinities on the padded grid, float32 (directions, sources); see `grid_affinity`."""
    padded = np.pad(edge.astype(np.float32, copy=False), ((0, radius), (radius, radius)), constant_values=1.0)
    index = path_index(radius, (padded.shape[0], padded.shape[1]))
    with torch.no_grad():
        return pair_affinity(torch.from_numpy(padded)[None, None], index)[0].numpy()


def _pairs(edge: Array, radius: int) -> tuple[Array, Array, Array]:
    """Row, column and affinity of every pair whose two ends lie on the un-padded grid."""
    height, width = edge.shape
    affinity = padded_pair_affinity(edge, radius)
    index = path_index(radius, (height + radius, width + 2 * radius))
    shape = index.source_shape
    y, x = np.mgrid[0 : shape[0], radius - 1 : radius - 1 + shape[1]].reshape(2, -1)
    x = x - radius
    end_y = y[None] + index.directions[:, :1]
    end_x = x[None] + index.directions[:, 1:]
    inside = (y < height) & (x >= 0) & (x < width)
    kept = inside[None] & (end_y < height) & (end_x >= 0) & (end_x < width)
    start = np.broadcast_to(y * width + x, kept.shape)[kept]
    return start.astype(np.int32), (end_y * width + end_x)[kept].astype(np.int32), affinity[kept]


def transition_transposed(affinity: sparse.csr_array, beta: float) -> sparse.csr_array:
    """Transposed transition matrix: affinities to the power `beta`, each column divided by its sum, transposed.

    The affinity is symmetric, so this is each row divided by its sum; rows are what a product reads.
    """
    powered = affinity.copy()
    powered.data = powered.data**beta
    powered.eliminate_zeros()
    sums = np.asarray(powered.sum(axis=1)).reshape(-1)
    powered.data /= np.repeat(sums, np.diff(powered.indptr))
    return powered


def random_walk(
    x: Array, edge: Array, radius: int = 5, beta: float = 10, exp_times: int = 8, method: Method = "chebyshev"
) -> Array:
    """Spread class maps along affinities for 2 ** exp_times steps.

    Args:
        x: class maps, float32 (K, h, w).
        edge: edge probabilities, float32 (h, w); the walk starts from x * (1 - edge).
        radius: reach of one step, in positions.
        beta: power of the affinities.
        exp_times: doublings of the number of steps.
        method: "chebyshev": about 6 * sqrt(steps) sparse products instead of one for each step, equal to 1e-6;
            "sparse": one product for each step; "dense": the published form, repeated squaring of the full
            matrix (gigabytes for a full-size image).

    Returns:
        float32 (K, h, w).
    """
    classes, height, width = x.shape
    if edge.shape != (height, width):
        raise ValueError(f"edge map {edge.shape} and class maps {x.shape} differ in size")
    if classes == 0:
        return np.zeros(x.shape, dtype=np.float32)
    start = np.ascontiguousarray((x * (1.0 - edge)).reshape(classes, -1).T.astype(np.float32))
    affinity = grid_affinity(edge, radius)
    steps = 2**exp_times
    if method == "dense":
        result = walk_dense(start, affinity, beta, exp_times)
    else:
        matrix = transition_transposed(affinity, beta)
        result = walk_chebyshev(start, matrix, steps) if method == "chebyshev" else walk(start, matrix, steps)
    return np.ascontiguousarray(result.T).reshape(classes, height, width)


def walk(start: Array, matrix: sparse.csr_array, steps: int) -> Array:
    """`steps` products of the transposed transition matrix with (positions, K) maps."""
    for _ in range(steps):
        start = matrix @ start
    return start


def walk_chebyshev(start: Array, matrix: sparse.csr_array, steps: int, tolerance: float = 1e-7) -> Array:
    """`walk` as a sum of Chebyshev polynomials of the matrix, cut where the rest is below `tolerance`.

    z ** n is the mean of T_|n - 2k|(z) over k binomial (n, 1/2). The transition matrix is similar to a symmetric
    one with spectrum in [-1, 1], where every T is bounded by 1; so leaving out the degrees beyond d costs at most
    the binomial tail, 2 exp(-d ** 2 / 2n): 256 steps take some 90 products. (Sachdeva and Vishnoi, "Faster
    Algorithms via Approximation Theory", 2014, theorem 3.3.)
    """
    degree = math.ceil(math.sqrt(2 * steps * math.log(2 / tolerance)))
    if degree >= steps:
        return walk(start, matrix, steps)
    weights = _binomial_weights(steps, degree)
    previous, current = start, matrix @ start
    total = weights[0] * previous + weights[1] * current
    for number in range(2, degree + 1):
        following = matrix @ current
        following *= 2.0
        following -= previous
        previous, current = current, following
        if weights[number]:
            total += weights[number] * current
    # The cut series may fall below zero by its tolerance; the exact walk never does.
    return np.maximum(total, 0.0, out=total) if start.min() >= 0 else total


def _binomial_weights(steps: int, degree: int) -> Array:
    """Weight of T_0..T_degree in z ** steps, float32: probability that |n - 2k| is that degree."""
    weights = np.zeros(degree + 1)
    for number in range(steps % 2, degree + 1, 2):
        k = (steps - number) // 2
        log_probability = math.lgamma(steps + 1) - math.lgamma(k + 1) - math.lgamma(steps - k + 1) - steps * math.log(2)
        weights[number] = (1 if number == 0 else 2) * math.exp(log_probability)
    return weights.astype(np.float32)


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
    """Reference: the walk by repeated squaring of the dense transition matrix."""
    return (start.T @ dense_transition(affinity, beta, exp_times)).T
