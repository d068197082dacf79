import numpy as np
import pytest

from wsss.evaluation.confusion import EvaluationError
from wsss.evaluation.label_free import (
    boundary_contrast,
    confidence_margin,
)


def test_margin_is_the_distance_to_the_second_best():
    scores = np.array([[[0.5, 0.2]], [[0.1, 0.3]], [[0.4, 0.9]]])
    assert confidence_margin(scores) == pytest.approx((0.1 + 0.6) / 2)
    with pytest.raises(EvaluationError, match="no second best"):
        confidence_margin(scores[:1])


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
