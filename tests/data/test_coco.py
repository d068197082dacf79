import json
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image
from tests.data.coco_set import edit, name_of, write_coco

from wsss.data.check import check_dataset, preflight, summarize_dataset
from wsss.data.coco_categories import COCO_CLASSES
from wsss.data.config import DatasetConfig
from wsss.data.dataset import Dataset, load_dataset
from wsss.data.errors import DataError, LabelFirewallError
from wsss.data.firewall import forbid_mask_reading
from wsss.data.palette import write_palette_mask
from wsss.recipe import RecipeError, load_recipe

TRAIN = [name_of("train2014", number) for number in (25, 30, 34, 36)]
VAL = [name_of("val2014", number) for number in (42, 73)]
EVERYTHING = {"images", "image_labels", "masks"}


@pytest.fixture
def coco_root(tmp_path):
    return write_coco(tmp_path / "coco")


@pytest.fixture
def load(coco_root, tmp_path):
    def load(**settings) -> Dataset:
        return load_dataset(DatasetConfig(name="coco2014", root=coco_root, **settings), tmp_path / "home")

    return load


def test_lists_and_labels_come_from_the_instances(load):
    dataset = load()
    assert dataset.classes == COCO_CLASSES
    # Without annotation: left out. With crowd regions alone: labeled, because the mask shows them.
    assert dataset.lists == {"train": tuple(TRAIN[:3]), "val": tuple(VAL)}
    assert dataset.image_labels == {TRAIN[0]: (1, 17), TRAIN[1]: (80,), TRAIN[2]: (1,), VAL[0]: (17,), VAL[1]: (57,)}
    assert (dataset.label_source, dataset.files.mask_provenance[:23]) == ("instances", "made from the instances")
    view = dataset.view(EVERYTHING, "train")
    assert pickle.loads(pickle.dumps(dataset)) == dataset
    view = pickle.loads(pickle.dumps(view))
    for name in view.names:
        assert view.image(name).shape == (24, 32, 3)  # one of them is grey
        present = set(np.unique(view.mask(name)).tolist()) - {0}
        assert present == set(view.present_classes(name))
    assert set(dataset.lists) == {"train", "val"}


def test_list_files_and_all_images(load, coco_root, tmp_path):
    assert load(train_list="all").names("train") == tuple(TRAIN)
    assert load(train_list="all").view(EVERYTHING, "train").mask(TRAIN[3]).max() == 0
    (tmp_path / "mine.txt").write_text("000000000034\nCOCO_train2014_000000000025\n")
    assert load(train_list=str(tmp_path / "mine.txt")).names("train") == (TRAIN[2], TRAIN[0])
    (coco_root / "ImageSets").mkdir()
    (coco_root / "ImageSets" / "one.txt").write_text("73\n")
    assert load(val_list="one").names("val") == (VAL[1],)
    (coco_root / "ImageSets" / "one.txt").write_text("2007_000032\n")
    with pytest.raises(DataError, match="no name of a COCO 2014 picture"):
        load(val_list="one")
    with pytest.raises(DataError, match=r"no list 'train_aug'[\s\S]*lists there: train, val"):
        load().names("train_aug")


def test_given_masks_in_each_layout(load, coco_root):
    made = load().view({"masks"}, "val")
    masks = {name: made.mask(name) for name in VAL}
    for place in ("SegmentationClass/val2014/{}", "SegmentationClass/{}", "coco_seg_anno/{}"):
        for name in VAL:
            stem = name[-12:] if "anno" in place else name
            path = coco_root / (place.format(stem) + ".png")
            path.parent.mkdir(parents=True, exist_ok=True)
            write_palette_mask(path, np.where(masks[name] == 0, 255, masks[name]).astype(np.uint8))
        dataset = load()
        assert dataset.files.mask_provenance == f"given: {place.split('/')[0]}"
        assert (dataset.view(EVERYTHING, "val").mask(VAL[0]) == 255).any()
        # Given masks are never completed by made ones.
        with pytest.raises(DataError, match="mask is missing"):
            preflight(dataset, "train", {"masks"})
        assert load(mask_source="instances").view({"masks"}, "val").mask(VAL[0]).max() == 17
        shutil.rmtree(coco_root / place.split("/")[0])
    with pytest.raises(DataError, match="missing"):
        preflight(load(mask_source="folder"), "val", {"masks"})


def test_label_sources(load, coco_root, tmp_path):
    instances = load()
    masks = load(image_label_source="masks")
    assert (masks.label_source, masks.image_labels) == ("masks", instances.image_labels)
    names = {name: [COCO_CLASSES[label] for label in labels] for name, labels in instances.image_labels.items()}
    (tmp_path / "labels.json").write_text(json.dumps({**names, VAL[0]: ["toothbrush"]}))
    assert load(image_label_file=tmp_path / "labels.json").image_labels[VAL[0]] == (80,)
    # Without instances: labels and lists of the label files, and masks must be given.
    for split in ("train2014", "val2014"):
        (coco_root / "annotations" / f"instances_{split}.json").unlink()
        part = {name: words for name, words in names.items() if split in name}
        (coco_root / "annotations" / f"image_labels_{split}.json").write_text(json.dumps({**part, "x": []}))
    dataset = load()
    assert (dataset.label_source, dataset.lists) == ("file", instances.lists)
    assert dataset.image_labels == instances.image_labels
    with pytest.raises(DataError, match=r"masks are to be made[\s\S]*SegmentationClass"):
        load(mask_source="instances")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train_aug_list=a", "no train_aug list"),
        ("image_label_source=xml", "xml is of VOC"),
        ("mask_source=png", "instances"),
    ],
)
def test_settings_of_other_data_sets_are_refused(override, expected):
    with pytest.raises(RecipeError, match=expected):
        load_recipe(DatasetConfig, None, ["name=coco2014", override])


def test_settings_of_coco_are_refused_elsewhere():
    with pytest.raises(RecipeError, match="is of coco2014"):
        load_recipe(DatasetConfig, None, ["name=voc2012", "mask_source=instances"])
    with pytest.raises(RecipeError, match="is of coco2014"):
        load_recipe(DatasetConfig, None, ["name=shapes", "image_label_source=instances"])


def test_missing_roots(coco_root, tmp_path):
    for root, expected in (
        (tmp_path / "nothing", "wsss data fetch coco2014"),
        (tmp_path, f"set dataset.root={coco_root}"),
        (coco_root / "annotations", "no folder train2014"),
    ):
        with pytest.raises(DataError, match=expected):
            load_dataset(DatasetConfig(name="coco2014", root=root), tmp_path / "home")


def test_the_firewall_covers_instances_given_and_made_masks(load, coco_root):
    dataset = load()
    made = dataset.view({"masks"}, "train")
    given = coco_root / "SegmentationClass" / "train2014"
    given.mkdir(parents=True)
    write_palette_mask(given / f"{TRAIN[0]}.png", made.mask(TRAIN[0]))
    training = dataset.view({"images", "image_labels"}, "train")
    assert b"masks" not in pickle.dumps(training.images) and b"instances" not in pickle.dumps(training)
    with pytest.raises(LabelFirewallError), forbid_mask_reading(dataset.mask_folders):
        for name in training.names:
            assert training.image(name).any() and training.image_labels(name).any()
        for path in (
            coco_root / "annotations" / "instances_train2014.json",
            given / f"{TRAIN[0]}.png",
            dataset.mask_path(TRAIN[0], "train"),
        ):
            with pytest.raises(LabelFirewallError):
                path.read_bytes()
        with pytest.raises(LabelFirewallError):
            made.mask(TRAIN[0])


def test_check_of_a_sound_set(load):
    dataset = load()
    assert check_dataset(dataset) == []
    summary = summarize_dataset(dataset)
    assert [(one.images, one.full_count, one.masks, one.labeled) for one in summary.lists] == [
        (3, 82081, 3, 3),
        (2, 40137, 2, 2),
    ]


def test_check_names_every_fault(coco_root, tmp_path):
    (coco_root / "train2014" / f"{TRAIN[0]}.jpg").unlink()
    Image.new("RGB", (30, 24)).save(coco_root / "train2014" / f"{TRAIN[1]}.jpg")
    (coco_root / "val2014" / f"{VAL[0]}.jpg").write_bytes(b"no picture")
    edit(coco_root, "val2014", lambda content: content["annotations"][1].update(category_id=91))
    (tmp_path / "list.txt").write_text(f"{TRAIN[0]}\n{TRAIN[1]}\n{name_of('train2014', 77)}\n")
    config = DatasetConfig(name="coco2014", root=coco_root, train_list=str(tmp_path / "list.txt"))
    texts = [str(problem) for problem in check_dataset(config, tmp_path / "home")]
    for expected in (
        f"{TRAIN[0]}.jpg (list train): the picture is missing",
        "the picture is 24x30 (height x width), its annotations are for 24x32",
        f"{VAL[0]}.jpg (list val): the picture cannot be decoded",
        f"annotation 7 of {VAL[1]}: unknown category id 91",
        f"{name_of('train2014', 77)} has no image-level label",
        f"{name_of('train2014', 77)}.jpg (list train): the picture is missing",
        f"{name_of('train2014', 77)}.png (list train): the mask is missing",
    ):
        assert [text for text in texts if expected in text], (expected, texts)


def test_real_data(shared_data, tmp_path):
    dataset = load_dataset(DatasetConfig(name="coco2014", root=shared_data / "coco_mini"), tmp_path)
    problems = check_dataset(dataset)
    assert not [problem for problem in problems if problem.severity == "error"]
    assert [problem.what for problem in problems] == ["19 pictures: its colour profile is not sRGB and is not applied"]
    assert {name: len(members) for name, members in dataset.lists.items()} == {"train": 65, "val": 33}
    view = dataset.view(EVERYTHING, "train")
    assert view.image("COCO_train2014_000000000086").shape == (*view.image_size("COCO_train2014_000000000086"), 3)
    by_file = {}
    for split in ("train2014", "val2014"):
        file = shared_data / "coco_mini" / "annotations" / f"image_labels_{split}.json"
        given = load_dataset(
            DatasetConfig(name="coco2014", root=shared_data / "coco_mini", image_label_file=file), tmp_path
        )
        by_file.update(given.image_labels)
    assert by_file == dataset.image_labels
    masks = DatasetConfig(name="coco2014", root=shared_data / "coco_mini", image_label_source="masks")
    assert load_dataset(masks, tmp_path).image_labels == dataset.image_labels
