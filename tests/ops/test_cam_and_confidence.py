"""Merging class maps, thresholds, confidence masks."""

import numpy as np
import pytest
import torch

from wsss.ops.cam import (
    Merge,
    merged_cam,
    merged_high_res,
    normalized_by_range,
    strided_size,
    strided_up_size,
    thresholded_argmax,
)
from wsss.ops.confidence import confidence_mask, score_margin


def test_strided_sizes_round_up():
    assert strided_size((37, 64), 4) == (10, 16)
    assert strided_up_size((37, 64), 16) == (48, 64)


def test_merged_maps_have_maximum_just_below_one_and_the_right_sizes():
    maps = [torch.rand(5, 3, 4), torch.rand(5, 2, 2)]
    cam, high_res = (merge(maps, np.array([1, 4]), (45, 60)) for merge in (merged_cam, merged_high_res))
    assert cam.shape == (2, 12, 15) and high_res.shape == (2, 45, 60)
    assert cam.dtype == high_res.dtype == np.float32
    for values in (cam, high_res):
        assert values.min() >= 0 and np.all(values.max(axis=(1, 2)) < 1)
        np.testing.assert_allclose(values.max(axis=(1, 2)), 1, atol=1e-4)


def test_a_maximum_over_scales_and_a_network_at_full_size():
    maps = [torch.rand(3, 20, 30), torch.rand(3, 40, 60)]
    resized = torch.nn.functional.interpolate(maps[0][None], (40, 60), mode="bilinear", align_corners=False)[0]
    merged = merged_high_res(maps, np.array([2]), (40, 60), Merge("maximum", "none", stride=1))
    assert np.array_equal(merged, torch.maximum(resized, maps[1])[2:].numpy())


def test_range_sets_small_values_to_zero_before_the_subtraction():
    """SEAM's `infer_SEAM.py`, line by line."""
    summed = np.random.default_rng(0).normal(size=(3, 7, 9)).astype(np.float32)
    summed[2] = np.abs(summed[2]) + 0.5
    expected = summed.copy()
    expected[expected < 0] = 0
    largest, least = expected.max(axis=(1, 2), keepdims=True), expected.min(axis=(1, 2), keepdims=True)
    expected[expected < least + 1e-5] = 0
    expected = (expected - least - 1e-5) / (largest - least + 1e-5)
    found = normalized_by_range(torch.from_numpy(summed)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found[2].min() < -0.1, "far below zero where the smallest value is well above it"


def test_an_image_without_classes_has_empty_maps():
    nothing = np.array([], dtype=np.int64)
    cam, high_res = (merge([torch.rand(5, 3, 4)], nothing, (45, 60)) for merge in (merged_cam, merged_high_res))
    assert cam.shape == (0, 12, 15) and high_res.shape == (0, 45, 60)
    assert np.array_equal(thresholded_argmax(high_res, np.array([]), 0.2), np.zeros((45, 60)))


def test_background_wins_ties():
    maps = np.array([[[0.1, 0.3, 0.5]], [[0.2, 0.9, 0.3]]], dtype=np.float32)
    label = thresholded_argmax(maps, np.array([4, 20]), 0.3)
    assert label.tolist() == [[0, 20, 4]] and label.dtype == np.uint8


def test_margin_skips_entries_equal_to_the_largest():
    score = np.array([[[0.25, 0.9, 0.4]], [[0.6, 0.9, 0.4]], [[0.5, 0.3, 0.4]]], dtype=np.float32)
    np.testing.assert_allclose(score_margin(score), [[0.1, 0.6, 0.4]], atol=1e-6)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 1.0])
def test_every_class_keeps_its_share_of_the_surest_pixels(ratio):
    rng = np.random.default_rng(0)
    score = rng.random((4, 9, 11), dtype=np.float32)
    label = np.array([0, 3, 7, 12], dtype=np.uint8)[score.argmax(axis=0)]
    mask = confidence_mask(score, label, ratio)
    margin = score_margin(score)
    for class_id in np.unique(label):
        inside = label == class_id
        assert mask[inside].sum() == int(inside.sum() * ratio)
        kept, left = margin[inside & (mask == 1)], margin[inside & (mask == 0)]
        if len(kept) and len(left):
            assert kept.min() >= left.max()
