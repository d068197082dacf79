"""Maps made elsewhere, one file an image in one folder: superpixels, saliency, boundaries.

Files are checked before anything runs. Their content enters the key of the stage that reads them, their place does not.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from wsss.data.dataset import Dataset
from wsss.data.errors import SHOWN_PROBLEMS, DataError, Problem
from wsss.data.file_facts import content_facts, file_facts, sha256_of_file
from wsss.data.reading import read_header
from wsss.data.superpixels import rgb_to_ids
from wsss.data.told import Told
from wsss.pipeline import Arrays, MapStage, StageContext
from wsss.recipe import setting

_UNREAD = "the map cannot be decoded"
Fault = Literal["missing", "unreadable", "in another mode", "of another size", "with wrong values"]


@dataclass(frozen=True)
class MapKind:
    """A kind of map.

    Attributes:
        array: name of the array that the stage makes.
        suffix: of the files.
        modes: what a file may be: Pillow's modes, or the dtype of a NumPy file.
        header: file -> (mode, size) without reading the values, the last two of size the height and the width; one that
            stands before them is the number of classes. DataError when the file cannot be read.
        read: file -> the array, its last two axes the picture's size.
    """

    array: str
    suffix: str
    modes: frozenset[str]
    header: Callable[[Path], tuple[str, tuple[int, ...]]]
    read: Callable[[Path], np.ndarray]


def _read_ids(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return rgb_to_ids(np.array(picture.convert("RGB")))


def _read_grey(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture)


def _numpy_header(path: Path) -> tuple[str, tuple[int, ...]]:
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(
            f"the header of the map cannot be read: {error}", str(path), "write it with numpy.save"
        ) from error
    return str(values.dtype) if values.ndim == 3 else f"{values.dtype} with {values.ndim} axes", values.shape


def _read_boundaries(path: Path) -> np.ndarray:
    values = np.load(path, allow_pickle=False)
    if values.dtype == np.uint8:
        return values.astype(np.float32) / 255
    if values.size and not (values.min() >= 0 and values.max() <= 1):
        found = f"{values.min():g} to {values.max():g}"
        raise DataError(f"boundary values lie in {found}, expected 0 to 1", str(path), "scale them: 1 is a boundary")
    return values.astype(np.float32)


# "superpixels": colour pictures, id = R + 256 G + 65536 B -> int32 (H, W).
# "saliency": 8-bit grey pictures -> uint8 (H, W).
# "boundary": float arrays in [0, 1], one channel a class, the background first -> float32 (C, H, W). Bytes are divided
# by 255, as the official loader of such files (skimage.transform.resize) happens to do: a byte 1 becomes 0.004.
KINDS: Mapping[str, MapKind] = {
    "superpixels": MapKind("ids", ".png", frozenset({"RGB", "RGBA"}), read_header, _read_ids),
    "saliency": MapKind("saliency", ".png", frozenset({"L"}), read_header, _read_grey),
    "boundary": MapKind(
        "boundary", ".npy", frozenset({"float16", "float32", "float64", "uint8"}), _numpy_header, _read_boundaries
    ),
}


@dataclass(frozen=True)
class MapFolderConfig:
    """Maps that are read: `content` is the folder's digest and enters the key; its place does not, and the kind lies in
    the stage's name."""

    folder: Path = setting(Path(), in_key=False)
    content: str = setting("")
    kind: str = setting("superpixels", in_key=False, choices=tuple(KINDS))


def maps_from_folder(name: str, kind: str, folder: Path, dataset: Dataset, image_list: str) -> MapStage:
    """The stage `name` that reads the maps of a list, after every file was checked.

    Raises:
        DataError: naming every file that is missing, has another size than its picture, or is in another mode.
    """
    names = dataset.names(image_list)
    config = MapFolderConfig(folder, checked_digest(kind, folder, dataset, names), kind)
    return MapStage(
        name=name, version=1, config=config, reads=frozenset({"images"}), image_list=image_list, build=build_map_reader
    )


def checked_digest(kind: str, folder: Path, dataset: Dataset, names: tuple[str, ...]) -> str:
    """Hash (32 hex digits) of the content of the files of all names; raises as `maps_from_folder`."""
    paths = _paths(kind, folder, names)
    hashes = file_facts(paths.values(), "sha256", sha256_of_file, dataset.cache)
    # Decoded once for each content: a file that is cut off would end a run late. Arrays are too large for that.
    found = map_problems(kind, folder, dataset, names, decode=KINDS[kind].suffix == ".png")
    if found:
        shown = [f"  - {problem.where}: {problem.what}" for _, problem in found[:SHOWN_PROBLEMS]]
        if len(found) > SHOWN_PROBLEMS:
            shown.append(f"  ... and {len(found) - SHOWN_PROBLEMS} more")
        raise DataError(
            "\n".join([f"{len(found)} of {len(paths)} {kind} files cannot be used ({in_counts(found)}):", *shown]),
            str(folder),
            f"give a folder with one {KINDS[kind].suffix} file for each image, at the size of its picture",
        )
    digest = hashlib.sha256()
    for name, path in sorted(paths.items()):
        digest.update(f"{name} {hashes.facts[path]}\n".encode())
    return digest.hexdigest()[:32]


def map_problems(
    kind: str, folder: Path, dataset: Dataset, names: Sequence[str], decode: bool = False
) -> list[tuple[Fault, Problem]]:
    """What is wrong with the files of the names, one finding a file at most, in the order of the names.

    decode: read the values too, which finds files that are cut off; otherwise headers alone.
    """
    rule, paths = KINDS[kind], _paths(kind, folder, names)
    pictures = {name: dataset.image_path(name) for name in names}
    headers = file_facts(paths.values(), f"shape_{kind}", lambda path: list(rule.header(path)), dataset.cache)
    sizes = file_facts(pictures.values(), "picture_size", lambda path: list(read_header(path)[1]), dataset.cache)
    damaged = _undecodable(kind, headers.facts, dataset.cache) if decode else {}
    remedy = f"write <name>{rule.suffix} at the size of the picture, mode {' or '.join(sorted(rule.modes))}"
    found: list[tuple[Fault, Problem]] = []
    for name, path in paths.items():
        error = headers.errors.get(path) or sizes.errors.get(pictures[name])
        if error is not None:
            found.append(("unreadable" if path.is_file() else "missing", Problem(error.what, error.where, remedy)))
            continue
        mode, size = headers.facts[path]
        picture = sizes.facts[pictures[name]]
        if mode not in rule.modes:
            what = f"its mode is {mode}, expected {' or '.join(sorted(rule.modes))}"
            found.append(("in another mode", Problem(what, str(path), remedy)))
        elif list(size[-2:]) != list(picture):
            shown, wanted = (f"{height}x{width}" for height, width in (size[-2:], picture))
            what = f"it is {shown} (height x width), its picture {wanted}"
            found.append(("of another size", Problem(what, str(path), remedy)))
        elif len(size) > 2 and size[0] != dataset.num_classes:
            what = f"it has {size[0]} channels, the data set {dataset.num_classes} classes"
            found.append(("of another size", Problem(what, str(path), remedy)))
        elif decode and path in damaged:
            unread = damaged[path].what.startswith(_UNREAD)
            problem = Problem(damaged[path].what, str(path), remedy if unread else damaged[path].remedy)
            found.append(("unreadable" if unread else "with wrong values", problem))
    return found


def _undecodable(kind: str, paths: Iterable[Path], cache: Path | None) -> Mapping[Path, DataError]:
    """What is wrong with the values of maps; what was read once is not read again."""

    def read(path: Path) -> None:
        try:
            KINDS[kind].read(path)
        except (OSError, SyntaxError, ValueError) as damage:
            raise DataError(f"{_UNREAD}: {damage}", str(path), "copy it again") from damage

    identity = f"map-{kind}-1"
    told = Told(f"{kind} maps are read once")
    return content_facts(dict.fromkeys(paths, identity), {identity: read}, cache, told).errors


def in_counts(found: Sequence[tuple[Fault, Problem]]) -> str:
    """The findings of `map_problems` by kind: "2 missing, 1 of another size"; "nothing wrong" for none."""
    counts = Counter(fault for fault, _ in found)
    return ", ".join(f"{number} {fault}" for fault, number in counts.items()) or "nothing wrong"


def _paths(kind: str, folder: Path, names: Sequence[str]) -> dict[str, Path]:
    return {name: folder / f"{name}{KINDS[kind].suffix}" for name in names}


def build_map_reader(context: StageContext) -> Callable[[str], Arrays]:
    """Map function (config MapFolderConfig): the map of an image as the array of its kind."""
    config: MapFolderConfig = context.config
    kind = KINDS[config.kind]
    return lambda name: {kind.array: kind.read(config.folder / f"{name}{kind.suffix}")}
