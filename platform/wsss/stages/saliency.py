"""Saliency as an input of a method: made from the pictures without any mask, read from a folder, or constant.

It is made of two cues, each on the picture reduced to `max_side`:

    robust background detection on SLIC superpixels: Zhu, Liang, Wei and Sun, "Saliency Optimization from Robust
    Background Detection", 2014, sections 3 and 4. What hardly touches the border of the picture for its size is no
    background; contrast is counted against the background alone.

    boundary contrast: Zhang et al., "Minimum Barrier Salient Object Detection at 80 FPS", 2015, section 4. A color is
    salient where it is far from the colors of all sides of the picture but one.

`detector: combined` adds them, weighs the sum down towards the corners and sharpens it (section 4 of the latter).

What the detectors are worth against the foreground of VOC's masks, on 200 pictures of cats, cows, dogs, horses and
sheep, and on 200 of the other classes: maximum F-measure (the higher the better), mean absolute error (the lower the
better), CPU seconds a picture.

                         voc_mini              voc_resized
    combined             0.627  0.238  0.08    0.474  0.255  0.11
    robust_background    0.623  0.317  0.07    0.456  0.350  0.09
    centered Gaussian    0.533  0.348          0.464  0.359

    python benchmarks/saliency.py FOLDER/voc_mini FOLDER/voc_resized
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse.csgraph import dijkstra
from skimage.color import rgb2lab

from wsss.data.dataset import Dataset
from wsss.data.superpixels import slic_superpixels
from wsss.data.transforms import resize, resize_long
from wsss.pipeline import Arrays, MapStage, StageContext
from wsss.recipe import setting
from wsss.stages.maps_from_folder import MapFolderConfig, maps_from_folder
from wsss.weights import resolve_path

_SMOOTHNESS = 0.1  # mu of equation 10 of Zhu et al.
_BORDER_SHARE = 0.1  # width of a side of the picture, of the longer one (Zhang et al.)
_SHARPNESS = 10  # of the sigmoid (Zhang et al.)


@dataclass(frozen=True)
class SaliencySettings:
    """A recipe's section, and the config of the stage that makes maps."""

    source: str = setting(
        "made", choices=("made", "folder", "constant"), help="made: without masks; folder: PNG files; constant: no cue"
    )
    folder: Path | None = setting(
        None, in_key=False, help="folder of <name>.png, 8-bit grey at the size of the picture, for source: folder"
    )
    constant: int = setting(128, minimum=0, maximum=255, help="value of every pixel, for source: constant")
    detector: str = setting(
        "combined",
        choices=("combined", "robust_background"),
        help="combined: robust background detection and boundary contrast, the middle preferred",
    )
    max_side: int = setting(
        250, minimum=32, maximum=4096, help="maps are made on the image reduced to this longer side"
    )
    segments: int = setting(250, minimum=20, maximum=1000, help="SLIC superpixels of an image, about")
    compactness: float = setting(20.0, above=0, maximum=100, help="SLIC weight of place against color")
    sigma_color: float = setting(10.0, minimum=1, maximum=50, help="reach of colors, in Lab")
    sigma_space: float = setting(0.25, minimum=0.05, maximum=2, help="reach of contrast, in longer sides")
    sigma_border: float = setting(1.0, minimum=0.1, maximum=5, help="how much border makes a background")


@dataclass(frozen=True)
class ConstantConfig:
    """The value of every pixel."""

    value: int


def saliency_stage(settings: SaliencySettings, dataset: Dataset, image_list: str) -> MapStage:
    """The stage "saliency": "saliency" uint8 (H, W) of the pictures of a list, 255 the most salient.

    Raises:
        DataError: naming every file of a folder that does not fit, see `maps_from_folder`.
    """
    if settings.source == "folder":
        folder = resolve_path(settings.folder or Path(), dataset)
        return maps_from_folder("saliency", "saliency", folder, dataset, image_list)
    constant = settings.source == "constant"
    return MapStage(
        name="saliency",
        version=1,
        config=ConstantConfig(settings.constant)
        if constant
        else replace(settings, folder=None, constant=SaliencySettings.constant),
        reads=frozenset({"images"}),
        image_list=image_list,
        build=build_constant_saliency if constant else build_saliency,
    )


def saliency_in_words(stage: MapStage) -> str:
    """Where the maps of `saliency_stage` come from, for the protocol of a number."""
    config = stage.config
    if isinstance(config, MapFolderConfig):
        return f"folder {config.folder.name} with digest {config.content}"
    if isinstance(config, ConstantConfig):
        return f"constant {config.value}"
    combined = " and boundary contrast" if config.detector == "combined" else ""
    return f"made by robust background detection{combined}, without masks"


def build_saliency(context: StageContext) -> Callable[[str], Arrays]:
    """Map function (config SaliencySettings, reads images): the maps of `saliency_map`."""
    return lambda name: {"saliency": saliency_map(context.data.image(name), context.config)}


def build_constant_saliency(context: StageContext) -> Callable[[str], Arrays]:
    """Map function (config ConstantConfig, reads images): one value everywhere."""
    return lambda name: {
        "saliency": np.full(context.data.image_size(name), context.config.value, dtype=np.uint8),
    }


def saliency_map(image: np.ndarray, settings: SaliencySettings) -> np.ndarray:
    """uint8 (H, W, 3) RGB -> uint8 (H, W), stretched to 0..255; 0 everywhere on a picture of one color."""
    small = resize_long(image, settings.max_side, "bilinear") if max(image.shape) > settings.max_side else image
    lab = rgb2lab(small)
    values = _robust_background(small, lab, settings)
    if settings.detector == "combined":
        weighted = _stretched((values + _boundary_contrast(lab)) * _nearness_to_center(*lab.shape[:2]))
        # A map without contrast stays one: the sigmoid of 0 is not 0.
        values = _stretched(1 / (1 + np.exp(-_SHARPNESS * (weighted - 0.5))))
    return resize(np.rint(255 * values).astype(np.uint8), image.shape[:2], "bilinear")


def _robust_background(image: np.ndarray, lab: np.ndarray, settings: SaliencySettings) -> np.ndarray:
    """(H, W) in [0, 1], constant on each superpixel."""
    ids = slic_superpixels(image, settings.segments, settings.compactness)
    regions = np.arange(ids.max() + 1)
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
    return _stretched(np.linalg.solve(system, foreground))[ids]


def _boundary_contrast(lab: np.ndarray) -> np.ndarray:
    """Mahalanobis distance of each color (H, W, 3) to those of each side of the picture; the farthest side does not
    count, so that an object may touch one. (H, W) in [0, 1]."""
    width = max(1, round(_BORDER_SHARE * max(lab.shape)))
    distances = []
    for side in (lab[:width], lab[-width:], lab[:, :width], lab[:, -width:]):
        colors = side.reshape(-1, 3)
        spread = np.linalg.inv(np.cov(colors.T) + 1e-3 * np.eye(3))
        off = lab - colors.mean(axis=0)
        distance = np.sqrt(np.einsum("hwc,cd,hwd->hw", off, spread, off).clip(min=0))
        distances.append(distance / max(distance.max(), 1e-9))
    return _stretched(np.sum(distances, axis=0) - np.max(distances, axis=0))


def _nearness_to_center(height: int, width: int) -> np.ndarray:
    """1 in the middle, 0 in the corners: (H, W)."""
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None]
    return 1 - np.hypot(y, x) / np.sqrt(2)


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
