"""Class activation maps: merging scales, normalization (IRN's `step/make_cam.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


def strided_size(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Size of a map with one position for every `stride` pixels: ceil(length / stride)."""
    return (size[0] - 1) // stride + 1, (size[1] - 1) // stride + 1


def strided_up_size(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Both sides rounded up to multiples of `stride`."""
    height, width = strided_size(size, stride)
    return height * stride, width * stride


@dataclass(frozen=True)
class Merge:
    """How the class maps of several input scales become one full-resolution map for each class.

    Attributes:
        scales: "sum" or "maximum" over the scales.
        normalize: "maximum" divides by the maximum + epsilon; "range" takes (v - min - epsilon) / (max - min + epsilon)
            of what is above min + epsilon (the rest is 0 before the subtraction, as in SEAM's `infer_SEAM.py`); "none".
        epsilon: of the normalization.
        stride: the map is made at H and W rounded up to it, then cropped: the stride of the network's maps.
    """

    scales: Literal["sum", "maximum"] = "sum"
    normalize: Literal["maximum", "range", "none"] = "maximum"
    epsilon: float = 1e-5
    stride: int = 16


def normalized_by_maximum(maps: Tensor, epsilon: float = 1e-5) -> Tensor:
    """Each map of (..., h, w) divided by its own maximum + epsilon."""
    return maps / (maps.amax(dim=(-2, -1), keepdim=True) + epsilon)


def normalized_by_range(maps: Tensor, epsilon: float = 1e-5) -> Tensor:
    """Each map of (..., h, w) as "range" of `Merge`; negative values count as 0."""
    maps = maps.clamp_min(0)
    least, largest = maps.amin(dim=(-2, -1), keepdim=True), maps.amax(dim=(-2, -1), keepdim=True)
    kept = torch.where(maps < least + epsilon, 0.0, maps)
    return (kept - least - epsilon) / (largest - least + epsilon)


def merged_cam(maps: Sequence[Tensor], channels: np.ndarray, size: tuple[int, int], stride: int = 4) -> np.ndarray:
    """Class maps of several input scales to one map for each class with one position for every `stride` pixels.

    Args:
        maps: for each scale (C, h, w), at least 0.
        channels: which of the C channels to keep.
        size: (H, W) of the image.

    Returns:
        float32 (K, ceil(H / stride), ceil(W / stride)) in [0, 1), the sum over the scales.
    """
    return _normalized(_merged(maps, channels, strided_size(size, stride), "sum"), Merge())


def merged_high_res(
    maps: Sequence[Tensor], channels: np.ndarray, size: tuple[int, int], merge: Merge = Merge()
) -> np.ndarray:
    """The full-resolution map of each class, float32 (K, H, W); arguments as of `merged_cam`."""
    merged = _merged(maps, channels, strided_up_size(size, merge.stride), merge.scales)
    return _normalized(merged[:, : size[0], : size[1]], merge)


def _merged(maps: Sequence[Tensor], channels: np.ndarray, size: tuple[int, int], scales: str) -> Tensor:
    """Sum or maximum over the scales of the chosen channels, each resized bilinearly to `size`."""
    chosen = torch.from_numpy(np.asarray(channels, dtype=np.int64))
    if len(chosen) == 0:
        return torch.zeros((0, *size))
    resized = (
        functional.interpolate(scale[chosen.to(scale.device)][None].float(), size, mode="bilinear", align_corners=False)
        for scale in maps
    )
    return reduce(torch.add if scales == "sum" else torch.maximum, resized)[0]


def _normalized(maps: Tensor, merge: Merge) -> np.ndarray:
    if len(maps) and merge.normalize != "none":
        normalize = normalized_by_maximum if merge.normalize == "maximum" else normalized_by_range
        maps = normalize(maps, merge.epsilon)
    return maps.cpu().numpy()


def as_shares(maps: np.ndarray) -> np.ndarray:
    """Maps in [0, 1] as float32; those of 8 bits hold 255ths."""
    shares = maps.astype(np.float32)
    return shares / 255 if maps.dtype == np.uint8 else shares


def thresholded_argmax(maps: np.ndarray, keys: np.ndarray, background: float) -> np.ndarray:
    """Class of every position: argmax over a constant background and the maps.

    maps float (K, h, w), keys (K,) class ids from 1 on -> uint8 (h, w), 0 where the background wins (ties included).
    """
    return class_ids(keys)[with_background(maps, background).argmax(axis=0)]


def with_background(maps: np.ndarray, background: float) -> np.ndarray:
    """A constant map in front: (K, h, w) -> (K + 1, h, w)."""
    return np.concatenate([np.full((1, *maps.shape[1:]), background, dtype=maps.dtype), maps])


def class_ids(keys: np.ndarray) -> np.ndarray:
    """Class ids (K,) with the background in front, uint8 (K + 1,)."""
    return np.concatenate([[0], np.asarray(keys, dtype=np.int64)]).astype(np.uint8)
