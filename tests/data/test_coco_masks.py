import numpy as np
import pytest
from tests.data.coco_set import annotation, edit, name_of, write_coco

from wsss.data.coco import instances_file
from wsss.data.coco_instances import InstancesSummary, summarize_instances
from wsss.data.coco_masks import make_masks
from wsss.data.config import DatasetConfig
from wsss.data.dataset import load_dataset
from wsss.data.errors import DataError
from wsss.data.reading import read_label_map


def test_made_masks_are_the_reference_masks_pixel_for_pixel(shared_data, tmp_path):
    """Masks of real annotations (polygons and crowd run lengths) against those made with the mask API's rule."""
    root = shared_data / "coco_mini"
    dataset = load_dataset(DatasetConfig(name="coco2014", root=root, mask_source="instances"), tmp_path)
    compared = 0
    for list_name, split in (("train", "train2014"), ("val", "val2014")):
        view = dataset.view({"masks"}, list_name)
        for name in view.names:
            reference = read_label_map(root / "SegmentationClass" / split / f"{name}.png").values
            np.testing.assert_array_equal(view.mask(name), reference, err_msg=name)
            compared += 1
    assert compared == 98


@pytest.fixture
def made(tmp_path):
    root = write_coco(tmp_path / "coco")
    return DatasetConfig(name="coco2014", root=root), root, tmp_path / "home"


def test_masks_are_made_when_asked_for_and_once(made):
    config, _, home = made
    dataset = load_dataset(config, home)
    folder = home / "data" / "coco2014-masks"
    assert not folder.exists()
    seen: list[tuple[int, int]] = []
    dataset.prepare_masks("train", lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    made_files = sorted(folder.rglob("*.png"))
    assert len(made_files) == 3
    seen.clear()
    dataset.prepare_masks("train", lambda done, total: seen.append((done, total)))
    assert seen == []
    # An interrupted step makes what is missing, and nothing else.
    stamps = {path: path.stat().st_mtime_ns for path in made_files[1:]}
    made_files[0].unlink()
    assert dataset.view({"masks"}, "train").mask(made_files[0].stem).max() > 0
    assert {path: path.stat().st_mtime_ns for path in made_files[1:]} == stamps


def test_other_annotations_are_other_masks(made):
    config, root, home = made
    before = load_dataset(config, home)
    digest = before.digest("train", {"masks"})
    name = name_of("train2014", 25)
    mask = before.view({"masks"}, "train").mask(name)
    edit(root, "train2014", lambda content: content["annotations"][0].update(category_id=17))
    after = load_dataset(config, home)
    assert after.mask_path(name, "train") != before.mask_path(name, "train")
    assert after.digest("train", {"masks"}) != digest
    assert (after.view({"masks"}, "train").mask(name) != mask).sum() == 64
    assert after.mask_path(name_of("val2014", 42), "val") == before.mask_path(name_of("val2014", 42), "val")
    np.testing.assert_array_equal(before.view({"masks"}, "train").mask(name), mask)


def test_annotations_that_cannot_be_painted_are_all_named(made):
    _, root, home = made
    path = instances_file(root, "train2014")
    sizes = InstancesSummary.of(summarize_instances(path)).sizes
    edit(root, "train2014", lambda content: content["annotations"].append(annotation(8, 36, 12, [[0, 0, 1, 1]], 1.0)))
    edit(root, "train2014", lambda content: content["annotations"][2].update(segmentation=[]))
    with pytest.raises(DataError, match=r"2 problems[\s\S]*000030[\s\S]*no polygon[\s\S]*000036[\s\S]*category id 12"):
        make_masks(path, sizes, sizes, lambda name: home / f"{name}.png")
    assert len(list(home.glob("*.png"))) == 2
