"""Samples of the CAM and affinity stages."""

import numpy as np
import pytest

from wsss.data.augment.rescaled_crop import (
    CanvasCrop,
    affinity_training_sample,
    cam_inputs,
    cam_training_sample,
    quartered_label,
    sample_canvas_crop,
)
from wsss.data.transforms import normalize


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def test_a_sample_depends_on_the_generator_alone(image):
    ids = np.arange(2400, dtype=np.int32).reshape(40, 60) // 50
    samples = [
        cam_training_sample(
            image, ids, np.random.default_rng(seed), crop_size=48, resize_long_min=32, resize_long_max=80
        )
        for seed in (3, 3, 4)
    ]
    assert np.array_equal(samples[0].image, samples[1].image)
    assert np.array_equal(samples[0].superpixels, samples[1].superpixels)
    assert not np.array_equal(samples[0].image, samples[2].image)


@pytest.mark.parametrize("seed", range(8))
def test_image_and_superpixels_stay_aligned(seed):
    # Superpixels are the grey levels themselves, so they can be read back from the crop.
    grey = (np.arange(12).reshape(3, 4) * 20).astype(np.uint8).repeat(16, axis=0).repeat(16, axis=1)
    image = grey[..., None].repeat(3, axis=2)
    sample = cam_training_sample(
        image,
        grey.astype(np.int32),
        np.random.default_rng(seed),
        crop_size=64,
        resize_long_min=64,
        resize_long_max=64,
    )
    assert sample.image.shape == (3, 64, 64) and sample.superpixels.shape == (64, 64)
    assert sample.image.dtype == np.float32 and sample.superpixels.dtype == np.int32
    ids = np.unique(sample.superpixels)
    assert ids.tolist() == list(range(len(ids)))
    for number in ids:
        assert len(np.unique(sample.image[0][sample.superpixels == number])) == 1


def test_padding_is_zero_and_a_superpixel_of_its_own(image):
    sample = cam_training_sample(
        image,
        np.zeros((40, 60), dtype=np.int32),
        np.random.default_rng(0),
        crop_size=96,
        resize_long_min=48,
        resize_long_max=48,
    )
    assert np.unique(sample.superpixels).tolist() == [0, 1]
    assert np.all(sample.image[:, sample.superpixels == 0] == 0)
    assert (sample.superpixels == 1).sum() == 32 * 48


def test_affinity_sample_pads_with_unsure(image):
    label = np.full((40, 60), 7, dtype=np.uint8)
    sample = affinity_training_sample(
        image, label, np.random.default_rng(1), crop_size=96, rescale_min=0.5, rescale_max=0.6
    )
    assert sample.image.shape == (3, 96, 96) and sample.label.shape == (24, 24)
    assert set(np.unique(sample.label)) == {7, 255}


def test_quartered_label_takes_the_central_pixel():
    label = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert quartered_label(label).tolist() == [[18, 22], [50, 54]]


def test_inputs_of_every_scale_come_with_their_mirror(image):
    pairs = cam_inputs(image, (1.0, 0.5, 1.5))
    assert [pair.shape for pair in pairs] == [(2, 3, 40, 60), (2, 3, 20, 30), (2, 3, 60, 90)]
    for pair in pairs:
        assert pair.dtype == np.float32 and np.array_equal(pair[1], pair[0, ..., ::-1])
    assert np.array_equal(pairs[0][0], normalize(image).transpose(2, 0, 1))


def test_sizes_must_agree(image):
    with pytest.raises(ValueError, match="differ in size"):
        cam_training_sample(image, np.zeros((40, 61), dtype=np.int32), np.random.default_rng(0))


@pytest.mark.parametrize(("height", "width"), [(10, 6), (6, 10), (8, 8), (3, 30)])
def test_crops_cover_every_place_uniformly(height: int, width: int) -> None:
    rng = np.random.default_rng(0)
    crops = [sample_canvas_crop(rng, height, width, 8) for _ in range(600)]
    places = {-crop.top if height > 8 else crop.top for crop in crops}
    assert places == set(range(abs(height - 8) + 1))
    ones = np.ones((height, width), np.uint8)
    assert all(crop.apply(ones, 0).sum() == min(height, 8) * min(width, 8) for crop in crops)


def test_crops_of_an_image_and_its_labels_stay_aligned() -> None:
    labels = np.arange(1, 31, dtype=np.uint8).reshape(5, 6)
    image = labels[..., None].repeat(3, 2).astype(np.float32)
    crop = sample_canvas_crop(np.random.default_rng(3), 5, 6, 8)
    cut_image, cut_labels = crop.apply(image, 0.0), crop.apply(labels, 255)
    inside = cut_labels != 255
    assert inside.sum() == 30 and cut_image.dtype == np.float32 and cut_labels.dtype == np.uint8
    np.testing.assert_array_equal(cut_image[..., 0][inside], cut_labels[inside])
    assert (cut_image[~inside] == 0).all()
    assert CanvasCrop(2, 3, -1, -2).apply(labels, 0).tolist() == labels[1:3, 2:5].tolist()
