"""Folders of official programs: what is taken in, and what is refused with the picture and its values named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wsss.data.dataset import Dataset
from wsss.data.palette import write_palette_mask
from wsss.official import (
    LayoutError,
    add_images,
    map_dictionary_reader,
    read_cam_dictionaries,
    read_scores,
    training_label_reader,
    write_map_dictionaries,
)
from wsss.store import Artifact, open_store

CLASSES = ("background", "bird", "cat", "dog", "cow")
# Class ids, from 1.
LABELS = {"a": (2, 4), "b": (1,), "c": ()}
SIZE = (10, 13)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    (tmp_path / "set" / "JPEGImages").mkdir(parents=True)
    for name in LABELS:
        Image.new("RGB", (SIZE[1], SIZE[0])).save(tmp_path / "set" / "JPEGImages" / f"{name}.jpg")
    return Dataset("voc2012", tmp_path / "set", CLASSES, {"train": tuple(LABELS)}, LABELS, "file", "file: labels")


def maps_of(name: str, size: tuple[int, int] = SIZE, background: bool = False) -> np.ndarray:
    return np.random.default_rng(ord(name)).random((len(LABELS[name]) + background, *size), dtype=np.float32)


def published(folder: Path, read: Callable[[Any], None]) -> Artifact:
    writer = open_store(str(folder)).writer("stage", "key")
    read(writer)
    return writer.publish({})


@pytest.mark.parametrize("background", [False, True])
def test_dictionaries_of_maps_go_out_and_come_back(dataset: Dataset, tmp_path: Path, background: bool) -> None:
    def arrays(name: str) -> dict[str, np.ndarray]:
        keys = np.array(LABELS[name], dtype=np.int64)
        return {"keys": keys, "maps": maps_of(name, background=background).astype(np.float16)}

    names, folder = tuple(LABELS), tmp_path / "out"
    artifact = published(tmp_path / "store", lambda writer: add_images(names, arrays, writer, dataset))
    assert write_map_dictionaries("maps", background)(artifact, dataset, folder) == 3
    content = np.load(folder / "a.npy", allow_pickle=True).item()
    assert list(content) == ([0, 2, 4] if background else [1, 3]) and next(iter(content.values())).dtype == np.float32
    with pytest.raises(LayoutError, match=r"pickles[\s\S]*np\.savez"):
        map_dictionary_reader(folder, dataset, names, background)
    for name in names:  # as the message says, the keys in another order
        d = np.load(folder / f"{name}.npy", allow_pickle=True).item()
        d = dict(reversed(d.items()))
        np.savez(folder / f"{name}.npz", keys=list(d), maps=np.array(list(d.values())))
    read = map_dictionary_reader(folder, dataset, names, background)
    for name in names:
        keys, maps = read(name)
        assert keys.tolist() == list(LABELS[name]) and np.array_equal(maps, arrays(name)["maps"])


def write_cam(folder: Path, name: str, **changed: Any) -> None:
    arrays = {
        "keys": np.array(LABELS[name], dtype=np.int64) - 1,
        "cam": maps_of(name, (3, 4)),
        "high_res": maps_of(name),
        **changed,
    }
    folder.mkdir(exist_ok=True)
    np.savez(folder / f"{name}.npz", **arrays)


WITH_NAN = np.where(np.arange(13) == 5, np.nan, maps_of("a"))
REFUSED = {
    "one-based": ({"keys": [2, 4]}, r"keys \[2, 4\].*labels \[1, 3\] \(cat, cow\); all keys are the label \+ 1"),
    "another class": ({"keys": [0, 3]}, r"keys \[0, 3\]: \[0\] are not among"),
    "out of range": ({"keys": [1, 4]}, r"\[4\] are not among.*keys go from 0 to 3"),
    "negative": ({"keys": [-1, 3]}, r"\[-1\] are not among.*keys go from 0 to 3"),
    "twice": ({"keys": [1, 1]}, r"keys \[1, 1\] hold one twice"),
    "no whole numbers": ({"keys": [1.0, 3.0]}, r"keys are float64"),
    "fewer maps": ({"high_res": maps_of("b")}, r"high_res is \(1, 10, 13\), expected \(2, 10, 13\)"),
    "at a quarter": ({"high_res": maps_of("a", (3, 4))}, r"high_res is \(2, 3, 4\), expected \(2, 10, 13\)"),
    "padded": ({"high_res": maps_of("a", (16, 16))}, r"\(2, 16, 16\), expected .* of a picture of \(10, 13\)"),
    "cam in full": ({"cam": maps_of("a")}, r"cam is \(2, 10, 13\), expected \(2, 3, 4\)"),
    "nan": ({"high_res": WITH_NAN}, "high_res holds values that are not finite"),
    "overflow": ({"high_res": maps_of("a") * 1e6}, r"high_res holds a value of 9\d+"),
    "an array short": ({"cam": np.array({"a": 1}, dtype=object)}, "cannot be read"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_a_cam_that_does_not_fit_is_refused_with_its_picture(dataset: Dataset, tmp_path: Path, fault: str) -> None:
    changed, message = REFUSED[fault]
    folder, names = tmp_path / "cam", tuple(LABELS)
    for name in names:
        write_cam(folder, name)
    artifact = published(tmp_path / "good", lambda writer: read_cam_dictionaries(folder, dataset, names, writer))
    assert artifact.arrays("a")["keys"].tolist() == [2, 4] and artifact.arrays("c")["high_res"].shape == (0, *SIZE)
    write_cam(folder, "a", **changed)
    with pytest.raises(LayoutError, match=rf"{message}[\s\S]*a\.npz"):
        published(tmp_path / "bad", lambda writer: read_cam_dictionaries(folder, dataset, names, writer))


def test_crf_scores_without_their_background_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", keys=[2, 4], maps=maps_of("a"))
    with pytest.raises(LayoutError, match=r"keys \[2, 4\] lack 0, the background"):
        map_dictionary_reader(tmp_path, dataset, ("a",), background=True)("a")
    with pytest.raises(LayoutError, match=r"2 of 3 images have no file, the first is b\.npz"):
        map_dictionary_reader(tmp_path, dataset, tuple(LABELS))


def test_the_far_negative_value_of_a_flat_map_stays_finite(dataset: Dataset, tmp_path: Path) -> None:
    """SEAM's normalization by range makes it, see `wsss.ops.cam.Merge`."""
    np.savez(tmp_path / "b.npz", keys=[0], maps=np.full((1, *SIZE), -90_000.0))
    _, maps = map_dictionary_reader(tmp_path, dataset, ("b",))("b")
    assert np.isfinite(maps).all() and maps.max() < -65_000


def test_scores_that_are_not_finite_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.full((5, 2, 2), np.inf))
    with pytest.raises(LayoutError, match=r"not finite[\s\S]*a\.npy"):
        published(tmp_path / "store", lambda writer: read_scores(tmp_path, dataset, ("a",), writer))


def test_labels_of_a_training_are_those_of_the_picture(dataset: Dataset, tmp_path: Path) -> None:
    """Background, 255 and the picture's own classes come in; anything else is named with its picture."""
    labels = {name: np.zeros(SIZE, dtype=np.uint8) for name in LABELS}
    labels["a"][:3] = 2
    labels["a"][3:5] = 4
    labels["a"][9] = 255
    labels["b"][2] = 1
    for name, label in labels.items():
        write_palette_mask(tmp_path / f"{name}.png", label)
    read = training_label_reader("label")
    artifact = published(tmp_path / "store", lambda writer: read(tmp_path, dataset, tuple(LABELS), writer))
    for name, label in labels.items():
        assert np.array_equal(artifact.arrays(name)["label"], label)

    def refused(name: str, label: np.ndarray) -> str:
        write_palette_mask(tmp_path / f"{name}.png", label)
        with pytest.raises(LayoutError) as error:
            published(tmp_path / "other", lambda writer: read(tmp_path, dataset, tuple(LABELS), writer))
        write_palette_mask(tmp_path / f"{name}.png", labels[name])
        return str(error.value)

    foreign = np.where(labels["b"] == 1, 3, labels["b"]).astype(np.uint8)
    text = refused("b", foreign)
    assert "picture b" in text and "labels [3] in 13 pixels" in text and "[1] (bird)" in text
    text = refused("c", np.full(SIZE, 21, dtype=np.uint8))
    assert "picture c" in text and "labels [21] in 130 pixels" in text and "(none); classes go from 0 to 4" in text
    assert "(5, 13)" in refused("a", labels["a"][:5]) and "a.png" in refused("a", labels["a"][:5])
    (tmp_path / "b.png").unlink()
    with pytest.raises(LayoutError, match=r"1 of 3 images have no file, the first is b\.png"):
        published(tmp_path / "other", lambda writer: read(tmp_path, dataset, tuple(LABELS), writer))
