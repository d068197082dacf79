"""Pseudo labels of a walk on small arrays."""

import numpy as np

from wsss.ops.random_walk import random_walk
from wsss.stages.pseudo_label import PseudoLabelConfig, pseudo_label_of_walk, upsampled_walk


def test_an_image_without_classes_is_background():
    result = pseudo_label_of_walk(np.zeros((0, 10, 12), dtype=np.float32), np.array([]), (40, 48))
    assert not result.label.any() and result.score.shape == (1, 40, 48) and result.keys.tolist() == [0]


def test_threshold_moves_the_background_without_walking_again():
    rng = np.random.default_rng(0)
    cam = rng.random((2, 10, 12), dtype=np.float32)
    edge = rng.random((10, 12), dtype=np.float32) ** 4
    walk = random_walk(cam, edge, exp_times=3)
    label = pseudo_label_of_walk(walk, np.array([4, 7]), (38, 47), 0.5).label
    assert label.shape == (38, 47) and set(np.unique(label)) <= {0, 4, 7}
    shares = [(pseudo_label_of_walk(walk, np.array([4, 7]), (38, 47), t).label == 0).mean() for t in (0.1, 0.6, 1.1)]
    assert shares[0] <= shares[1] <= shares[2] == 1.0


def test_walk_is_normalized_over_all_classes():
    walk = np.array([np.full((3, 3), 0.5), np.full((3, 3), 2.0)], dtype=np.float32)
    maps = upsampled_walk(walk, (11, 12))
    np.testing.assert_allclose(maps[0], 0.25, rtol=1e-6)
    np.testing.assert_allclose(maps[1], 1.0, rtol=1e-6)
    assert not upsampled_walk(np.zeros((1, 3, 3), dtype=np.float32), (12, 12)).any()


def test_a_threshold_off_the_scored_grid_is_refused():
    assert PseudoLabelConfig(sem_seg_bg_thres=0.35).check() == []
    (problem,) = PseudoLabelConfig(sem_seg_bg_thres=0.255).check()
    assert "multiple of 0.01" in problem
