"""Decode pictures and masks, with errors that name the file."""

from __future__ import annotations

import stat
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from wsss.data.errors import DataError
from wsss.data.palette import palette_colors, palette_fault

_DAMAGED = (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)
# Of these modes Pillow makes RGB by cutting values off at 255.
_DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
_TO_GREY = "Image.fromarray(np.array(Image.open(file)).astype('uint8')).save(file)"
COLORS_REMEDY = (
    "give the masks as they were before they went through colours, or give each pixel the class of its colour and save "
    "these class ids as 8-bit grey"
)
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


def read_image(path: Path) -> np.ndarray:
    """A picture as (H, W, 3) uint8 RGB; grey and CMYK files are converted, EXIF turns are not applied.

    Raises:
        DataError: the file is missing, truncated, not a picture, or of more than 8 bits that would be cut off.
    """
    with opened(path, "the picture cannot be decoded", "picture") as image:
        require_colors(image.mode, path)
        return np.array(image.convert("RGB"))


class LabelMap(NamedTuple):
    """A label map with what its file shows.

    Attributes:
        values: (H, W) uint8, palette indices (mode P) or grey values (mode L).
        counts: value -> its pixels, of the values that are there.
        colors: `palette_colors` of these values; empty for grey.
    """

    values: np.ndarray
    counts: dict[int, int]
    colors: dict[str, list[int]]


def read_label_map(path: Path) -> LabelMap:
    """A label map, palette or grey.

    Masks of one folder whose colours do not agree (`SharedPalette`) are no class ids either; no single one shows that.

    Raises:
        DataError: the file is missing, damaged, in colours instead of class ids, or its palette shows that the values
            are no class ids.
    """
    with opened(path, "the mask cannot be decoded", "mask") as image:
        require_class_ids(image, path)
        values = np.array(image, dtype=np.uint8)
        counts = {value: pixels for value, pixels in enumerate(image.histogram()[:256]) if pixels}
        if image.mode != "P":
            return LabelMap(values, counts, {})
        palette = np.array(image.getpalette() or [], dtype=np.uint8).reshape(-1, 3)
    if fault := palette_fault(palette, list(counts)):
        raise DataError(f"the values are no class ids: {fault}", str(path), COLORS_REMEDY)
    return LabelMap(values, counts, palette_colors(palette, list(counts)))


def read_mask(path: Path, num_classes: int, ignore_index: int = 255) -> np.ndarray:
    """A mask as (H, W) uint8, values 0..num_classes-1 and `ignore_index`.

    Raises:
        DataError: as of `read_label_map`, or with a value that is no class.
    """
    mask = read_label_map(path)
    require_classes(mask.counts, num_classes, ignore_index, path)
    return mask.values


def require_classes(counts: Mapping[int, int], num_classes: int, ignore_index: int, path: Path) -> None:
    """Raise a DataError when a mask (value -> pixels) has values that are no class and not `ignore_index`."""
    invalid = [value for value in counts if value >= num_classes and value != ignore_index]
    if invalid:
        values = ", ".join(str(value) for value in invalid[:8])
        raise DataError(
            f"the mask has values that are no class: {values} in {sum(counts[value] for value in invalid)} pixels; "
            f"expected 0..{num_classes - 1} and {ignore_index}",
            str(path),
            "check that the mask belongs to this data set and was not resampled smoothly",
        )


def read_header(path: Path, kind: str = "picture") -> tuple[str, tuple[int, int]]:
    """Pillow mode and (height, width) from the header, without decoding the pixels.

    Raises:
        DataError: the file is missing or its header is no picture's.
    """
    with opened(path, f"the header of the {kind} cannot be read", kind) as image:
        return image.mode, (image.height, image.width)


def mask_header(path: Path) -> tuple[int, int]:
    """(height, width) of a mask from its header. Raises DataError as far as the header shows what is wrong."""
    with opened(path, "the header of the mask cannot be read", "mask") as image:
        require_class_ids(image, path)
        return image.height, image.width


def require_colors(mode: str, path: Path) -> None:
    """Raise a DataError when a picture is in a Pillow mode whose values RGB would cut off."""
    if mode in _DEEP_MODES:
        raise DataError(
            f"the picture has more than 8 bits a value (mode {mode}), which would be cut off at 255",
            str(path),
            "scale it to 8 bits and save it as RGB or grey",
        )


def require_class_ids(image: ImageFile.ImageFile, path: Path) -> None:
    """Raise a DataError when a mask that was just opened does not hold class ids of 8 bits, or of a palette."""
    mode = image.mode
    expected = "expected a palette (P) or 8-bit grey (L) PNG of class ids"
    if getattr(image, "n_frames", 1) > 1:
        raise DataError(f"the mask has {getattr(image, 'n_frames', 0)} frames; {expected}", str(path), "save one frame")
    if mode == "1" or mode in _DEEP_MODES:
        raise DataError(f"the mask is in mode {mode}; {expected}", str(path), f"convert it to 8 bits: {_TO_GREY}")
    if mode not in ("P", "L"):
        raise DataError(
            f"the mask is in mode {mode}; {expected}",
            str(path),
            f"use the original palette PNG; saving a mask through an RGB image loses its class ids: {COLORS_REMEDY}",
        )
    depth = str(image.tile[0].args) if image.tile else ""
    if depth in ("L;2", "L;4"):
        # Pillow stretches them to 0..255, as the PNG standard says; programs that write class ids so do not.
        raise DataError(
            f"the mask is grey with {depth[-1]} bits, which can be read as class ids or as a share of 255; {expected}",
            str(path),
            "save the class ids with 8 bits, or with a palette",
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
def opened(path: Path, failure: str, kind: str) -> Iterator[ImageFile.ImageFile]:
    """A picture or mask, opened; what Pillow raises inside becomes a DataError that begins with `failure`."""
    try:
        status = path.stat().st_mode
        if not stat.S_ISREG(status):  # opening a pipe would wait for ever
            found = _KINDS.get(stat.S_IFMT(status), "no regular file")
            raise DataError(f"the {kind} is {found}, not a file", str(path), "put the file itself there")
        with Image.open(path) as image:
            yield image
    except Image.DecompressionBombError as error:
        remedy = "check that it is the right file; reduce it to a size that a network can be given"
        raise DataError(f"the {kind} is too large to be decoded: {error}", str(path), remedy) from error
    except PermissionError as error:
        raise DataError(f"the {kind} may not be read", str(path), "give yourself the right to read it") from error
    except FileNotFoundError as error:
        remedy = "copy it there, or take the name out of the list that has it"
        raise DataError(f"the {kind} is missing", str(path), remedy) from error
    except _DAMAGED as error:
        raise DataError(f"{failure}: {error}", str(path), "the file is damaged: fetch or copy it again") from error
