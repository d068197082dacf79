import dataclasses
import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from wsss.data.config import DatasetConfig
from wsss.data.dataset import Dataset, load_dataset
from wsss.data.shapes import ShapesConfig, generate_shapes, render, shape_classes

TINY = ShapesConfig(train=2, train_aug_extra=1, val=1, size=48, classes=2)


def test_an_image_depends_on_seed_and_number_but_not_on_the_counts():
    image, mask, border = render(TINY, "train", 1)
    for other in (dataclasses.replace(TINY, train=50, val=9), TINY):
        again = render(other, "train", 1)
        for first, second in zip((image, mask, border), again, strict=True):
            np.testing.assert_array_equal(first, second)
    assert not np.array_equal(image, render(dataclasses.replace(TINY, seed=1), "train", 1)[0])
    assert not np.array_equal(image, render(TINY, "val", 1)[0])


def test_objects_cover_about_a_third_and_every_class_occurs():
    config = ShapesConfig(classes=8)
    masks = [render(config, "train", index)[1] for index in range(48)]
    coverage = np.mean([(mask > 0).mean() for mask in masks])
    assert 0.25 < coverage < 0.35
    counts = np.bincount(np.concatenate([np.unique(mask) for mask in masks]), minlength=9)
    assert counts[0] == 48
    assert counts[1:].min() >= 6
    assert any(len(np.unique(mask)) > 2 for mask in masks)


def test_the_head_is_the_most_saturated_part_of_an_object():
    """The reason for the set: a small part tells the class, the larger rest is plain."""
    for index in range(6):
        image, mask, _ = render(ShapesConfig(), "train", index)
        spread = image.max(2).astype(int) - image.min(2)
        vivid = (spread > 110) & (mask > 0)
        assert 0.02 < vivid.sum() / (mask > 0).sum() < 0.5
        assert (spread[mask == 0] > 110).mean() < 0.01


def test_the_written_set_has_the_voc_layout(shapes: Dataset):
    assert {name: len(members) for name, members in shapes.lists.items()} == {
        "train": 5,
        "train_aug": 7,
        "val": 3,
    }
    assert set(shapes.lists["train"]) < set(shapes.lists["train_aug"])
    view = shapes.view({"images", "image_labels", "masks"}, "train")
    aug = shapes.view({"masks"}, "train_aug")
    for name in view.names:
        image, mask = view.image(name), view.mask(name)
        assert image.shape == (*mask.shape, 3)
        assert max(mask.shape) == 48
        assert (mask == 255).any()
        plain = aug.mask(name)
        assert not (plain == 255).any()
        np.testing.assert_array_equal(mask[mask != 255], plain[mask != 255])
        present = set(np.unique(plain).tolist()) - {0}
        assert set(view.present_classes(name)) == present
    assert shapes.label_source == "generated"


def test_without_border_the_masks_have_no_ignored_pixel(tmp_path):
    config = DatasetConfig(shapes=dataclasses.replace(TINY, ignore_border=False))
    dataset = load_dataset(config, tmp_path)
    view = dataset.view({"masks"}, "val")
    assert all(not (view.mask(name) == 255).any() for name in view.names)


def test_the_set_is_written_once_and_its_folder_names_its_configuration(tmp_path):
    folder = generate_shapes(TINY, tmp_path)
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert generate_shapes(TINY, tmp_path) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == stamps
    other = generate_shapes(dataclasses.replace(TINY, seed=3), tmp_path)
    assert other != folder
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == sorted([folder.name, other.name])
    assert shape_classes(TINY) == ("background", "disc", "square")


def _generate(home: Path) -> Path:
    return generate_shapes(TINY, home)


def test_two_processes_at_once_agree_and_leave_nothing_behind(tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        folders = pool.map(_generate, [tmp_path] * 2, chunksize=1)
    assert folders[0] == folders[1]
    assert [path.name for path in (tmp_path / "data").iterdir()] == [folders[0].name]


def test_a_write_that_fails_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("wsss.data.shapes.render", lambda *_: (_ for _ in ()).throw(RuntimeError("killed")))
    with pytest.raises(RuntimeError, match="killed"):
        generate_shapes(TINY, tmp_path)
    assert list((tmp_path / "data").iterdir()) == []
