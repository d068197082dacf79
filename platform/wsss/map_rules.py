"""What the arrays of an image must be, by their names, which mean the same in every method.

Held wherever arrays of an image change hands: a stage reads them (`StageContext.arrays`), an official layout is taken
in or written. A map of another picture, class or size would otherwise become a number that nobody can tell is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np

from wsss.data.image_facts import ImageFacts
from wsss.errors import WsssError

Arrays = Mapping[str, np.ndarray]
Size = tuple[int, int]

# Maps with one plane for each of "keys": how many planes stand before those, and pixels to a position of the map.
# A walk may have the background in front, and belongs to one of two networks.
_CLASS_MAPS: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "high_res": ((0,), (1,)),
    "cam": ((0,), (4,)),
    "walk": ((0, 1), (4, 8)),
    "crf": ((1,), (1,)),
    "crf_low": ((1,), (1,)),
    "crf_high": ((1,), (1,)),
    "boundary": ((1,), (1,)),
    "masks": ((0,), (1,)),
}
# Raw maps of one scale of the input, "scale_<i>", have a size of their own.
_SCALE = "scale_"
# Classes of these maps are what a network finds, not what the image-level label says.
_FOUND = "masks"
# One map of the picture's size: class ids, or a value for every pixel.
_LABELS = ("label", "prediction")
# The classes of these are among the image-level label.
_LABELS_OF_TRAINING = ("label",)
_PIXELS: Mapping[str, tuple[float, float]] = {"mask": (0, 1), "saliency": (0, 255), "ids": (0, 2**31 - 1)}
# All classes of the data set, at the size of the network.
_SCORES = "scores"
_EDGE = "edge"
_EDGE_STRIDE = 4


class MapError(WsssError):
    """Maps or labels of an image are not those of its picture."""


class ImageArrays(Protocol):
    """The part of an artifact that is read here."""

    @property
    def stage(self) -> str:
        """The stage that it is of."""
        ...

    @property
    def key(self) -> str:
        """The key under which it lies."""
        ...

    def arrays(self, image: str, /) -> Arrays:
        """The arrays of an image."""
        ...


def read_arrays(artifact: ImageArrays, name: str, facts: ImageFacts) -> Arrays:
    """The arrays of an image of an artifact.

    Raises:
        MapError: naming stage, picture and values, where they do not keep the rules.
    """
    arrays = artifact.arrays(name)
    if problem := map_problem(arrays, name, facts):
        raise MapError(
            problem,
            f"artifact {artifact.stage}/{artifact.key}, picture {name}",
            f"remove it with `wsss rm {artifact.stage}/{artifact.key}`; then import files of this data set, or run the "
            "stage again",
        )
    return arrays


def map_problem(arrays: Arrays, name: str, facts: ImageFacts) -> str:
    """The first thing that is wrong with the arrays of an image, with its values; empty when nothing is."""
    return next(_problems(arrays, name, facts), "")


def transposed(shape: tuple[int, ...], size: Size) -> str:
    """`; it is transposed` where the last two axes of a shape are those of a size the other way round, else nothing."""
    return "; it is transposed" if shape[-2:] == size[::-1] and size[0] != size[1] else ""


def _problems(arrays: Arrays, name: str, facts: ImageFacts) -> Iterator[str]:
    size = facts.size(name)
    if "keys" in arrays:
        yield from _wrong_keys(arrays, facts.labels.get(name), facts)
        yield from _wrong_maps(arrays, size)
    if "size" in arrays and size is not None and arrays["size"].tolist() != list(size):
        yield f"the maps are of a picture of {tuple(arrays['size'].tolist())} (height, width), the picture is {size}"
    for array in _LABELS:
        if array in arrays:
            present = facts.labels.get(name) if array in _LABELS_OF_TRAINING else None
            yield from _wrong_labels(array, arrays[array], size, present, facts)
    for array, limits in _PIXELS.items():
        if array in arrays:
            yield from _wrong_size(array, arrays[array], size)
            yield from _outside(array, arrays[array], *limits)
    if _EDGE in arrays:
        yield from _wrong_size(_EDGE, arrays[_EDGE], size and strided(size, _EDGE_STRIDE))
        yield from _outside(_EDGE, arrays[_EDGE], 0, 1)
    if _SCORES in arrays:
        scores = arrays[_SCORES]
        if scores.ndim != 3 or len(scores) != len(facts.classes):
            yield f"{_SCORES} are {scores.shape}, expected ({len(facts.classes)}, h, w)"
        yield from _not_finite(_SCORES, scores)


def strided(size: Size, stride: int) -> Size:
    """Size of a map with a position for every `stride` pixels."""
    return -(-size[0] // stride), -(-size[1] // stride)


def _wrong_keys(arrays: Arrays, present: tuple[int, ...] | None, facts: ImageFacts) -> Iterator[str]:
    keys = arrays["keys"]
    if keys.ndim != 1 or (keys.size and keys.dtype.kind not in "iu"):
        yield f"the class ids are {keys.dtype} {keys.shape}, expected whole numbers (K,)"
        return
    found: list[int] = keys.tolist()
    if len(set(found)) < len(found):
        yield f"the class ids {found} hold one twice"
    classes = range(1, len(facts.classes))
    if present is None or _FOUND in arrays:
        if wrong := [key for key in found if key not in classes]:
            yield f"the class ids {found}: {wrong} are no classes of the data set, which go from 1 to {classes[-1]}"
    elif wrong := [key for key in found if key not in present]:
        shifted = next((shift for shift in (1, -1) if {key - shift for key in found} <= set(present)), 0)
        reason = f"; each is a label {'+' if shifted > 0 else '-'} 1" if shifted else ""
        yield (
            f"the class ids {found}: {wrong} are not among the picture's labels {list(present)} "
            f"({facts.named(present)}){reason}"
        )


def _wrong_maps(arrays: Arrays, size: Size | None) -> Iterator[str]:
    classes = arrays["keys"].size
    for array, values in arrays.items():
        if array.startswith(_SCALE):
            before, strides = (0,), ()
        elif array in _CLASS_MAPS:
            before, strides = _CLASS_MAPS[array]
        else:
            continue
        planes = [classes + more for more in before]
        sizes = {strided(size, stride) for stride in strides} if size is not None else set()
        if values.ndim != 3 or len(values) not in planes or (sizes and values.shape[1:] not in sizes):
            shown = [str(each) for each in sizes] or ["(h, w)"]
            wanted = " or ".join(f"({count}, {each[1:]}" for count in planes for each in shown)
            reason = "".join(transposed(values.shape, each) for each in sizes)
            yield f"{array} is {values.shape}, expected {wanted}: {classes} classes, a picture of {size}{reason}"
            return
        yield from _not_finite(array, values)


def _wrong_labels(
    array: str, values: np.ndarray, size: Size | None, present: tuple[int, ...] | None, facts: ImageFacts
) -> Iterator[str]:
    yield from _wrong_size(array, values, size)
    if values.dtype.kind not in "iu":
        yield f"{array} is {values.dtype}, expected whole numbers"
        return
    allowed = np.zeros(256, dtype=bool)
    allowed[list(range(len(facts.classes)) if present is None else (0, *present))] = True
    allowed[facts.ignore_index] = True
    within = (values >= 0) & (values < 256) if values.dtype != np.uint8 else None
    if (within is None or within.all()) and allowed[values].all():
        return
    wrong = [value for value in np.unique(values).tolist() if not (0 <= value < 256 and allowed[value])]
    pixels = int(np.isin(values, wrong).sum())
    if present is None or any(not 0 <= value < len(facts.classes) for value in wrong):
        yield f"{array} has {wrong[:8]} in {pixels} pixels, which are no class: 0 to {len(facts.classes) - 1}"
    yield (
        f"{array} has {wrong[:8]} in {pixels} pixels, which are not among the picture's labels {list(present or ())} "
        f"({facts.named(present or ())})"
    )


def _wrong_size(array: str, values: np.ndarray, size: Size | None) -> Iterator[str]:
    if values.ndim != 2 or (size is not None and values.shape != size):
        reason = transposed(values.shape, size) if size is not None else ""
        yield f"{array} is {values.shape}, expected {size or '(h, w)'}{reason}"


def _outside(array: str, values: np.ndarray, least: float, largest: float) -> Iterator[str]:
    if values.size and not (values.min() >= least and values.max() <= largest):  # NaN is in no range
        yield f"{array} has values from {values.min():g} to {values.max():g}, expected {least:g} to {largest:g}"


def _not_finite(array: str, values: np.ndarray) -> Iterator[str]:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        count = int((~np.isfinite(values)).sum())
        yield f"{array} holds {count} values that are not finite (NaN or infinite)"
