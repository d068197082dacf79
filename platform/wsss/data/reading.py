"""Decode pictures and masks, with errors that name the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from wsss.data.errors import DataError

_DAMAGED = (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def read_image(path: Path) -> np.ndarray:
    """A picture as (H, W, 3) uint8 RGB; grey and CMYK files are converted, EXIF turns are not applied.

    Raises:
        DataError: the file is missing, truncated or not a picture.
    """
    with _opened(path, "the picture cannot be decoded", "picture") as image:
        return np.array(image.convert("RGB"))


def read_palette_mask(path: Path) -> np.ndarray:
    """Values of a label map, (H, W) uint8: palette indices (mode P) or grey values (mode L).

    Raises:
        DataError: the file is missing, damaged, or in colours instead of class ids.
    """
    with _opened(path, "the mask cannot be decoded", "mask") as image:
        require_class_ids(image.mode, path)
        return np.array(image, dtype=np.uint8)


def read_mask(path: Path, num_classes: int, ignore_index: int = 255) -> np.ndarray:
    """A mask as (H, W) uint8, values 0..num_classes-1 and `ignore_index`.

    Raises:
        DataError: missing, damaged, in colours, or with a value that is no class.
    """
    mask = read_palette_mask(path)
    invalid = (mask >= num_classes) & (mask != ignore_index)
    if invalid.any():
        values = ", ".join(str(value) for value in np.unique(mask[invalid])[:8])
        raise DataError(
            f"the mask has values that are no class: {values} in {int(invalid.sum())} pixels; "
            f"expected 0..{num_classes - 1} and {ignore_index}",
            str(path),
            "check that the mask belongs to this data set and was not resampled smoothly",
        )
    return mask


def read_header(path: Path, kind: str = "picture") -> tuple[str, tuple[int, int]]:
    """Pillow mode and (height, width) from the header, without decoding the pixels.

    Raises:
        DataError: the file is missing or its header is no picture's.
    """
    with _opened(path, f"the header of the {kind} cannot be read", kind) as image:
        return image.mode, (image.height, image.width)


def require_class_ids(mode: str, path: Path) -> None:
    """Raise a DataError when a mask is in a Pillow mode that holds colours instead of class ids."""
    if mode not in ("P", "L"):
        raise DataError(
            f"the mask is in mode {mode}; expected a palette (P) or grey (L) PNG of class ids",
            str(path),
            "use the original palette PNG; saving a mask through an RGB image loses its class ids",
        )


def require_same_size(mask: tuple[int, int], image: tuple[int, int], mask_path: Path) -> None:
    """Raise a DataError when a mask's (height, width) is not its picture's."""
    if mask != image:
        raise DataError(
            f"the mask is {mask[0]}x{mask[1]} (height x width), its picture {image[0]}x{image[1]}",
            str(mask_path),
            "use the picture and the mask of one version of the data set",
        )


@contextmanager
def _opened(path: Path, failure: str, kind: str) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError as error:
        remedy = "copy it there, or take the name out of the list that has it"
        raise DataError(f"the {kind} is missing", str(path), remedy) from error
    except _DAMAGED as error:
        raise DataError(f"{failure}: {error}", str(path), "the file is damaged: fetch or copy it again") from error
