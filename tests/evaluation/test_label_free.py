import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsss.evaluation.confusion import EvaluationError, confusion_matrix, miou
from wsss.evaluation.label_free import (
    boundary_contrast,
    confidence_margin,
    label_agreement,
)


def test_margin_is_the_distance_to_the_second_best():
    scores = np.array([[[0.5, 0.2]], [[0.1, 0.3]], [[0.4, 0.9]]])
    assert confidence_margin(scores) == pytest.approx((0.1 + 0.6) / 2)
    with pytest.raises(EvaluationError, match="no second best"):
        confidence_margin(scores[:1])


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_agreement_is_the_miou_of_one_map_against_the_other(seed):
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, 4, (2, 5, 6)).astype(np.uint8)
    first[rng.random((5, 6)) < 0.1] = 255
    second[rng.random((5, 6)) < 0.1] = 255
    hidden = np.where(second == 255, 255, first)
    expected = miou(confusion_matrix(hidden, np.where(second == 255, 0, second), 5))
    assert label_agreement(first, second, 5) == pytest.approx(expected)
    assert label_agreement(first, second, 5) == pytest.approx(label_agreement(second, first, 5))
    assert label_agreement(first, first, 5) == 1


def test_agreement_of_nothing_is_nothing():
    ignored = np.full((2, 2), 255, np.uint8)
    assert np.isnan(label_agreement(ignored, ignored, 3))
    with pytest.raises(EvaluationError, match="differ in shape"):
        label_agreement(ignored, ignored[:1], 3)


def halves() -> tuple[np.ndarray, np.ndarray]:
    """A picture of two colors, and the label map that follows them."""
    label = np.zeros((8, 12), np.uint8)
    label[:, 6:] = 3
    return label, np.where(label[..., None] == 3, np.uint8(200), np.uint8(50)).repeat(3, axis=2)


def test_boundaries_on_edges_of_the_picture_beat_all_others():
    label, image = halves()
    # Every color step of the picture lies on the boundary: 8 of the 7 * 12 + 8 * 11 neighbors.
    assert boundary_contrast(label, image) == pytest.approx((7 * 12 + 8 * 11) / 8)
    for shift in (-2, 1, 3):
        assert boundary_contrast(np.roll(label, shift, axis=1)[:, 1:-1], image[:, 1:-1]) < 10
    assert np.isnan(boundary_contrast(np.zeros_like(label), image))
    assert np.isnan(boundary_contrast(label, np.full_like(image, 7)))
    with pytest.raises(EvaluationError, match="do not fit"):
        boundary_contrast(label, image[1:])


def test_random_boundaries_score_one():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (100, 100, 3)).astype(np.uint8)
    assert boundary_contrast(rng.integers(0, 2, (100, 100)), image) == pytest.approx(1, abs=0.02)
