import sys

import numpy as np
import pytest

from wsss.data.coco_regions import decode_runs, region_mask, region_problem
from wsss.data.errors import DataError


def encode_runs(lengths: list[int]) -> str:
    """The compressed text form, by its description."""
    text = ""
    for index, length in enumerate(lengths):
        value = length - lengths[index - 2] if index > 2 else length
        while True:
            group, value = value & 0x1F, value >> 5
            more = value != (-1 if group & 0x10 else 0)
            text += chr(48 + group + (0x20 if more else 0))
            if not more:
                break
    return text


def random_runs(rng: np.random.Generator, pixels: int) -> list[int]:
    cuts = np.sort(rng.choice(pixels + 1, size=int(rng.integers(1, 30)), replace=False))
    return np.diff([0, *cuts, pixels]).tolist()


def polygon_mask(polygon: list[float], height: int, width: int) -> np.ndarray:
    return region_mask([polygon], height, width)


def test_compressed_runs_are_decoded():
    rng = np.random.default_rng(0)
    for pixels in (40, 700, 300_000):
        for _ in range(50):
            lengths = random_runs(rng, pixels)
            assert decode_runs(encode_runs(lengths)) == lengths
    # 5 outside, 3 inside, 40 outside (two groups: 8 with more to follow, then 1), 3 inside (no difference).
    assert decode_runs("53X10") == [5, 3, 40, 3]
    with pytest.raises(ValueError, match="end within"):
        decode_runs("5X")
    with pytest.raises(ValueError, match="character"):
        decode_runs("5 ")


def test_runs_go_down_the_columns():
    expected = np.zeros((3, 4), bool)
    expected[1:, 0] = expected[0, 1] = True
    np.testing.assert_array_equal(region_mask({"size": [3, 4], "counts": [1, 3, 8]}, 3, 4), expected)
    entry = {"size": [3, 4], "counts": encode_runs([1, 3, 8])}
    np.testing.assert_array_equal(region_mask(entry, 3, 4), expected)


def test_a_polygon_on_pixel_borders_covers_these_pixels():
    mask = polygon_mask([1, 1, 4, 1, 4, 3, 1, 3], 5, 6)
    expected = np.zeros((5, 6), bool)
    expected[1:3, 1:4] = True
    np.testing.assert_array_equal(mask, expected)
    # The direction and the first corner do not matter.
    np.testing.assert_array_equal(polygon_mask([4, 3, 4, 1, 1, 1, 1, 3], 5, 6), expected)


def test_polygons_move_with_whole_pixels_and_are_cut_at_the_border():
    rng = np.random.default_rng(1)
    for _ in range(30):
        corners = rng.uniform(3, 20, (int(rng.integers(3, 9)), 2)).round(2)
        mask = polygon_mask(corners.ravel().tolist(), 24, 26)
        moved = polygon_mask((corners + np.array([5, 2])).ravel().tolist(), 30, 40)
        np.testing.assert_array_equal(moved[2:26, 5:31], mask)
        assert moved.sum() == mask.sum()
        assert not polygon_mask((corners + np.array([100, 0])).ravel().tolist(), 24, 26).any()
        np.testing.assert_array_equal(polygon_mask(corners.ravel().tolist(), 12, 11), mask[:12, :11])


def test_the_area_is_about_that_of_the_polygon():
    angles = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    circle = np.stack([50 + 30 * np.cos(angles), 60 + 30 * np.sin(angles)], axis=1)
    assert polygon_mask(circle.ravel().tolist(), 120, 100).sum() == pytest.approx(np.pi * 900, rel=0.01)


def test_several_polygons_are_one_region_and_overlaps_stay_inside():
    both = region_mask([[1, 1, 5, 1, 5, 5, 1, 5], [3, 3, 8, 3, 8, 8, 3, 8], [0, 0, 9, 9]], 10, 10)
    expected = np.zeros((10, 10), bool)
    expected[1:5, 1:5] = expected[3:8, 3:8] = True
    np.testing.assert_array_equal(both, expected)


@pytest.mark.parametrize(
    ("segmentation", "problem"),
    [
        ([], "no polygon"),
        ([[1, 2, 3]], "x, y pairs"),
        ([[1, 2, 3, float("nan"), 5, 6]], "x, y pairs"),
        ("text", "neither"),
        ({"counts": [12]}, "neither"),
        ({"size": [4, 3], "counts": [12]}, r"size \[4, 3\], the picture is \[3, 4\]"),
        ({"size": [3, 4], "counts": [5, 6]}, "add up to 11 instead of 12"),
        ({"size": [3, 4], "counts": [14, -2]}, "add up"),
        ({"size": [3, 4], "counts": "5X"}, "end within"),
        ({"size": [3, 4], "counts": 12}, "neither a list"),
    ],
)
def test_what_cannot_be_decoded_is_refused(segmentation, problem):
    with pytest.raises(DataError, match=problem):
        region_mask(segmentation, 3, 4)
    assert region_problem({"size": [3, 4], "counts": [12]}, 3, 4) == ""


def test_without_pycocotools_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(DataError, match=r"pip install 'wsss\[coco\]'"):
        region_mask([[1, 1, 4, 1, 4, 3]], 5, 6)
