"""Random resized crops: torchvision's rule for size, ratio and place."""

from __future__ import annotations

import numpy as np
import pytest

from wsss.data.random_resized_crop import CropBox, random_resized_crop_box


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
