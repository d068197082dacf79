"""Geometry of the segmentation stage's samples: random resized crop, mirror, fixed-size resize.

SSC, sections 3.3 (S7 augmentation) and 6.4 (S8 input).  Everything here is NumPy and Pillow on one sample;
the photometric augmentation comes after the class mixing and lives in `photometric.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wsss.data.random_resized_crop import CropBox, random_resized_crop_box
from wsss.data.transforms import IMAGENET_MEAN, IMAGENET_STD, channels_first, resize
from wsss.data.transforms import mirror as mirrored


@dataclass(frozen=True)
class SegmentationSample:
    """One training sample.

    image: float32 (3, H, W), ImageNet-normalized RGB.  label: uint8 (H, W), class ids, 255 unsure.
    mask: uint8 (H, W), 1 where the label is trusted.
    """

    image: np.ndarray
    label: np.ndarray
    mask: np.ndarray


def training_sample(
    image: np.ndarray,
    label: np.ndarray,
    mask: np.ndarray,
    box: CropBox,
    size: tuple[int, int],
    mirror: bool,
) -> SegmentationSample:
    """Crop by `box`, resize to `size` (height, width), mirror when asked, normalize the image.

    image: uint8 (H, W, 3) RGB, resized by Pillow's antialiased bilinear filter.  label: uint8 (H, W); mask:
    (H, W), any value above 0 is trusted; both resized by nearest, a smooth filter would invent classes.
    """
    rows = slice(box.top, box.top + box.height)
    columns = slice(box.left, box.left + box.width)
    image = resize(image[rows, columns], size, "bilinear")
    label = resize(label[rows, columns], size, "nearest")
    mask = resize((mask[rows, columns] > 0).astype(np.uint8), size, "nearest")
    if mirror:
        image, label, mask = mirrored(image), mirrored(label), mirrored(mask)
    return SegmentationSample(_normalized(image), label, mask)


def draw_training_sample(
    image: np.ndarray,
    label: np.ndarray,
    mask: np.ndarray,
    rng: np.random.Generator,
    size: tuple[int, int] = (512, 512),
    area: tuple[float, float] = (0.5, 0.75),
) -> SegmentationSample:
    """`training_sample` with the crop box and the mirroring (probability 0.5) drawn from `rng`.

    The area range is the first two of the six scales that the official code lists: they look like scales of a
    multi-scale crop but are read as this range (SSC, section 9, item 15).
    """
    box = random_resized_crop_box(image.shape[0], image.shape[1], rng, area)
    return training_sample(image, label, mask, box, size, mirror=bool(rng.random() < 0.5))


def resized_image(image: np.ndarray, size: tuple[int, int] = (512, 512)) -> np.ndarray:
    """Validation and test input: uint8 (H, W, 3) to float32 (3, *size) normalized, squeezed to `size`."""
    return _normalized(resize(image, size, "bilinear"))


def resized_label(label: np.ndarray, size: tuple[int, int] = (512, 512)) -> np.ndarray:
    """Label map of the selection metric: uint8 (H, W) to uint8 `size` by nearest."""
    return resize(label, size, "nearest")


def _normalized(image: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) RGB to float32 (3, H, W) with ImageNet mean and standard deviation.

    In float32 step by step, as the official transform: the photometric step undoes it and truncates to uint8, so the
    last bit decides whether a third of the pixels lose one grey level.
    """
    scaled = image.astype(np.float32) / np.float32(255)
    mean, std = np.asarray(IMAGENET_MEAN, np.float32), np.asarray(IMAGENET_STD, np.float32)
    return channels_first((scaled - mean) / std)
