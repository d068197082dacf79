"""Class activation maps: merging scales, normalization (SSC, section 6.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

Array = np.ndarray[Any, np.dtype[Any]]


def strided_size(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Size of a map with one position for every `stride` pixels: ceil(length / stride)."""
    return (size[0] - 1) // stride + 1, (size[1] - 1) // stride + 1


def strided_up_size(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Both sides rounded up to multiples of `stride`."""
    height, width = strided_size(size, stride)
    return height * stride, width * stride


def normalized_by_maximum(maps: Tensor, epsilon: float = 1e-5) -> Tensor:
    """Each map of (..., h, w) divided by its own maximum + epsilon."""
    return maps / (maps.amax(dim=(-2, -1), keepdim=True) + epsilon)


def merge_scales(
    maps: Sequence[Tensor], channels: Array, size: tuple[int, int], cam_stride: int = 4, map_stride: int = 16
) -> tuple[Array, Array]:
    """Class maps of several input scales to one strided and one full-resolution map for each class.

    Args:
        maps: for each scale (C, h, w), at least 0, one position for every `map_stride` pixels of the scaled image.
        channels: which of the C channels to keep.
        size: (H, W) of the image.
        cam_stride: stride of the strided map.
        map_stride: the full-resolution map is made at H and W rounded up to it, then cropped.

    Returns:
        cam float32 (K, ceil(H / cam_stride), ceil(W / cam_stride)) and high_res float32 (K, H, W), in [0, 1).
    """
    return merged_cam(maps, channels, size, cam_stride), merged_high_res(maps, channels, size, map_stride)


def merged_cam(maps: Sequence[Tensor], channels: Array, size: tuple[int, int], cam_stride: int = 4) -> Array:
    """The strided map of `merge_scales` alone."""
    return _normalized(_merged(maps, channels, strided_size(size, cam_stride)))


def merged_high_res(maps: Sequence[Tensor], channels: Array, size: tuple[int, int], map_stride: int = 16) -> Array:
    """The full-resolution map of `merge_scales` alone."""
    merged = _merged(maps, channels, strided_up_size(size, map_stride))
    return _normalized(merged[:, : size[0], : size[1]])


def _merged(maps: Sequence[Tensor], channels: Array, size: tuple[int, int]) -> Tensor:
    """Sum over the scales of the chosen channels, each resized bilinearly to `size`."""
    chosen = torch.from_numpy(np.asarray(channels, dtype=np.int64))
    if len(chosen) == 0:
        return torch.zeros((0, *size))
    total = maps[0].new_zeros((1, len(chosen), *size), dtype=torch.float32)
    for scale in maps:
        kept = scale[chosen.to(scale.device)][None].float()
        total += functional.interpolate(kept, size, mode="bilinear", align_corners=False)
    return total[0]


def _normalized(maps: Tensor) -> Array:
    return (normalized_by_maximum(maps) if len(maps) else maps).cpu().numpy()


def thresholded_argmax(maps: Array, keys: Array, background: float) -> Array:
    """Class of every position: argmax over a constant background and the maps.

    maps float (K, h, w), keys (K,) class ids from 1 on -> uint8 (h, w), 0 where the background wins (ties included).
    """
    return class_ids(keys)[with_background(maps, background).argmax(axis=0)]


def with_background(maps: Array, background: float) -> Array:
    """A constant map in front: (K, h, w) -> (K + 1, h, w)."""
    return np.concatenate([np.full((1, *maps.shape[1:]), background, dtype=maps.dtype), maps])


def class_ids(keys: Array) -> Array:
    """Class ids (K,) with the background in front, uint8 (K + 1,)."""
    return np.concatenate([[0], np.asarray(keys, dtype=np.int64)]).astype(np.uint8)
