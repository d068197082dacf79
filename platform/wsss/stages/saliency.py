"""Saliency without any mask: robust background detection on SLIC superpixels.

Zhu, Liang, Wei and Sun, "Saliency Optimization from Robust Background Detection", 2014, sections 3 and 4. What hardly
touches the border of the picture for its size is no background; contrast is counted against the background alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse.csgraph import dijkstra
from skimage.color import rgb2lab

from wsss.data.superpixels import slic_superpixels
from wsss.pipeline import Arrays, MapStage, StageContext
from wsss.recipe import setting

_SMOOTHNESS = 0.1  # mu of equation 10


@dataclass(frozen=True)
class SaliencySettings:
    """A recipe's section, and the config of the stage; the defaults are those of the paper."""

    segments: int = setting(250, minimum=20, maximum=1000, help="SLIC superpixels of an image, about")
    compactness: float = setting(20.0, above=0, maximum=100, help="SLIC weight of place against color")
    sigma_color: float = setting(10.0, minimum=1, maximum=50, help="reach of colors, in Lab")
    sigma_space: float = setting(0.25, minimum=0.05, maximum=2, help="reach of contrast, in longer sides")
    sigma_border: float = setting(1.0, minimum=0.1, maximum=5, help="how much border makes a background")


def saliency_stage(settings: SaliencySettings, image_list: str, name: str = "saliency") -> MapStage:
    """A stage that makes "saliency" uint8 (H, W) from the pictures of a list."""
    return MapStage(
        name=name,
        version=1,
        config=settings,
        reads=frozenset({"images"}),
        image_list=image_list,
        build=build_saliency,
    )


def build_saliency(context: StageContext) -> Callable[[str], Arrays]:
    """Map function (config SaliencySettings, reads images): "saliency" uint8 (H, W), 255 the most salient."""
    return lambda name: {"saliency": saliency_map(context.data.image(name), context.config)}


def saliency_map(image: np.ndarray, settings: SaliencySettings) -> np.ndarray:
    """uint8 (H, W, 3) RGB -> uint8 (H, W), stretched to 0..255; 0 everywhere on a picture of one color."""
    ids = slic_superpixels(image, settings.segments, settings.compactness)
    regions = np.arange(ids.max() + 1)
    lab = rgb2lab(image)
    color = np.stack([ndimage.mean(lab[..., channel], ids, regions) for channel in range(3)], axis=1)
    place = np.array(ndimage.center_of_mass(np.ones(ids.shape), ids, regions)) / max(ids.shape)
    border = np.unique(np.concatenate([ids[0], ids[-1], ids[:, 0], ids[:, -1]]))
    color_distance = _distances(color)
    near = _neighbors(ids, len(regions))

    background = _background(color_distance, near, border, settings)
    weight = np.exp(-(_distances(place) ** 2) / (2 * settings.sigma_space**2)) * background[None]
    contrast = (color_distance * weight).sum(axis=1)
    foreground = _stretched(contrast)
    # Equation 9: background weights pull to 0, foreground weights to 1, neighbors of one color together.
    tie = (np.exp(-(color_distance**2) / (2 * settings.sigma_color**2)) + _SMOOTHNESS) * near
    system = np.diag(background + foreground + tie.sum(axis=1)) - tie
    values = np.linalg.solve(system, foreground)
    return np.rint(255 * _stretched(values)).astype(np.uint8)[ids]


def _background(
    color_distance: np.ndarray, near: np.ndarray, border: np.ndarray, settings: SaliencySettings
) -> np.ndarray:
    """Probability that each region is background (equations 2 to 5 and 7), (N,)."""
    edges = near.copy()
    edges[np.ix_(border, border)] = True  # regions at the border are one step apart
    np.fill_diagonal(edges, False)
    # An edge of length 0 would be none to the sparse matrix.
    lengths = sparse.csr_array(np.where(edges, np.maximum(color_distance, 1e-9), 0))
    reach = np.exp(-(dijkstra(lengths, directed=False) ** 2) / (2 * settings.sigma_color**2))
    connectivity = reach[:, border].sum(axis=1) / np.sqrt(reach.sum(axis=1))
    return 1 - np.exp(-(connectivity**2) / (2 * settings.sigma_border**2))


def _neighbors(ids: np.ndarray, count: int) -> np.ndarray:
    """Which regions touch by a side, bool (N, N)."""
    near = np.zeros((count, count), dtype=bool)
    for first, second in ((ids[:, :-1], ids[:, 1:]), (ids[:-1], ids[1:])):
        near[first, second] = near[second, first] = True
    np.fill_diagonal(near, False)
    return near


def _distances(points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points[:, None] - points[None], axis=2)


def _stretched(values: np.ndarray) -> np.ndarray:
    low, reach = values.min(), np.ptp(values)
    return (values - low) / reach if reach > 1e-9 else np.zeros_like(values)
