"""Layouts of official code that methods share: folders of PNG and NumPy files, IRN's and PSA's dictionaries."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from wsss.data.dataset import Dataset
from wsss.data.palette import SharedPalette
from wsss.data.reading import COLORS_REMEDY, read_label_map
from wsss.data.view import DataView
from wsss.errors import WsssError
from wsss.map_rules import map_problem, read_arrays, transposed
from wsss.ops.cam import strided_size
from wsss.stages.cam import read_high_res
from wsss.store import Artifact, ArtifactWriter

Write = Callable[[Artifact, Dataset, Path], int]
Read = Callable[[Path, Dataset, tuple[str, ...], ArtifactWriter], None]

_SHARD = 128
_UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)
_PICKLES = "convert the folder once where you trust it: for each file d = np.load(f, allow_pickle=True).item(); "
_CAM_CONVERSION = _PICKLES + (
    "np.savez(f[:-4] + '.npz', keys=np.asarray(d['keys']), cam=np.asarray(d['cam']), high_res=d['high_res'])"
)
_MAPS_CONVERSION = _PICKLES + "np.savez(f[:-4] + '.npz', keys=list(d), maps=np.array(list(d.values())))"
_LEAST = -float(np.finfo(np.float16).max)
# Maps and scores of the official programs end at 1; a map that was not divided by its maximum meets no threshold.
_LARGEST = 1.01
_SCALED = "divide each map by its maximum, as the official program does, and write it as float32"
_SHOWN = 3
_MAP_SUFFIXES = (".npy", ".npz", ".png")


class LayoutError(WsssError):
    """Files are not in the layout of the official code."""


def write_cam_dictionaries(artifact: Artifact, dataset: Dataset, folder: Path) -> int:
    """The official dictionaries: 0-based int64 `keys` and float32 `cam` as tensors, float32 `high_res`."""

    def write(arrays: Mapping[str, np.ndarray], path: Path) -> None:
        content = {
            "keys": torch.from_numpy(arrays["keys"].astype(np.int64) - 1),
            "cam": torch.from_numpy(arrays["cam"].astype(np.float32)),
            "high_res": read_high_res(arrays),
        }
        np.save(path, np.array(content, dtype=object), allow_pickle=True)

    return write_images(artifact, dataset, folder, ".npy", write)


def write_images(
    artifact: Artifact,
    dataset: Dataset,
    folder: Path,
    suffix: str,
    write: Callable[[Mapping[str, np.ndarray], Path], Any],
) -> int:
    """Writes the arrays of every image to a file `<name><suffix>`; the number of files.

    Raises:
        MapError: the artifact holds maps that are not those of a picture.
    """
    folder.mkdir(parents=True, exist_ok=True)
    facts = dataset.image_facts(None)
    for name in artifact.images():
        write(read_arrays(artifact, name, facts), folder / f"{name}{suffix}")
    return len(artifact.images())


def read_cam_dictionaries(folder: Path, dataset: Dataset, names: tuple[str, ...], writer: ArtifactWriter) -> None:
    """Takes in the dictionaries of `write_cam_dictionaries` once they are converted.

    Raises:
        LayoutError: for pickles, and for what `checked_class_maps` refuses.
    """
    _refuse_pickles(folder, names, _CAM_CONVERSION)
    view = dataset.view({"images", "image_labels"}, None)

    def read(name: str) -> dict[str, np.ndarray]:
        path = folder / f"{name}.npz"
        keys, cam, high_res = _npz_arrays(path, ("keys", "cam", "high_res"), _CAM_CONVERSION)
        size = view.image_size(name)
        ids, checked = checked_class_maps(
            name, keys, {"high_res": (high_res, size), "cam": (cam, strided_size(size, 4))}, view, path
        )
        return {"keys": ids, **checked, "size": np.array(size, dtype=np.int64)}

    add_images(names, read, writer, dataset)


def checked_class_maps(
    name: str,
    keys: np.ndarray,
    maps: Mapping[str, tuple[np.ndarray, tuple[int, int]]],
    view: DataView,
    path: Path,
    background: bool = False,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Class ids and maps of a picture from what an official program stored, sorted by class.

    Args:
        keys: (K,), classes from 0; with `background` 0 is the background, which must be there, and classes begin at 1.
        maps: name -> (K, h, w) and the (h, w) that it must have.
        view: images and image labels.

    Returns:
        int64 (K,) class ids from 1, without the background, and each of the maps as float16.

    Raises:
        LayoutError: naming the picture and the values: keys that are doubled, no class of the data set or no label of
            the picture; maps of another number or size, not finite, or above 1.
    """
    where = f"{path}, picture {name}"
    present, first = view.present_classes(name), 0 if background else 1
    if keys.ndim != 1 or (keys.size and not np.issubdtype(keys.dtype, np.integer)):
        raise LayoutError(f"keys are {keys.dtype} {keys.shape}, expected whole numbers (K,)", where, "check the folder")
    found = keys.tolist()
    ids = [key + first for key in found]
    asked = f"{[label - first for label in present]} ({_named(present, view)})"
    if len(set(found)) < len(found):
        raise LayoutError(f"keys {found} hold one twice", where, "write one map for each class")
    if background and 0 not in ids:
        raise LayoutError(f"keys {found} lack 0, the background", where, "give the scores of the CRF, not the CAM")
    allowed = {0, *present} if background else {*present}
    if wrong := [key for key, label in zip(found, ids, strict=True) if label not in allowed]:
        reason = ""
        if not background and set(found) <= set(present):
            reason = "; all keys are the label + 1, but here the first class has key 0"
        elif not all(first <= label < view.num_classes for label in ids):
            reason = f"; keys go from 0 to {view.num_classes - 1 - first}"
        raise LayoutError(
            f"keys {found}: {wrong} are not among the picture's labels {asked}{reason}",
            where,
            "write the keys of the official program, and check that data set and image labels are those of the files",
        )
    order = np.argsort(ids)
    checked: dict[str, np.ndarray] = {}
    for array, (values, size) in maps.items():
        if values.shape != (len(found), *size):
            raise LayoutError(
                f"{array} is {values.shape}, expected {(len(found), *size)}: {len(found)} keys, of a picture of "
                f"{view.image_size(name)}{transposed(values.shape, size)}",
                where,
                "write the maps at the size that the official program writes, not padded and not reduced",
            )
        if values.dtype.kind != "f":
            raise LayoutError(f"{array} is {values.dtype}, expected real numbers in [0, 1]", where, _SCALED)
        if not np.isfinite(values).all():
            raise LayoutError(
                f"{array} holds values that are not finite (NaN or infinite)",
                where,
                "find what wrote it, and write it again",
            )
        if values.max(initial=0) > _LARGEST:
            raise LayoutError(f"{array} holds a value of {values.max():g}, expected at most 1", where, _SCALED)
        checked[array] = values[order].clip(_LEAST).astype(np.float16)
    return np.array(sorted(label for label in ids if label), dtype=np.int64), checked


def _named(labels: Sequence[int], view: DataView) -> str:
    return ", ".join(view.classes[label] for label in labels) or "none"


def write_map_dictionaries(array: str, background: bool = False) -> Write:
    """`<name>.npy`, a pickled {k: float32 (H, W)} of the array's maps, as PSA and its successors write it.

    k counts the classes from 0; with `background` the first map is the background, which is 0, and classes begin at 1.
    """

    def write(arrays: Mapping[str, np.ndarray], path: Path) -> None:
        keys = [0, *arrays["keys"].tolist()] if background else (arrays["keys"] - 1).tolist()
        content = {key: values.astype(np.float32) for key, values in zip(keys, arrays[array], strict=True)}
        np.save(path, np.array(content, dtype=object), allow_pickle=True)

    return lambda artifact, dataset, folder: write_images(artifact, dataset, folder, ".npy", write)


def map_dictionary_reader(
    folder: Path, dataset: Dataset, names: tuple[str, ...], background: bool = False
) -> Callable[[str], tuple[np.ndarray, np.ndarray]]:
    """Image name -> class ids int64 (K,) and maps float16 (K or 1 + K, H, W) of `write_map_dictionaries`, converted.

    Raises:
        LayoutError: now for pickles and missing files, then for what `checked_class_maps` refuses.
    """
    _refuse_pickles(folder, names, _MAPS_CONVERSION)
    view = dataset.view({"images", "image_labels"}, None)

    def read(name: str) -> tuple[np.ndarray, np.ndarray]:
        path = folder / f"{name}.npz"
        keys, maps = _npz_arrays(path, ("keys", "maps"), _MAPS_CONVERSION)
        size = view.image_size(name)
        if not keys.size:  # NumPy gives no shape and no type to nothing
            keys, maps = np.zeros(0, dtype=np.int64), np.zeros((0, *size))
        ids, checked = checked_class_maps(name, keys, {"maps": (maps, size)}, view, path, background)
        return ids, checked["maps"]

    return read


def _refuse_pickles(folder: Path, names: Sequence[str], conversion: str) -> None:
    if (folder / f"{names[0]}.npy").is_file() and not (folder / f"{names[0]}.npz").is_file():
        raise LayoutError(
            "the .npy files of the official code are pickles, which can run code when read, and are never loaded",
            str(folder),
            conversion,
        )
    require_files(folder, names, ".npz")


def require_files(folder: Path, names: Sequence[str], suffix: str) -> None:
    missing = [f"{name}{suffix}" for name in names if not (folder / f"{name}{suffix}").is_file()]
    if missing:
        further = f", then {', '.join(missing[1:_SHOWN])}" if len(missing) > 1 else ""
        raise LayoutError(
            f"{len(missing)} of {len(names)} images have no file, the first is {missing[0]}{further}",
            str(folder),
            f"give the folder that holds one {suffix} file for each image of the stage's list",
        )


def superfluous_files(folder: Path, names: Sequence[str]) -> list[str]:
    """Map files in a folder, or in folders right below it, that are of none of the images; sorted."""
    wanted = set(names)
    files = (path for pattern in ("*", "*/*") for path in folder.glob(pattern) if path.suffix in _MAP_SUFFIXES)
    # `<name>_<c>.png` is of an image, too.
    return sorted(path.name for path in files if not {path.stem, path.stem.rpartition("_")[0]} & wanted)


def _npz_arrays(path: Path, arrays: Sequence[str], remedy: str) -> list[np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as content:
            return [np.asarray(content[array]) for array in arrays]
    except (*_UNREADABLE, KeyError) as error:
        raise LayoutError(f"the file cannot be read: {error}", str(path), remedy) from error


def read_npy(path: Path) -> np.ndarray:
    """The real numbers of a `.npy` file, all finite. LayoutError otherwise."""
    try:
        values = np.load(path, allow_pickle=False)
    except _UNREADABLE as error:
        raise LayoutError(f"the file cannot be read: {error}", str(path), "write it with numpy.save") from error
    if not isinstance(values, np.ndarray) or values.dtype.kind != "f":
        kind = f"values of {values.dtype}" if isinstance(values, np.ndarray) else "several arrays"
        raise LayoutError(f"the file holds {kind}, expected real numbers", str(path), "write one float32 array")
    if not np.isfinite(values).all():
        raise LayoutError(
            "the file holds values that are not finite (NaN or infinite)", str(path), "find what wrote it"
        )
    return values


def write_scores(artifact: Artifact, dataset: Dataset, folder: Path) -> int:
    """`<name>.npy`, float32 (classes, h, w) of the array "scores"."""
    return write_images(
        artifact, dataset, folder, ".npy", lambda arrays, path: np.save(path, arrays["scores"].astype(np.float32))
    )


def read_scores(folder: Path, dataset: Dataset, names: tuple[str, ...], writer: ArtifactWriter) -> None:
    """Takes in the files of `write_scores`; LayoutError names the one that does not fit."""

    require_files(folder, names, ".npy")

    def read(name: str) -> dict[str, np.ndarray]:
        path = folder / f"{name}.npy"
        scores = read_npy(path)
        if scores.ndim != 3 or len(scores) != dataset.num_classes:
            raise LayoutError(
                f"scores are {scores.shape}, expected ({dataset.num_classes}, h, w)", str(path), "check the folder"
            )
        return {"scores": scores.astype(np.float32)}

    add_images(names, read, writer, dataset)


def png_writer(array: str, encode: Callable[[np.ndarray], bytes]) -> Write:
    """Writes `<name>.png` of an array; encode: array -> the file's bytes."""
    return lambda artifact, dataset, folder: write_images(
        artifact, dataset, folder, ".png", lambda arrays, path: path.write_bytes(encode(arrays[array]))
    )


def png_reader(array: str, decode: Callable[[Path], np.ndarray], class_ids: bool = False) -> Read:
    """Takes `<name>.png` in as an array of the picture's size. LayoutError if one is wrong.

    decode: file -> array. class_ids: every value is a class of the data set.
    """

    def read(folder: Path, dataset: Dataset, names: tuple[str, ...], writer: ArtifactWriter) -> None:
        require_files(folder, names, ".png")
        view = dataset.view({"images"}, None)

        def arrays(name: str) -> dict[str, np.ndarray]:
            values = decode(folder / f"{name}.png")
            if values.shape != view.image_size(name):
                what = "labels are" if class_ids else "the map is"
                reason = transposed(values.shape, view.image_size(name))
                raise LayoutError(
                    f"{what} {values.shape}, the picture {view.image_size(name)}{reason}",
                    str(folder / f"{name}.png"),
                    "use maps at the size of the pictures",
                )
            if class_ids and values.max() >= dataset.num_classes:
                raise LayoutError(
                    f"labels are up to {values.max()}, the data set has {dataset.num_classes} classes",
                    str(folder / f"{name}.png"),
                    "give predictions of this data set",
                )
            return {array: values}

        add_images(names, arrays, writer, dataset)

    return read


def label_map_decoder() -> Callable[[Path], np.ndarray]:
    """File -> class ids uint8 (H, W), palette or grey, for the files of one folder: their palettes must agree."""
    shared = SharedPalette()

    def decode(path: Path) -> np.ndarray:
        label_map = read_label_map(path)
        if conflict := shared.conflict(label_map.colors, path.name):
            raise LayoutError(conflict, str(path), COLORS_REMEDY)
        return label_map.values

    return decode


def label_map_reader(array: str) -> Read:
    """Takes `<name>.png`, palette or grey, in as class ids of the data set, of the picture's size."""

    def read(folder: Path, dataset: Dataset, names: tuple[str, ...], writer: ArtifactWriter) -> None:
        png_reader(array, label_map_decoder(), class_ids=True)(folder, dataset, names, writer)

    return read


def training_label_reader(array: str) -> Read:
    """Takes `<name>.png`, palette or grey, in as labels that a training may use: the background, classes of the
    picture's image-level label, and 255 for none.

    LayoutError names the first picture with another size or with other values, and these values.
    """

    def read(folder: Path, dataset: Dataset, names: tuple[str, ...], writer: ArtifactWriter) -> None:
        view, class_ids = dataset.view({"images", "image_labels"}, None), label_map_decoder()

        def decode(path: Path) -> np.ndarray:
            values = class_ids(path)
            present = view.present_classes(path.stem)
            found = set(np.unique(values).tolist())
            if wrong := sorted(found - {0, *present, view.ignore_index}):
                reason = ""
                if any(value >= view.num_classes for value in wrong):
                    reason = f"; classes go from 0 to {view.num_classes - 1}, {view.ignore_index} is no label"
                raise LayoutError(
                    f"labels {wrong} in {int(np.isin(values, wrong).sum())} pixels are not among the picture's labels "
                    f"{list(present)} ({_named(present, view)}){reason}",
                    f"{path}, picture {path.stem}",
                    "check that data set and image labels are those of the files",
                )
            return values

        png_reader(array, decode)(folder, dataset, names, writer)

    return read


def add_images(
    names: Sequence[str], read: Callable[[str], dict[str, np.ndarray]], writer: ArtifactWriter, dataset: Dataset
) -> None:
    """Fill an artifact with the arrays that `read` gives for each image.

    Raises:
        LayoutError: naming the picture and the values, where arrays are not those of the picture (`wsss.map_rules`).
    """
    facts = dataset.image_facts(None)

    def held(name: str) -> dict[str, np.ndarray]:
        arrays = read(name)
        if problem := map_problem(arrays, name, facts):
            raise LayoutError(problem, f"picture {name}", "check that data set and image labels are those of the files")
        return arrays

    for index, start in enumerate(range(0, len(names), _SHARD)):
        writer.add_shard(index, {name: held(name) for name in names[start : start + _SHARD]})


def encode_png(values: np.ndarray) -> bytes:
    """A PNG of grey or RGB values, uint8 (H, W) or (H, W, 3)."""
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format="PNG")
    return buffer.getvalue()


def read_png(path: Path, modes: Sequence[str]) -> np.ndarray:
    """Values of a picture as they are stored, uint8 (H, W) or (H, W, channels).

    Raises:
        LayoutError: it cannot be decoded, or its Pillow mode is another.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in modes:
                raise LayoutError(
                    f"the file's mode is {image.mode}, expected {' or '.join(modes)}",
                    str(path),
                    "give the file that the official program wrote, not a converted one",
                )
            return np.array(image)
    except (*_UNREADABLE, SyntaxError, Image.DecompressionBombError) as error:
        raise LayoutError(f"the file cannot be decoded: {error}", str(path), "copy it again") from error
