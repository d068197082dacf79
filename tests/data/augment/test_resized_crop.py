"""Random resized crops: torchvision's rule for size, ratio and place."""

from __future__ import annotations

import numpy as np
import pytest

from wsss.data.augment.color_jitter import PUBLISHED_JITTER, ColorJitter
from wsss.data.augment.resized_crop import (
    CropBox,
    draw_training_sample,
    jittered_crop,
    random_resized_crop_box,
    resized_crop,
    resized_image,
    resized_label,
    training_sample,
)
from wsss.data.transforms import channels_first, normalize

IMAGE = np.random.default_rng(0).integers(0, 256, (30, 41, 3)).astype(np.uint8)


def test_crops_keep_to_area_ratio_and_image() -> None:
    rng = np.random.default_rng(0)
    boxes = [random_resized_crop_box(300, 400, rng) for _ in range(500)]
    areas = np.array([box.height * box.width / (300 * 400) for box in boxes])
    ratios = np.array([box.width / box.height for box in boxes])
    assert areas.min() > 0.49
    assert areas.max() < 0.76
    assert areas.std() > 0.05
    assert ratios.min() > 0.74
    assert ratios.max() < 1.35
    assert all(0 <= b.top <= 300 - b.height and 0 <= b.left <= 400 - b.width for b in boxes)
    assert len({b.top for b in boxes}) > 50


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(10, 100, CropBox(0, 43, 10, 13)), (100, 10, CropBox(43, 0, 13, 10)), (90, 100, CropBox(0, 0, 90, 100))],
)
def test_a_shape_without_a_fitting_crop_falls_back_to_the_center(height: int, width: int, expected: CropBox) -> None:
    # Crops of more than the whole image never fit.
    assert random_resized_crop_box(height, width, np.random.default_rng(0), area=(2.0, 3.0)) == expected


def test_the_rectangle_is_cut_out() -> None:
    array = np.arange(20).reshape(4, 5)
    assert CropBox(1, 2, 2, 3).cut(array).tolist() == [[7, 8, 9], [12, 13, 14]]


def test_image_label_and_mask_stay_aligned() -> None:
    image = np.zeros((40, 60, 3), dtype=np.uint8)
    image[:, :20] = 255
    label = np.where(image[..., 0] > 0, 7, 255).astype(np.uint8)
    mask = image[..., 0]
    sample = training_sample(image, label, mask, CropBox(0, 10, 40, 40), (20, 20), mirror=True)
    assert sample.image.shape == (3, 20, 20)
    assert sample.label.tolist()[0] == [255] * 15 + [7] * 5
    assert sample.mask.tolist()[0] == [0] * 15 + [1] * 5
    assert (sample.image[0, :, 16:] > 2).all()
    assert (sample.image[0, :, :14] < -2).all()


def test_samples_depend_on_the_generator_alone() -> None:
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (50, 70, 3)).astype(np.uint8)
    label = rng.integers(0, 21, (50, 70)).astype(np.uint8)
    draw = [draw_training_sample(image, label, label, np.random.default_rng(s), (32, 32)) for s in (1, 1, 2)]
    assert np.array_equal(draw[0].image, draw[1].image)
    assert np.array_equal(draw[0].label, draw[1].label)
    assert not np.array_equal(draw[0].image, draw[2].image)


def test_validation_input_is_squeezed() -> None:
    image = np.full((30, 50, 3), 128, dtype=np.uint8)
    label = np.arange(30, dtype=np.uint8)[:, None].repeat(50, axis=1)
    assert resized_image(image, (16, 16)).shape == (3, 16, 16)
    resized = resized_label(label, (16, 16))
    assert resized.shape == (16, 16)
    assert set(np.unique(resized)) <= set(range(30))


def test_a_jittered_crop_depends_on_the_generator_alone() -> None:
    one, same, other = (
        jittered_crop(IMAGE, None, np.random.default_rng(seed), 33, 0.9, PUBLISHED_JITTER)[0] for seed in (1, 1, 2)
    )
    assert one.shape == (3, 33, 33) and one.dtype == np.float32
    assert np.array_equal(one, same) and not np.array_equal(one, other)


def network(image: np.ndarray) -> np.ndarray:
    return channels_first(normalize(image))


def test_the_whole_image_without_jitter_is_only_resized_or_mirrored() -> None:
    square = IMAGE[:, :30]
    plain = network(resized_crop(square, CropBox(0, 0, 30, 30), 30, mirror=False))
    assert np.array_equal(plain, network(square))
    mirrored = network(resized_crop(square, CropBox(0, 0, 30, 30), 30, mirror=True))
    assert np.array_equal(mirrored, plain[:, :, ::-1])
    drawn = [jittered_crop(square, None, np.random.default_rng(seed), 30, 1.0, ColorJitter())[0] for seed in range(40)]
    assert any(np.array_equal(x, plain) for x in drawn) and any(np.array_equal(x, mirrored) for x in drawn)
