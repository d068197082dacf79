import dataclasses
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from wsss.data.dataset import Dataset, load_dataset
from wsss.data.errors import DataError
from wsss.data.file_facts import file_facts, sha256_of_file
from wsss.data.palette import write_palette_mask
from wsss.data.reading import read_label_map
from wsss.weights import file_digest

EVERYTHING = frozenset({"images", "image_labels", "masks"})


def _age(root: Path) -> None:
    """Old files: what changed in the last two seconds is never cached."""
    for path in root.rglob("*.*"):
        os.utime(path, (1_600_000_000, 1_600_000_000))


def test_digests_do_not_depend_on_the_place_but_on_the_content(voc_config, voc_root, tmp_path):
    dataset = load_dataset(voc_config, tmp_path / "home")
    before = dataset.digest("train", EVERYTHING)
    assert len(before) == 32
    shutil.copytree(voc_root, tmp_path / "elsewhere" / "copy")
    moved = load_dataset(dataclasses.replace(voc_config, root=tmp_path / "elsewhere" / "copy"), tmp_path / "other_home")
    assert moved.digest("train", EVERYTHING) == before
    name = moved.names("train")[2]
    path = moved.mask_path(name, "train")
    write_palette_mask(path, np.zeros_like(read_label_map(path).values))
    assert moved.digest("train", EVERYTHING) != before
    assert moved.digest("train", {"images", "image_labels"}) == dataset.digest("train", {"images", "image_labels"})


def test_each_need_and_list_has_its_own_digest(shapes: Dataset):
    digests = [
        shapes.digest(list_name, reads)
        for list_name in ("train", "val", None)
        for reads in (set(), {"images"}, {"image_labels"}, {"masks"}, {"images", "masks"})
    ]
    assert len(set(digests)) == len(digests)
    # train_aug has masks of its own, so that it differs from train in its masks even for the same names.
    same = dataclasses.replace(shapes, lists={**shapes.lists, "train_aug": shapes.lists["train"]})
    assert same.digest("train_aug", {"images"}) == same.digest("train", {"images"})
    assert same.digest("train_aug", {"masks"}) != same.digest("train", {"masks"})


def test_labels_enter_by_content_and_source(shapes: Dataset):
    before = shapes.digest("train", {"image_labels"})
    name = shapes.names("train")[0]
    other = {**shapes.image_labels, name: (1, 2, 3)}
    assert dataclasses.replace(shapes, image_labels=other).digest("train", {"image_labels"}) != before
    assert dataclasses.replace(shapes, label_source="masks").digest("train", {"image_labels"}) != before
    renamed = dataclasses.replace(shapes, label_provenance="generated, but in other words")
    assert renamed.digest("train", {"image_labels"}) == before
    without = {key: value for key, value in shapes.image_labels.items() if key != name}
    with pytest.raises(DataError, match=rf"{name} has no image-level label"):
        dataclasses.replace(shapes, image_labels=without).digest("train", {"image_labels"})


def test_missing_files_are_all_named(voc_config, voc_root, tmp_path):
    dataset = load_dataset(voc_config, tmp_path / "home")
    names = dataset.names("train")
    for name in names[:2]:
        (voc_root / "JPEGImages" / f"{name}.jpg").unlink()
    with pytest.raises(DataError) as caught:
        dataset.digest("train", {"images"})
    assert all(f"{name}.jpg" in str(caught.value) for name in names[:2])
    assert "2 problems" in str(caught.value)
    with pytest.raises(DataError, match="no list 'test'"):
        dataset.digest("test", {"images"})


def test_the_second_digest_reads_no_file(voc_config, voc_root, tmp_path, monkeypatch):
    _age(voc_root)
    dataset = load_dataset(voc_config, tmp_path / "home")
    before = dataset.digest("train_aug", EVERYTHING)
    monkeypatch.setattr("wsss.data.dataset.sha256_of_file", lambda path: pytest.fail(f"{path} was read again"))
    assert dataset.digest("train_aug", EVERYTHING) == before


def test_facts_are_made_anew_when_size_or_time_change(tmp_path):
    path, calls = tmp_path / "files" / "a", []
    path.parent.mkdir()
    path.write_text("one")
    _age_file(path, 100)

    def compute(found: Path) -> str:
        calls.append(found)
        return found.read_text()

    def fact() -> str:
        return file_facts([path, path], "text", compute, tmp_path / "cache").facts[path]

    assert [fact(), fact()] == ["one", "one"]
    assert len(calls) == 1
    path.write_text("two")
    _age_file(path, 50)
    assert fact() == "two"
    path.write_text("three")
    _age_file(path, 50)
    assert fact() == "three"
    assert len(calls) == 3
    assert file_facts([path], "another", lambda _: 1, tmp_path / "cache").facts == {path: 1}


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path):
    """Written again within one tick of the clock and of the same size, it would look unchanged."""
    path = tmp_path / "a"
    path.write_text("one")
    stamp = time.time_ns()
    os.utime(path, ns=(stamp, stamp))
    assert file_facts([path], "text", Path.read_text, tmp_path / "cache").facts[path] == "one"
    path.write_text("two")
    os.utime(path, ns=(stamp, stamp))
    assert file_facts([path], "text", Path.read_text, tmp_path / "cache").facts[path] == "two"


def test_a_damaged_cache_costs_time_and_nothing_else(tmp_path):
    path = tmp_path / "files" / "a"
    path.parent.mkdir()
    path.write_text("one")
    _age_file(path, 100)
    file_facts([path], "text", Path.read_text, tmp_path / "cache")
    (stored,) = (tmp_path / "cache").rglob("*.json")
    for damage in ("{", "[]", '{"files": 3}', '{"files": {"a": 3, "b": [1]}}', '{"files": {"a": []}}'):
        stored.write_text(damage)
        assert file_facts([path], "text", Path.read_text, tmp_path / "cache").facts[path] == "one"


def test_file_digest(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_digest(tmp_path / "a") == sha256_of_file(tmp_path / "a") == known
    with pytest.raises(DataError, match=r"is missing[\s\S]*missing\.pth"):
        file_digest(tmp_path / "missing.pth")


def _age_file(path: Path, seconds: int) -> None:
    stamp = int(time.time()) - seconds
    os.utime(path, (stamp, stamp))
