import numpy as np
import pytest

from wsss.data import transforms


def test_normalize_is_the_plain_formula():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    plain = (image / 255.0 - np.array(transforms.IMAGENET_MEAN)) / np.array(transforms.IMAGENET_STD)
    result = transforms.normalize(image)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, plain, rtol=1e-6, atol=1e-6)
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
