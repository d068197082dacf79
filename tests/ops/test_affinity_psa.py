"""Affinities of features: labels, the window of sources, and the walk by sparse products against dense squaring."""

import numpy as np
import pytest
import torch
from tests.references import dense_transition

from wsss.ops.affinity_psa import (
    affinity_label,
    feature_affinity,
    feature_pair_affinity,
    pair_index,
    pooled,
    power_background_scores,
    walk_with_background,
    walked_label,
    walked_label_by_crf,
)
from wsss.ops.crf import DenseCrfSettings


@pytest.mark.parametrize(("size", "radius", "exp_times"), [((14, 17), 5, 6), ((9, 20), 5, 8), ((6, 3), 5, 4)])
def test_the_walk_is_that_of_the_squared_dense_matrix(size, radius, exp_times):
    torch.manual_seed(0)
    affinity = feature_affinity(torch.randn(8, *size), radius)
    cam = torch.rand(2, size[0] * 8 - 3, size[1] * 8 - 5).numpy()
    walked = walk_with_background(cam, affinity, alpha=4, beta=8, exp_times=exp_times)
    padded = np.pad(power_background_scores(cam, 4), ((0, 0), (0, 3), (0, 5)))
    dense = pooled(padded).reshape(3, -1) @ dense_transition(affinity.matrix(), 8, exp_times)
    assert np.linalg.norm(walked.reshape(3, -1) - dense) / np.linalg.norm(dense) < 2e-5


def test_affinities_are_symmetric_and_leave_out_what_is_no_source():
    torch.manual_seed(1)
    features = torch.randn(4, 12, 13)
    matrix = feature_affinity(features, 3).matrix().toarray()
    assert np.array_equal(matrix, matrix.T) and (matrix.diagonal() == 1).all()
    flat = features.flatten(1)
    expected = float(torch.exp(-(flat[:, 2] - flat[:, 4]).abs().mean()))
    assert matrix[2, 4] == pytest.approx(expected, rel=1e-6)
    # The corner reaches to the right only as a destination: position 1 lies in the outer columns.
    assert matrix[0, 1] == 0 and matrix[12 * 11, 12 * 11 + 3] == 0
    pairs = feature_pair_affinity(features[None], pair_index(3, (12, 13)))
    assert pairs.shape == (1, 12, 10 * 9)


def test_narrow_grids_have_a_smaller_radius_and_the_narrowest_no_pairs():
    assert pair_index(5, (11, 30)).radius == 5 and pair_index(5, (10, 30)).radius == 4
    lonely = feature_affinity(torch.randn(4, 4, 30), 5)
    assert np.array_equal(lonely.matrix().toarray(), np.eye(120))


def test_labels_of_cells():
    #            sure class, sure background, both say class, low says background, nothing there
    low = np.array([[[0.1, 0.9, 0.2, 0.8, 0.0]], [[0.9, 0.1, 0.8, 0.2, 0.0]]], dtype=np.float32)
    high = np.array([[[0.2, 0.9, 0.3, 0.3, 0.0]], [[0.8, 0.1, 0.7, 0.7, 0.0]]], dtype=np.float32)
    assert affinity_label(low, high).tolist() == [[1, 0, 1, 255, 255]]
    low[:, 0, 0] = (0.4, 0.6)
    high[:, 0, 0] = (0.6, 0.4)  # the second has the last word
    assert affinity_label(low, high)[0, 0] == 0


def test_a_walked_label_has_class_ids_and_the_size_of_the_picture():
    walk = np.zeros((3, 2, 3), dtype=np.float32)
    walk[0], walk[2, :, 2] = 0.5, 1.0
    label = walked_label(walk, [4, 9], (13, 22))
    assert label.shape == (13, 22) and label.dtype == np.uint8
    assert set(np.unique(label)) == {0, 9} and (label[:, :12] == 0).all() and (label[:, 20:] == 9).all()


def test_a_crf_moves_walked_labels_to_the_edges_of_the_picture() -> None:
    """A picture of 45 by 75 on 6 by 10 cells: the walk's border lies half a cell beside that of the colors."""
    image = np.zeros((45, 75, 3), dtype=np.uint8)
    image[:, 36:] = 220
    walk = np.full((2, 6, 10), 0.2, dtype=np.float32)
    walk[0, :, :5], walk[1, :, 5:] = 0.3, 0.3
    plain = walked_label(walk, [7], image.shape[:2])
    refined = walked_label_by_crf(walk, [7], image, 9, DenseCrfSettings(1, 3, 3, 80, 13, 10))
    assert refined.shape == plain.shape and refined.dtype == np.uint8 and set(np.unique(refined)) == {0, 7}
    truth = np.where(image[..., 0] > 0, 7, 0)
    assert (plain != truth).mean() > 0.04 and (refined != truth).mean() < 0.01
