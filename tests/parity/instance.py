"""Instance clusters from a displacement field (IRN; SSC, section 6.5, an optional branch)."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage

Array = np.ndarray[Any, np.dtype[Any]]


def refined_centroids(displacement: Array, iterations: int = 300) -> Array:
    """Where every position ends up when it follows the field: int32 (2, h, w), (y, x) rounded.

    displacement: float32 (2, h, w), (dy, dx) in positions. Each step adds the bilinearly sampled displacement and
    clips to the map.
    """
    _, height, width = displacement.shape
    limit = np.array([height - 1, width - 1], dtype=np.float32)[:, None, None]
    place = np.mgrid[0:height, 0:width].astype(np.float32)
    for _ in range(iterations):
        place = np.clip(place + _sampled(displacement, place), 0, limit)
    return np.rint(place).astype(np.int32)


def _sampled(field: Array, place: Array) -> Array:
    low = np.floor(place).astype(np.int64)
    high = np.ceil(place).astype(np.int64)
    y, x = place - low
    return (
        field[:, low[0], low[1]] * (1 - y) * (1 - x)
        + field[:, low[0], high[1]] * (1 - y) * x
        + field[:, high[0], low[1]] * y * (1 - x)
        + field[:, high[0], high[1]] * y * x
    )


def centroid_clusters(centroids: Array, displacement: Array, threshold: float = 2.5) -> Array:
    """One-hot clusters of the positions that end in one region of weak displacement: uint8 (clusters, h, w).

    Positions whose displacement is shorter than `threshold` form 4-connected components; a position belongs to the
    component that holds its centroid. Positions that end in none share a cluster of their own, the first.
    """
    weak = np.hypot(displacement[0], displacement[1]) < threshold
    components, _ = _components(weak)
    belongs = components[centroids[0], centroids[1]]
    present = np.unique(belongs)
    return (belongs[None] == present[:, None, None]).astype(np.uint8)


def _components(region: Array) -> tuple[Array, int]:
    """4-connected components of a bool map, numbered from 1, and how many there are."""
    numbered = np.zeros(region.shape, dtype=np.int32)
    count = ndimage.label(region, output=numbered)
    return numbered, int(np.asarray(count))


def split_by_clusters(cam: Array, keys: Array, clusters: Array) -> tuple[Array, Array]:
    """Every class map times every cluster: maps (K * clusters, h, w) and the class of each (K * clusters,)."""
    parts = cam[:, None] * clusters[None].astype(cam.dtype)
    return parts.reshape(-1, *cam.shape[1:]), np.repeat(np.asarray(keys), len(clusters))


def suppress_fragments(label: Array, score: Array, min_share: float = 0.01) -> Array:
    """Score 0 at 4-connected fragments of one label smaller than `min_share` of the image.

    label integer (H, W), score float (H, W) -> float (H, W). Background (0) is left alone.
    """
    kept = score.copy()
    for value in np.unique(label[label > 0]):
        fragments, count = _components(label == value)
        sizes = np.bincount(fragments.reshape(-1), minlength=count + 1)
        small = np.flatnonzero(sizes < min_share * label.size)
        kept[np.isin(fragments, small[small > 0])] = 0
    return kept
