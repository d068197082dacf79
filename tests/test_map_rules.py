"""Arrays of an image that are not those of its picture: refused where a stage reads them, taken in, or written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from wsss.data.dataset import Dataset
from wsss.map_rules import MapError, map_problem
from wsss.official import LayoutError, add_images, write_images
from wsss.pipeline import StageContext
from wsss.store import Artifact, open_store

CLASSES = ("background", "bird", "cat", "dog", "cow")
SIZE = (10, 13)
LABELS = {"a": (2, 4), "b": (1,), "unlabeled": ()}


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    (tmp_path / "set" / "JPEGImages").mkdir(parents=True)
    for name in LABELS:
        Image.new("RGB", (SIZE[1], SIZE[0])).save(tmp_path / "set" / "JPEGImages" / f"{name}.jpg")
    labels = {name: ids for name, ids in LABELS.items() if ids}
    lists = {"train": ("a", "b"), "test": ("unlabeled",)}
    return Dataset("voc2012", tmp_path / "set", CLASSES, lists, labels, "file", "file: labels")


def full(planes: int, value: float = 0.5, size: tuple[int, int] = SIZE, dtype: Any = np.float16) -> np.ndarray:
    return np.full((planes, *size), value, dtype=dtype)


def label(*values: int, dtype: Any = np.uint8) -> np.ndarray:
    found = np.zeros(SIZE, dtype=dtype)
    found.flat[: len(values)] = values
    return found


KEYS = np.array([2, 4])
RIGHT: dict[str, dict[str, np.ndarray]] = {
    "cam of scales": {
        "keys": KEYS,
        "cam": full(2, size=(3, 4)),
        "scale_0": full(2, size=(5, 7)),
        "size": np.array(SIZE),
    },
    "cam": {"keys": KEYS, "high_res": full(2)},
    "cam of 8 bits": {"keys": KEYS, "high_res": full(2, 200, dtype=np.uint8)},
    "some of the classes": {"keys": KEYS[1:], "high_res": full(1)},
    "no class": {"keys": KEYS[:0], "high_res": full(0)},
    "flat map": {"keys": KEYS, "high_res": full(2, -65504)},
    "walk at 4": {"keys": KEYS, "walk": full(2, size=(3, 4))},
    "walk at 8": {"keys": KEYS, "walk": full(3, size=(2, 2))},
    "crf": {"keys": KEYS, "crf_low": full(3), "crf_high": full(3)},
    "boundary": {"keys": KEYS, "boundary": full(3, 255, dtype=np.uint8)},
    "classes that a network finds": {"keys": np.array([1, 2]), "masks": full(2), "score": np.ones(4)},
    "label": {"label": label(0, 2, 4, 255)},
    "label of 64 bits": {"label": label(0, 2, 4, 255, dtype=np.int64)},
    "prediction": {"prediction": label(0, 1, 3)},
    "mask": {"mask": label(0, 1)},
    "saliency": {"saliency": label(0, 255)},
    "superpixels": {"ids": label(0, 300, dtype=np.int32)},
    "scores": {"scores": full(5, -7, size=(4, 4))},
    "edge": {"edge": full(1, size=(3, 4))[0]},
    "something else": {"confusion": np.array([np.nan])},
}
WRONG: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "a label + 1": (
        {"keys": np.array([3, 5]), "high_res": full(2)},
        r"class ids \[3, 5\]: \[3, 5\] are not among the picture's labels \[2, 4\] \(cat, cow\); each is a label \+ 1",
    ),
    "a label - 1": ({"keys": np.array([1, 3]), "cam": full(2, size=(3, 4))}, r"\[1, 3\] are not among.* a label - 1"),
    "another class": ({"keys": np.array([1, 2]), "high_res": full(2)}, r"\[1\] are not among the picture's labels"),
    "twice": ({"keys": np.array([2, 2]), "high_res": full(2)}, r"\[2, 2\] hold one twice"),
    "no numbers": ({"keys": np.array([2.0, 4.0]), "high_res": full(2)}, "class ids are float64"),
    "out of range": ({"keys": np.array([5]), "masks": full(1)}, r"\[5\] are no classes .* from 1 to 4"),
    "a quarter": ({"keys": KEYS, "high_res": full(2, size=(3, 4))}, r"\(2, 3, 4\), expected \(2, 10, 13\)"),
    "padded": ({"keys": KEYS, "high_res": full(2, size=(16, 16))}, r"\(2, 16, 16\), expected \(2, 10, 13\)"),
    "transposed": ({"keys": KEYS, "high_res": full(2, size=(13, 10))}, r"\(2, 13, 10\).*it is transposed"),
    "transposed small": ({"keys": KEYS, "cam": full(2, size=(4, 3))}, r"\(2, 4, 3\), expected \(2, 3, 4\).*transposed"),
    "too few maps": ({"keys": KEYS, "walk": full(1, size=(3, 4))}, r"walk is \(1, 3, 4\)"),
    "no background": ({"keys": KEYS, "crf_low": full(2)}, r"crf_low is \(2, 10, 13\), expected \(3, 10, 13\)"),
    "nan": ({"keys": KEYS, "high_res": full(2, np.nan)}, "high_res holds 260 values that are not finite"),
    "infinite": ({"keys": KEYS, "scale_0": full(2, np.inf, (5, 7))}, "scale_0 holds 70 values that are not finite"),
    "of another picture": (
        {"keys": KEYS, "size": np.array([9, 9])},
        r"a picture of \(9, 9\).*the picture is \(10, 13\)",
    ),
    "label of another class": (
        {"label": label(0, 3)},
        r"label has \[3\] in 1 pixels, which are not among .*cat, cow",
    ),
    "label without a class": (
        {"label": label(0, 21, 254)},
        r"label has \[21, 254\] in 2 pixels, which are no class",
    ),
    "negative label": ({"label": label(0, -1, dtype=np.int16)}, r"label has \[-1\] in 1 pixels"),
    "label of 300": ({"prediction": label(0, 300, dtype=np.int32)}, r"prediction has \[300\] in 1 pixels"),
    "label in colours": ({"label": np.zeros((*SIZE, 3), np.uint8)}, r"label is \(10, 13, 3\)"),
    "label of numbers": ({"label": np.zeros(SIZE)}, "label is float64, expected whole numbers"),
    "transposed label": ({"label": label(0).T}, r"label is \(13, 10\), expected \(10, 13\); it is transposed"),
    "mask of 255": ({"mask": label(0, 255)}, r"mask has values from 0 to 255, expected 0 to 1"),
    "small saliency": ({"saliency": label(0)[:5]}, r"saliency is \(5, 13\)"),
    "negative ids": ({"ids": label(0, -2, dtype=np.int32)}, "ids has values from -2 to 0"),
    "too few scores": ({"scores": full(4, size=(4, 4))}, r"scores are \(4, 4, 4\), expected \(5, h, w\)"),
    "nan scores": ({"scores": full(5, np.nan, (4, 4))}, "scores holds 80 values that are not finite"),
    "nan edge": ({"edge": full(1, np.nan, (3, 4))[0]}, "edge has values from nan to nan"),
}


@pytest.mark.parametrize("kind", RIGHT)
def test_what_stages_make_is_right(dataset: Dataset, kind: str) -> None:
    assert map_problem(RIGHT[kind], "a", dataset.image_facts("train")) == ""


def published(folder: Path, arrays: dict[str, np.ndarray]) -> Artifact:
    writer = open_store(str(folder)).writer("maps", "0" * 32)
    writer.add_shard(0, {"a": arrays})
    return writer.publish({})


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_map_is_refused_by_every_reader_and_writer(dataset: Dataset, tmp_path: Path, kind: str) -> None:
    arrays, message = WRONG[kind]
    artifact = published(tmp_path / "store", arrays)
    context = StageContext("stage", None, cast(Any, None), {"cam": artifact}, {}, facts=dataset.image_facts("train"))
    with pytest.raises(MapError, match=rf"{message}[\s\S]*maps/0000.*picture a\n.*wsss rm maps/0000"):
        context.arrays("cam", "a")
    with pytest.raises(MapError, match=message):
        write_images(artifact, dataset, tmp_path / "out", ".npy", lambda arrays, path: None)
    with pytest.raises(LayoutError, match=rf"{message}[\s\S]*picture a"):
        add_images(("a",), lambda name: arrays, open_store(str(tmp_path / "other")).writer("maps", "1" * 32), dataset)


def test_a_picture_without_a_label_or_a_file_is_held_to_what_is_known(dataset: Dataset) -> None:
    facts = dataset.image_facts(None)
    assert map_problem({"keys": np.array([1, 4]), "high_res": full(2)}, "unlabeled", facts) == ""
    assert "no classes of the data set" in map_problem({"keys": np.array([0])}, "unlabeled", facts)
    assert map_problem({"keys": np.array([1]), "high_res": full(1, size=(3, 3))}, "absent", facts) == ""
