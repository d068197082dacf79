import pickle
from pathlib import Path

import numpy as np
import pytest

from wsss.data.config import DatasetConfig
from wsss.data.dataset import Dataset, load_dataset
from wsss.data.errors import DataError
from wsss.data.voc import VOC_CLASSES
from wsss.recipe import RecipeError, key_values, load_recipe


def test_the_default_is_the_generated_set_and_is_picklable(shapes: Dataset):
    assert DatasetConfig().name == "shapes"
    copy = pickle.loads(pickle.dumps(shapes))
    assert copy == shapes
    assert copy.num_classes == 4


def test_paths_stay_out_of_keys():
    config = load_recipe(DatasetConfig, None, ["name=voc2012", "root=/somewhere", "val_list=mix_val", "shapes.size=96"])
    assert config.root == Path("/somewhere")
    values = key_values(config)
    assert values["shapes"]["size"] == 96
    assert not {"root", "val_list", "image_label_file"} & set(values)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["name=voc2013"], "voc2012"),
        (["image_label_source=official"], "is needed"),
        (["image_label_source=xml", "image_label_file=a.txt"], "would not be used"),
        (["root=/a"], "is generated"),
        (["shapes.classes=9"], r"\[2, 8\]"),
    ],
)
def test_settings_that_do_not_fit_are_refused(overrides, expected):
    with pytest.raises(RecipeError, match=expected):
        load_recipe(DatasetConfig, None, overrides)


def test_voc_layout(voc_config, tmp_path):
    dataset = load_dataset(voc_config, tmp_path / "home")
    assert dataset.classes == VOC_CLASSES
    assert {name: len(members) for name, members in dataset.lists.items()} == {"train": 5, "train_aug": 7, "val": 3}
    assert dataset.label_provenance == "file: image_labels.txt"
    assert set(dataset.image_labels) == set(dataset.names("train_aug")) | set(dataset.names("val"))


def test_lists_by_other_names_and_paths(voc_config, voc_root, tmp_path):
    lists = voc_root / "ImageSets" / "Segmentation"
    (lists / "train_aug.txt").rename(lists / "trainaug.txt")
    (lists / "mine.txt").write_text("2101_000000\n")
    (tmp_path / "other.txt").write_text("2103_000002\n\n  2103_000000  \n")
    config = DatasetConfig(name="voc2012", root=voc_root, train_list="mine", val_list=str(tmp_path / "other.txt"))
    dataset = load_dataset(config, tmp_path / "home")
    assert dataset.names("train") == ("2101_000000",)
    assert dataset.names("val") == ("2103_000002", "2103_000000")
    assert len(dataset.names("train_aug")) == 7
    assert len(dataset.names(None)) == 9  # train is a part of train_aug


def test_missing_lists(voc_config, voc_root, tmp_path):
    lists = voc_root / "ImageSets" / "Segmentation"
    (lists / "train_aug.txt").unlink()
    dataset = load_dataset(voc_config, tmp_path / "home")
    with pytest.raises(DataError, match=r"no list 'train_aug'[\s\S]*lists there: train, val[\s\S]*train_aug_list"):
        dataset.names("train_aug")
    (lists / "val.txt").unlink()
    (lists / "train.txt").write_text("2101_000000\nJPEGImages/2101_000001.jpg\n2101_000000\n")
    with pytest.raises(DataError) as caught:
        load_dataset(voc_config, tmp_path / "home")
    text = str(caught.value)
    assert "line 2: malformed line" in text
    assert "line 3: image 2101_000000 is also in line 1" in text
    assert "val.txt: the list is missing" in text
    assert "lists there: train" in text


def test_missing_roots(tmp_path, voc_root):
    config = DatasetConfig(name="voc2012", root=tmp_path / "nothing")
    with pytest.raises(DataError, match=r"missing[\s\S]*nothing[\s\S]*wsss data fetch"):
        load_dataset(config, tmp_path)
    with pytest.raises(DataError, match=r"dataset\.root=.*VOC2012"):
        load_dataset(DatasetConfig(name="voc2012", root=voc_root.parent), tmp_path)
    with pytest.raises(DataError, match="no folder JPEGImages"):
        load_dataset(DatasetConfig(name="voc2012", root=voc_root / "ImageSets"), tmp_path)
    # Without a root, the folder of `wsss data fetch` below the home is taken.
    voc_root.parent.joinpath("data").mkdir()
    voc_root.rename(voc_root.parent / "data" / "VOC2012")
    assert len(load_dataset(DatasetConfig(name="voc2012"), tmp_path).names("val")) == 3


def test_label_sources_in_the_order_of_auto(voc_root, tmp_path):
    def load(**settings) -> Dataset:
        return load_dataset(DatasetConfig(name="voc2012", root=voc_root, **settings), tmp_path / "home")

    names = load().names(None)
    (voc_root / "Annotations").mkdir()
    for name in names:
        (voc_root / "Annotations" / f"{name}.xml").write_text("<a><object><name>sofa</name></object></a>")
    (tmp_path / "mine.txt").write_text("".join(f"{name} bus\n" for name in names))
    from_file = load().image_labels
    given = load(image_label_file=tmp_path / "mine.txt")
    assert (given.label_source, given.image_labels["2101_000000"]) == ("file", (6,))
    xml = load(image_label_source="xml")
    assert (xml.label_source, xml.image_labels["2101_000000"]) == ("xml", (18,))
    masks = load(image_label_source="masks")
    assert masks.label_source == "masks"
    assert masks.image_labels == from_file
    (voc_root / "image_labels.txt").unlink()
    assert load().label_source == "xml"
    for path in (voc_root / "Annotations").iterdir():
        path.unlink()
    (voc_root / "Annotations").rmdir()
    assert load().label_source == "masks"
    with pytest.raises(DataError, match="never loaded"):
        load(image_label_source="official", image_label_file=tmp_path / "cls_labels.npy")


def test_mask_folders_of_lists(voc_config, voc_root, tmp_path):
    dataset = load_dataset(voc_config, tmp_path / "home")
    official, aug = voc_root / "SegmentationClass", voc_root / "SegmentationClassAug"
    assert dataset.mask_path("2101_000000", "train") == official / "2101_000000.png"
    assert dataset.mask_path("2101_000000", "train_aug") == aug / "2101_000000.png"
    (aug / "2101_000000.png").unlink()
    assert dataset.mask_path("2101_000000", "train_aug") == official / "2101_000000.png"
    # An official mask that is lost is never replaced by one without ignore border.
    (official / "2101_000001.png").unlink()
    assert dataset.mask_path("2101_000001", "train") == official / "2101_000001.png"
    official.rename(voc_root / "gone")
    assert dataset.mask_path("2101_000001", "train") == aug / "2101_000001.png"


@pytest.mark.parametrize(
    ("folder", "settings", "counts"),
    [
        ("voc_mini", {}, {"train": 438, "train_aug": 638, "val": 338}),
        ("voc_resized", {}, {"train": 22, "val": 228}),
        ("voc_resized", {"train_list": "mix_train", "val_list": "mix_val"}, {"train": 167, "val": 83}),
    ],
)
def test_real_data(shared_data, tmp_path, folder, settings, counts):
    root = shared_data / folder
    dataset = load_dataset(DatasetConfig(name="voc2012", root=root, **settings), tmp_path)
    assert {name: len(members) for name, members in dataset.lists.items()} == counts
    assert dataset.label_provenance == "file: image_labels.json"
    view = dataset.view({"images", "image_labels", "masks"}, "val")
    name = view.names[0]
    mask = view.mask(name)
    assert view.image(name).shape == (*view.image_size(name), 3)
    present = {int(value) for value in np.unique(mask)} - {0, 255}
    assert set(view.present_classes(name)) == present


def test_real_labels_from_masks_equal_the_label_file(shared_data, tmp_path):
    root = shared_data / "voc_resized"
    by_file = load_dataset(DatasetConfig(name="voc2012", root=root), tmp_path)
    by_masks = load_dataset(DatasetConfig(name="voc2012", root=root, image_label_source="masks"), tmp_path)
    assert by_file.image_labels == by_masks.image_labels
