import json

import numpy as np
import pytest

from wsss.data import transforms
from wsss.data.transforms import CropBox


def test_normalize_is_the_plain_formula():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    plain = (image / 255.0 - np.array(transforms.IMAGENET_MEAN)) / np.array(transforms.IMAGENET_STD)
    result = transforms.normalize(image)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, plain, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(transforms.denormalize(result), image)
    with pytest.raises(ValueError, match="uint8"):
        transforms.normalize(image.astype(np.float32))


@pytest.mark.parametrize(
    ("height", "width", "long_side", "expected"),
    [
        (375, 500, 320, (240, 320)),
        (500, 333, 640, (640, 426)),
        (4, 2, 5, (5, 2)),
        (4, 2, 7, (7, 4)),
        (300, 1, 30, (30, 1)),
    ],
)
def test_resize_long_rounds_half_to_even(height, width, long_side, expected):
    image = np.zeros((height, width, 3), np.uint8)
    assert transforms.resize_long(image, long_side, "bicubic").shape[:2] == expected


def test_resize_keeps_large_ids_and_the_unchanged_array():
    ids = np.array([[70000, 1], [2, 16_000_000]], dtype=np.int32)
    assert transforms.resize(ids, (2, 2), "nearest") is ids
    bigger = transforms.resize(ids, (4, 4), "nearest")
    assert bigger.dtype == np.int32
    np.testing.assert_array_equal(bigger, ids.repeat(2, 0).repeat(2, 1))
    with pytest.raises(ValueError, match="int64"):
        transforms.resize(ids.astype(np.int64), (4, 4), "nearest")


def test_rescale_pair_keeps_label_values():
    image = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    labels = np.full((20, 30), 255, np.uint8)
    labels[5:15, 10:20] = 3
    new_image, new_labels = transforms.rescale_pair(image, labels, 1.35)
    assert new_image.shape == (27, 40, 3)
    assert new_labels.shape == (27, 40)
    assert set(np.unique(new_labels)) == {3, 255}


@pytest.mark.parametrize(("height", "width"), [(10, 6), (6, 10), (8, 8), (3, 30)])
def test_crop_boxes_cover_every_place_uniformly(height, width):
    rng = np.random.default_rng(0)
    boxes = [transforms.sample_crop_box(rng, height, width, 8) for _ in range(600)]
    for box in boxes:
        assert box.canvas_bottom - box.canvas_top == box.image_bottom - box.image_top == min(height, 8)
        assert box.canvas_right - box.canvas_left == box.image_right - box.image_left == min(width, 8)
    starts = {box.image_top if height > 8 else box.canvas_top for box in boxes}
    assert starts == set(range(abs(height - 8) + 1))
    assert all((box.canvas_top if height > 8 else box.image_top) == 0 for box in boxes)


def test_crops_of_an_image_and_its_labels_stay_aligned():
    labels = np.arange(1, 31, dtype=np.uint8).reshape(5, 6)
    image = labels[..., None].repeat(3, 2).astype(np.float32)
    cut_image, cut_labels = transforms.random_crop(np.random.default_rng(3), (image, labels), 8, (0.0, 255))
    inside = cut_labels != 255
    assert inside.sum() == 30
    np.testing.assert_array_equal(cut_image[..., 0][inside], cut_labels[inside])
    assert (cut_image[~inside] == 0).all()
    again = transforms.random_crop(np.random.default_rng(3), (image, labels), 8, (0.0, 255))
    np.testing.assert_array_equal(again[1], cut_labels)


def test_cam_train_crop_matches_the_reference(shared_parity):
    spec = json.loads((shared_parity / "cam_train_crop.json").read_text())
    arrays = np.load(shared_parity / "cam_train_crop.npz", allow_pickle=False)
    settings, reference = spec["settings"], spec["settings"]["box"]
    image, ids = transforms.normalize(arrays["in_image"]), arrays["in_spixel"]
    if settings["mirror"]:
        image, ids = transforms.mirror(image), transforms.mirror(ids)
    box = CropBox(
        settings["crop"],
        settings["crop"],
        canvas_top=reference["cont_top"],
        canvas_bottom=reference["cont_bottom"],
        canvas_left=reference["cont_left"],
        canvas_right=reference["cont_right"],
        image_top=reference["img_top"],
        image_bottom=reference["img_bottom"],
        image_left=reference["img_left"],
        image_right=reference["img_right"],
    )
    image, ids = transforms.apply_crop_box(image, box, 0), transforms.apply_crop_box(ids, box, 0)
    np.testing.assert_allclose(image[::2, ::2], arrays["image_out"], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(ids, arrays["spixel_out"])
