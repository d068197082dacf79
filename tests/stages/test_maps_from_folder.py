"""Maps made elsewhere: what is read, what enters the key, and what is refused with every file named."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from wsss.data.errors import DataError
from wsss.data.superpixels import ids_to_rgb
from wsss.pipeline import StageContext
from wsss.recipe import key_values
from wsss.stages.maps_from_folder import build_map_reader, maps_from_folder

NAMES = ("a", "b", "c")
SIZE = (4, 6)


@pytest.fixture
def dataset(tmp_path: Path) -> Any:
    """Three pictures of 4 x 6."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in NAMES:
        Image.new("RGB", (SIZE[1], SIZE[0])).save(folder / f"{name}.jpg")
    return SimpleNamespace(
        cache=tmp_path / "cache",
        num_classes=3,
        names=lambda image_list: NAMES,
        image_path=lambda name: folder / f"{name}.jpg",
    )


def write(kind: str, folder: Path, name: str, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A map of random values; returns what must be read."""
    rng = np.random.default_rng(ord(name))
    folder.mkdir(exist_ok=True)
    if kind == "superpixels":
        values = rng.integers(0, 1 << 24, size).astype(np.int32)
        Image.fromarray(ids_to_rgb(values)).save(folder / f"{name}.png")
    elif kind == "saliency":
        values = rng.integers(0, 256, size).astype(np.uint8)
        Image.fromarray(values).save(folder / f"{name}.png")
    else:
        values = rng.random((3, *size), dtype=np.float32)
        np.save(folder / f"{name}.npy", values)
    return values


@pytest.mark.parametrize("kind", ["superpixels", "saliency", "boundary"])
def test_maps_are_read_as_they_were_written(kind: str, dataset: Any, tmp_path: Path) -> None:
    expected = {name: write(kind, tmp_path / kind, name) for name in NAMES}
    stage = maps_from_folder("given", kind, tmp_path / kind, dataset, "train")
    context = StageContext(stage=stage.name, config=stage.config, data=cast(Any, None), inputs={}, files={})
    read = build_map_reader(context)
    for name in NAMES:
        (array,) = read(name).values()
        assert np.array_equal(array, expected[name]) and array.dtype == expected[name].dtype


@pytest.mark.parametrize("kind", ["superpixels", "saliency", "boundary"])
def test_content_enters_the_key_and_the_place_does_not(kind: str, dataset: Any, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        for name in NAMES:
            write(kind, tmp_path / folder, name)
    keys = [
        key_values(maps_from_folder("given", kind, tmp_path / folder, dataset, "train").config)
        for folder in ("one", "two")
    ]
    assert keys[0] == keys[1] and list(keys[0]) == ["content"]
    next((tmp_path / "two").glob("b.*")).unlink()
    write(kind, tmp_path / "two", "d")
    next((tmp_path / "two").glob("d.*")).rename(tmp_path / "two" / f"b{'.npy' if kind == 'boundary' else '.png'}")
    assert key_values(maps_from_folder("given", kind, tmp_path / "two", dataset, "train").config) != keys[0]


@pytest.mark.parametrize("kind", ["superpixels", "saliency", "boundary"])
def test_every_file_that_does_not_fit_is_named(kind: str, dataset: Any, tmp_path: Path) -> None:
    folder = tmp_path / kind
    write(kind, folder, "a", size=(6, 4))
    write(kind, folder, "b")
    other = "saliency" if kind == "superpixels" else "superpixels"
    if kind == "boundary":
        np.save(folder / "b.npy", np.ones((3, *SIZE), dtype=bool))
    else:
        write(other, folder, "b")
    with pytest.raises(DataError) as error:
        maps_from_folder("given", kind, folder, dataset, "train")
    text = str(error.value)
    assert f"3 of 3 {kind} files" in text
    for name, what in (
        ("a", "it is 6x4 (height x width), its picture 4x6"),
        ("b", "its mode is"),
        ("c", "the file is missing"),
    ):
        assert any(f"{folder / name}." in line and what in line for line in text.splitlines()), (name, text)


def test_a_damaged_file_and_a_pickle_are_named(dataset: Any, tmp_path: Path) -> None:
    for name in NAMES:
        write("saliency", tmp_path / "saliency", name)
        write("boundary", tmp_path / "boundary", name)
    (tmp_path / "saliency" / "b.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"1 of 3 saliency[\s\S]*b\.png: the header of the picture"):
        maps_from_folder("given", "saliency", tmp_path / "saliency", dataset, "train")
    write("saliency", tmp_path / "saliency", "b")
    cut = tmp_path / "saliency" / "c.png"
    cut.write_bytes(cut.read_bytes()[:-25])
    for _ in range(2):  # what is damaged is not remembered as sound
        with pytest.raises(DataError, match=r"1 of 3 saliency files[\s\S]*c\.png: the map cannot be decoded"):
            maps_from_folder("given", "saliency", tmp_path / "saliency", dataset, "train")
    np.save(tmp_path / "boundary" / "c.npy", np.array({"a": 1}, dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"1 of 3 boundary[\s\S]*c\.npy: the header of the map"):
        maps_from_folder("given", "boundary", tmp_path / "boundary", dataset, "train")


def test_boundaries_outside_the_unit_range_are_refused(dataset: Any, tmp_path: Path) -> None:
    for name in NAMES:
        write("boundary", tmp_path / "boundary", name)
    np.save(tmp_path / "boundary" / "a.npy", np.full((3, *SIZE), 255, dtype=np.float32))
    stage = maps_from_folder("given", "boundary", tmp_path / "boundary", dataset, "train")
    context = StageContext(stage=stage.name, config=stage.config, data=cast(Any, None), inputs={}, files={})
    with pytest.raises(DataError, match=r"255 to 255, expected 0 to 1"):
        build_map_reader(context)("a")


def test_bytes_of_boundaries_are_shares_of_255_and_every_class_has_a_channel(dataset: Any, tmp_path: Path) -> None:
    for name in NAMES:
        write("boundary", tmp_path / "boundary", name)
    np.save(tmp_path / "boundary" / "a.npy", np.arange(72, dtype=np.uint8).reshape(3, *SIZE))
    stage = maps_from_folder("given", "boundary", tmp_path / "boundary", dataset, "train")
    context = StageContext(stage=stage.name, config=stage.config, data=cast(Any, None), inputs={}, files={})
    values = build_map_reader(context)("a")["boundary"]
    assert values.dtype == np.float32 and np.array_equal(values.ravel(), np.arange(72, dtype=np.float32) / 255)
    np.save(tmp_path / "boundary" / "c.npy", np.zeros((2, *SIZE), dtype=np.float32))
    with pytest.raises(DataError, match=r"c\.npy: it has 2 channels, the data set 3 classes"):
        maps_from_folder("given", "boundary", tmp_path / "boundary", dataset, "train")
