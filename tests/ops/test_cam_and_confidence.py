"""Merging class maps, thresholds, confidence masks and instance clusters."""

import numpy as np
import pytest
import torch

from wsss.ops.cam import (
    merge_scales,
    merged_cam,
    merged_high_res,
    strided_size,
    strided_up_size,
    thresholded_argmax,
)
from wsss.ops.confidence import confidence_mask, score_margin
from wsss.ops.instance import centroid_clusters, refined_centroids, split_by_clusters, suppress_fragments


def test_strided_sizes_round_up():
    assert strided_size((37, 64), 4) == (10, 16)
    assert strided_up_size((37, 64), 16) == (48, 64)


def test_merged_maps_have_maximum_just_below_one_and_the_right_sizes():
    maps = [torch.rand(5, 3, 4), torch.rand(5, 2, 2)]
    cam, high_res = merge_scales(maps, np.array([1, 4]), (45, 60))
    assert cam.shape == (2, 12, 15) and high_res.shape == (2, 45, 60)
    assert cam.dtype == high_res.dtype == np.float32
    for values in (cam, high_res):
        assert values.min() >= 0 and np.all(values.max(axis=(1, 2)) < 1)
        np.testing.assert_allclose(values.max(axis=(1, 2)), 1, atol=1e-4)
    assert np.array_equal(cam, merged_cam(maps, np.array([1, 4]), (45, 60)))
    assert np.array_equal(high_res, merged_high_res(maps, np.array([1, 4]), (45, 60)))


def test_an_image_without_classes_has_empty_maps():
    cam, high_res = merge_scales([torch.rand(5, 3, 4)], np.array([], dtype=np.int64), (45, 60))
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


def test_two_attractors_give_two_clusters():
    y, x = np.mgrid[0:10, 0:21].astype(np.float32)
    target = np.where(x < 10, 5.0, 15.0)
    field = np.stack([5.0 - y, target - x]) * 0.8
    centroids = refined_centroids(field)
    clusters = centroid_clusters(centroids, field, threshold=2.0)
    assert clusters.shape == (2, 10, 21) and np.array_equal(clusters.sum(axis=0), np.ones((10, 21)))
    assert np.array_equal(clusters[0], (x < 10).astype(np.uint8))
    maps, keys = split_by_clusters(np.ones((1, 10, 21), dtype=np.float32), np.array([7]), clusters)
    assert np.array_equal(maps, clusters) and keys.tolist() == [7, 7]


def test_small_fragments_lose_their_score():
    label = np.zeros((20, 20), dtype=np.uint8)
    label[:10] = 3
    label[15, 15] = 3
    score = suppress_fragments(label, np.ones((20, 20), dtype=np.float32), min_share=0.01)
    assert score[15, 15] == 0 and score[:10].min() == 1 and score[12].min() == 1
