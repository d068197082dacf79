import dataclasses
import pickle

import numpy as np
import pytest
from PIL import Image

from wsss.data.dataset import load_dataset
from wsss.data.errors import DataError, LabelFirewallError
from wsss.data.palette import write_palette_mask


def test_a_view_gives_what_was_declared(shapes):
    view = shapes.view({"images", "image_labels"}, "train")
    name = view.names[0]
    image = view.image(name)
    assert image.dtype == np.uint8
    assert view.image_size(name) == image.shape[:2]
    labels = view.image_labels(name)
    assert labels.dtype == np.float32
    assert labels.shape == (3,)
    assert [index + 1 for index in np.flatnonzero(labels)] == list(view.present_classes(name))
    assert len(view) == 5
    assert view.num_classes == 4


@pytest.mark.parametrize(
    ("reads", "refused"),
    [
        ({"images", "image_labels"}, ["mask"]),
        ({"masks"}, ["image", "image_labels", "present_classes"]),
        (set(), ["image", "image_size", "image_labels", "mask"]),
    ],
)
def test_what_was_not_declared_is_refused(shapes, reads, refused):
    view = shapes.view(reads, "train")
    for method in refused:
        with pytest.raises(LabelFirewallError, match=r"were asked for[\s\S]*list train[\s\S]*reads"):
            getattr(view, method)(view.names[0])


def test_a_view_without_masks_carries_no_mask_path(shapes):
    assert b"SegmentationClass" not in pickle.dumps(shapes.view({"images", "image_labels"}, "train_aug"))
    assert b"SegmentationClass" in pickle.dumps(shapes.view({"masks"}, "train_aug"))
    copy = pickle.loads(pickle.dumps(shapes.view({"images"}, "val")))
    assert copy.image(copy.names[0]).ndim == 3


def test_images_of_other_lists_are_refused(shapes):
    view = shapes.view({"images", "image_labels", "masks"}, "train")
    other = shapes.names("val")[0]
    for method in (view.image, view.image_size, view.image_labels, view.mask):
        with pytest.raises(DataError, match="not in the list"):
            method(other)
    everything = shapes.view({"images"}, None)
    assert everything.image(other).ndim == 3
    assert len(everything) == 10


def test_grey_pictures_become_rgb(voc_config, voc_root, tmp_path):
    dataset = load_dataset(voc_config, tmp_path / "home")
    name = dataset.names("train")[0]
    path = voc_root / "JPEGImages" / f"{name}.jpg"
    Image.open(path).convert("L").save(path)
    image = dataset.view({"images"}, "train").image(name)
    assert image.ndim == 3
    np.testing.assert_array_equal(image[..., 0], image[..., 2])


def test_reading_errors_name_the_file_and_the_remedy(voc_config, voc_root, tmp_path):
    dataset = load_dataset(voc_config, tmp_path / "home")
    view = dataset.view({"images", "image_labels", "masks"}, "train")
    cut, missing, resized, wild, coloured = view.names
    path = voc_root / "JPEGImages" / f"{cut}.jpg"
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(DataError, match=rf"cannot be decoded: .*truncated[\s\S]*{cut}\.jpg[\s\S]*again"):
        view.image(cut)
    (voc_root / "JPEGImages" / f"{missing}.jpg").unlink()
    with pytest.raises(DataError, match=rf"missing[\s\S]*{missing}\.jpg"):
        view.image(missing)
    masks = voc_root / "SegmentationClass"
    write_palette_mask(masks / f"{resized}.png", np.zeros((7, 9), np.uint8))
    height, width = view.image_size(resized)
    with pytest.raises(DataError, match=rf"7x9[\s\S]*{height}x{width}[\s\S]*{resized}\.png"):
        view.mask(resized)
    assert dataset.view({"masks"}, "train").image_size(resized) == (7, 9)
    write_palette_mask(masks / f"{wild}.png", np.full(view.image_size(wild), 99, np.uint8))
    with pytest.raises(DataError, match=rf"no class: 99 in [\s\S]*expected 0\.\.20 and 255[\s\S]*{wild}\.png"):
        view.mask(wild)
    Image.new("RGB", (4, 4)).save(masks / f"{coloured}.png")
    with pytest.raises(DataError, match=rf"mode RGB[\s\S]*{coloured}\.png"):
        view.mask(coloured)


def test_an_image_without_label_is_named(shapes):
    name = shapes.names("train")[1]
    labels = {other: ids for other, ids in shapes.image_labels.items() if other != name}
    view = dataclasses.replace(shapes, image_labels=labels).view({"image_labels"}, "train")
    with pytest.raises(DataError, match=rf"{name} has no image-level label"):
        view.image_labels(name)
