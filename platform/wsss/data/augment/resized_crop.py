"""A crop of random size and aspect ratio by the rule of torchvision's RandomResizedCrop, resized and mirrored."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from wsss.data.augment.color_jitter import ColorJitter, random_color_jitter
from wsss.data.transforms import IMAGENET_MEAN, IMAGENET_STD, channels_first, normalize, resize
from wsss.data.transforms import mirror as mirrored


@dataclass(frozen=True)
class CropBox:
    """A rectangle in pixels: rows top..top+height-1, columns left..left+width-1."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, array: np.ndarray) -> np.ndarray:
        """The rectangle of (H, W[, C]), a view."""
        return array[self.top : self.top + self.height, self.left : self.left + self.width]


def random_resized_crop_box(
    height: int,
    width: int,
    rng: np.random.Generator,
    area: tuple[float, float] = (0.5, 0.75),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> CropBox:
    """Draw a crop of a (height, width) image.

    Up to ten tries of an area fraction uniform in `area` and an aspect ratio (width / height) log-uniform
    in `ratio`, placed uniformly; then the largest central crop whose ratio is within `ratio`.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        target = height * width * rng.uniform(area[0], area[1])
        aspect = math.exp(rng.uniform(low, high))
        crop_width = round(math.sqrt(target * aspect))
        crop_height = round(math.sqrt(target / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(rng.integers(0, height - crop_height + 1))
            left = int(rng.integers(0, width - crop_width + 1))
            return CropBox(top, left, crop_height, crop_width)
    if width / height < ratio[0]:
        crop_height, crop_width = round(width / ratio[0]), width
    elif width / height > ratio[1]:
        crop_height, crop_width = height, round(height * ratio[1])
    else:
        crop_height, crop_width = height, width
    return CropBox((height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width)


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
    image = resize(box.cut(image), size, "bilinear")
    label = resize(box.cut(label), size, "nearest")
    mask = resize((box.cut(mask) > 0).astype(np.uint8), size, "nearest")
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

    The area range is the first two of the six scales that the official program of BECO lists: they look like scales
    of a multi-scale crop but are read as this range.
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


def resized_crop(image: np.ndarray, box: CropBox, size: int, mirror: bool) -> np.ndarray:
    """uint8 (H, W, 3): cut `box`, resize to a square of side `size` (bicubic, antialiased), mirror when asked."""
    crop = resize(np.ascontiguousarray(box.cut(image)), (size, size), "bicubic")
    return mirrored(crop) if mirror else crop


def jittered_crop(
    image: np.ndarray,
    label: np.ndarray | None,
    rng: np.random.Generator,
    size: int,
    area_min: float,
    jitter: ColorJitter,
) -> tuple[np.ndarray, np.ndarray | None]:
    """A random resized crop, mirrored half of the time, colors changed, normalized; the same crop of a label map.

    image: uint8 (H, W, 3) RGB. label: uint8 (H, W), resized by nearest, or None. area_min: smallest share of the area.
    Returns float32 (3, size, size) and uint8 (size, size) or None.
    """
    box = random_resized_crop_box(image.shape[0], image.shape[1], rng, (area_min, 1.0))
    mirror = bool(rng.random() < 0.5)
    crop = resized_crop(image, box, size, mirror)
    pixels = channels_first(normalize(random_color_jitter(crop, jitter, rng)))
    if label is None:
        return pixels, None
    labels = resize(np.ascontiguousarray(box.cut(label)), (size, size), "nearest")
    return pixels, np.ascontiguousarray(mirrored(labels) if mirror else labels)
