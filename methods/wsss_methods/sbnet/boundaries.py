"""Boundary maps, the target and the gate of SBNet's training: read from a folder, or made of a first CAM.

The authors released neither their maps (`sb_map` in the VOC folder) nor the code that makes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from scipy import ndimage
from skimage.color import rgb2lab

from wsss.data.dataset import Dataset
from wsss.pipeline import Arrays, MapStage, StageContext
from wsss.stages.maps_from_folder import KINDS, MapFolderConfig, maps_from_folder
from wsss.weights import resolve_path
from wsss_methods.sbnet.recipe import BoundarySettings

_KERNEL = np.ones((3, 3), dtype=np.uint8)


@dataclass(frozen=True)
class ContourConfig:
    """Half the width of a contour, in pixels."""

    thickness: int


@dataclass(frozen=True)
class EdgePriorConfig:
    """How far beyond a class's region, in pixels, an edge is its boundary."""

    dilation: int


@dataclass(frozen=True)
class NoBoundaryConfig:
    """Nothing to choose."""


def boundary_stages(settings: BoundarySettings, dataset: Dataset, image_list: str) -> list[MapStage]:
    """The stage "boundary" of a list: "boundary" (1 + K, H, W) in [0, 1], 1 on a boundary, of the background and the
    present classes, and "keys" int64 (K,), class ids from 1. uint8 of 255ths, float16 for `edge_prior`, float32 for
    `folder`.

    `cam_crf` and `edge_prior` read the scores of a stage "boundary_crf"; edges of a folder are a stage "edge".

    Raises:
        DataError: naming every file of a folder that does not fit.
    """
    stage = MapStage(name="boundary", version=2, config=NoBoundaryConfig(), image_list=image_list, build=build_zeros)
    crf = {"crf": "boundary_crf"}
    if settings.source == "folder":
        folder = resolve_path(settings.folder or Path(), dataset)
        given = maps_from_folder("boundary", "boundary", folder, dataset, image_list)
        return [replace(given, reads=frozenset({"images", "image_labels"}), build=build_given)]
    if settings.source == "zeros":
        return [replace(stage, reads=frozenset({"images", "image_labels"}))]
    if settings.source == "ground_truth":
        # Masks are not weak supervision: all that follows rests on them, and says so.
        contours = replace(stage, config=ContourConfig(settings.thickness), build=build_true_contours)
        return [replace(contours, reads=frozenset({"masks", "image_labels"}), chooses_by_masks=True)]
    if settings.source == "cam_crf":
        return [replace(stage, config=ContourConfig(settings.thickness), inputs=crf, build=build_contours)]
    config = EdgePriorConfig(settings.dilation)
    if settings.edge_folder is None:
        return [replace(stage, config=config, inputs=crf, reads=frozenset({"images"}), build=build_class_edges)]
    edges = maps_from_folder("edge", "saliency", resolve_path(settings.edge_folder, dataset), dataset, image_list)
    return [edges, replace(stage, config=config, inputs={**crf, "edge": "edge"}, build=build_class_edges)]


def contours(label: np.ndarray, ids: np.ndarray, thickness: int) -> np.ndarray:
    """Where the region of each class begins or ends: uint8 (len(ids), H, W), 255 within `thickness` pixels of its rim.

    label (H, W) of ids. The frame of the picture is no rim.
    """
    regions = [(label == each).astype(np.uint8) for each in ids]
    dilated, eroded = (
        [change(region, _KERNEL, iterations=thickness) for region in regions] for change in (cv2.dilate, cv2.erode)
    )
    return 255 * (np.stack(dilated) - np.stack(eroded))


def edge_strength(image: np.ndarray) -> np.ndarray:
    """Strength of the color edges of a picture, without any training: uint8 (H, W, 3) RGB -> float32 (H, W) in [0, 1].

    The gradient of a picture of several channels (Di Zenzo, 1986, "A note on the gradient of a multi-image") in Lab,
    divided by its 99th percentile and cut at 1. 0 everywhere on a picture of one color.
    """
    lab = [ndimage.gaussian_filter(channel, 1.0) for channel in np.moveaxis(rgb2lab(image), -1, 0)]
    x, y = (np.stack([ndimage.sobel(channel, axis) for channel in lab]) for axis in (1, 0))
    xx, yy, xy = (x * x).sum(axis=0), (y * y).sum(axis=0), (x * y).sum(axis=0)
    strength = np.sqrt((xx + yy + np.sqrt((xx - yy) ** 2 + 4 * xy**2)) / 2)
    largest = np.percentile(strength, 99)
    return np.clip(strength / largest if largest > 1e-6 else np.zeros_like(strength), 0, 1).astype(np.float32)


def build_contours(context: StageContext) -> Callable[[str], Arrays]:
    """Contours of the label that CRF scores of role "crf" give."""
    config: ContourConfig = context.config

    def boundary(name: str) -> Arrays:
        position, keys = _best_class(context, name)
        return {"boundary": contours(position, np.arange(len(keys) + 1), config.thickness), "keys": keys}

    return boundary


def build_true_contours(context: StageContext) -> Callable[[str], Arrays]:
    """Contours of the masks: an upper bound, never weakly supervised."""
    config: ContourConfig = context.config

    def boundary(name: str) -> Arrays:
        keys = _present(context, name)
        return {"boundary": contours(context.data.mask(name), np.array([0, *keys]), config.thickness), "keys": keys}

    return boundary


def build_class_edges(context: StageContext) -> Callable[[str], Arrays]:
    """Edges within the widened region of each class: those of role "edge" (levels of 8 bits) or the picture's own."""
    config: EdgePriorConfig = context.config

    def boundary(name: str) -> Arrays:
        position, keys = _best_class(context, name)
        if "edge" in context.inputs:
            edges = context.arrays("edge", name)["saliency"].astype(np.float32) / 255
        else:
            edges = edge_strength(context.data.image(name))
        regions = [(position == index).astype(np.uint8) for index in range(len(keys) + 1)]
        reach = [cv2.dilate(region, _KERNEL, iterations=config.dilation) for region in regions]
        return {"boundary": (np.stack(reach) * edges).astype(np.float16), "keys": keys}

    return boundary


def build_zeros(context: StageContext) -> Callable[[str], Arrays]:
    """No boundary anywhere: smoothness without a gate, an empty target."""

    def boundary(name: str) -> Arrays:
        keys = _present(context, name)
        return {"boundary": np.zeros((len(keys) + 1, *context.data.image_size(name)), dtype=np.uint8), "keys": keys}

    return boundary


def build_given(context: StageContext) -> Callable[[str], Arrays]:
    """Maps of a folder, all classes in each file, without the channels that training multiplies by 0."""
    config: MapFolderConfig = context.config
    kind = KINDS[config.kind]

    def boundary(name: str) -> Arrays:
        keys = _present(context, name)
        return {"boundary": kind.read(config.folder / f"{name}{kind.suffix}")[[0, *keys]], "keys": keys}

    return boundary


def _best_class(context: StageContext, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Position (H, W) of the best class among background and keys, and the keys."""
    arrays = context.arrays("crf", name)
    return arrays["crf"].argmax(axis=0), arrays["keys"]


def _present(context: StageContext, name: str) -> np.ndarray:
    return np.array(context.data.present_classes(name), dtype=np.int64)
