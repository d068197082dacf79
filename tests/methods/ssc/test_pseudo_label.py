"""From class maps to pseudo labels on small arrays."""

from dataclasses import replace

import numpy as np
import pytest

from wsss_methods.ssc.networks import CamNetwork
from wsss_methods.ssc.pseudo_label import (
    infer_cam,
    ir_label,
    pseudo_label_of_walk,
    pseudo_label_scores,
    upsampled_walk,
    walked_cam,
)
from wsss_methods.ssc.recipe import IrLabelSettings


@pytest.fixture
def image() -> np.ndarray:
    left = np.arange(48) < 24
    grey = np.where(left, 40, 200).astype(np.uint8)[None].repeat(40, axis=0)
    return grey[..., None].repeat(3, axis=2)


def test_cam_of_present_classes_only(image):
    network = CamNetwork("resnet18", 0.125, num_classes=5).eval()
    maps = infer_cam(network, image, np.array([0, 1, 0, 0, 1], dtype=np.float32), (1.0, 0.5))
    assert maps.keys.tolist() == [2, 5]
    assert maps.cam.shape == (2, 10, 12) and maps.high_res.shape == (2, 40, 48)
    none = infer_cam(network, image, np.zeros(5, dtype=np.float32), (1.0,))
    assert none.keys.tolist() == [] and none.cam.shape == (0, 10, 12)


def test_ir_label_has_classes_background_and_unsure(image):
    high_res = np.zeros((2, 40, 48), dtype=np.float32)
    high_res[0, :, :20] = 0.9
    high_res[1, :, 24:36] = 0.2
    label = ir_label(image, high_res, np.array([3, 9]), replace(IrLabelSettings(), crf_iterations=1))
    assert label[20, 5] == 3 and label[20, 46] == 0 and label[20, 30] == 255
    assert set(np.unique(label)) <= {0, 3, 255}


def test_an_image_without_classes_is_background(image):
    nothing = np.zeros((0, 40, 48), dtype=np.float32)
    assert not ir_label(image, nothing, np.array([], dtype=np.int64), IrLabelSettings()).any()
    result = pseudo_label_of_walk(np.zeros((0, 10, 12), dtype=np.float32), np.array([]), (40, 48))
    assert not result.label.any() and result.score.shape == (1, 40, 48) and result.keys.tolist() == [0]


def test_threshold_moves_the_background_without_walking_again():
    rng = np.random.default_rng(0)
    cam = rng.random((2, 10, 12), dtype=np.float32)
    edge = rng.random((1, 10, 12), dtype=np.float32) ** 4
    walk = walked_cam(cam, edge, exp_times=3)
    whole = pseudo_label_scores(cam, np.array([4, 7]), edge, (38, 47), exp_times=3, background=0.5)
    again = pseudo_label_of_walk(walk, np.array([4, 7]), (38, 47), 0.5)
    assert np.array_equal(whole.label, again.label) and np.array_equal(whole.score, again.score)
    assert whole.label.shape == (38, 47) and set(np.unique(whole.label)) <= {0, 4, 7}
    shares = [(pseudo_label_of_walk(walk, np.array([4, 7]), (38, 47), t).label == 0).mean() for t in (0.1, 0.6, 1.1)]
    assert shares[0] <= shares[1] <= shares[2] == 1.0


def test_walk_is_normalized_over_all_classes():
    walk = np.array([np.full((3, 3), 0.5), np.full((3, 3), 2.0)], dtype=np.float32)
    maps = upsampled_walk(walk, (11, 12))
    np.testing.assert_allclose(maps[0], 0.25, rtol=1e-6)
    np.testing.assert_allclose(maps[1], 1.0, rtol=1e-6)
    assert not upsampled_walk(np.zeros((1, 3, 3), dtype=np.float32), (12, 12)).any()
