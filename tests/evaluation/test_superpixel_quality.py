"""Superpixels against masks on pictures that are counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from wsss.evaluation.confusion import EvaluationError
from wsss.evaluation.superpixel_quality import superpixel_quality


def halves(edge: int, height: int = 6, width: int = 10) -> np.ndarray:
    """0 left of a column, 1 from it on."""
    return np.tile((np.arange(width) >= edge).astype(np.uint8), (height, 1))


def test_superpixels_that_are_the_segments_are_perfect() -> None:
    quality = superpixel_quality(5 + halves(4), halves(4))
    assert (quality.boundary_recall, quality.undersegmentation, quality.achievable_accuracy) == (1, 0, 1)
    assert quality.count == 2


@pytest.mark.parametrize(("edge", "recall"), [(5, 1.0), (6, 1.0), (7, 0.0)])
def test_borders_count_within_two_pixels(edge: int, recall: float) -> None:
    quality = superpixel_quality(halves(edge), halves(4))
    assert quality.boundary_recall == recall
    # The left superpixel holds the columns 4 .. edge of the other class: they leak, once from each class's side.
    assert quality.achievable_accuracy == pytest.approx(1 - (edge - 4) / 10)
    assert quality.undersegmentation == pytest.approx(2 * (edge - 4) / 10)


def test_ignored_positions_count_nowhere_and_borders_lie_in_their_middle() -> None:
    truth = halves(5)
    truth[:, 4:6] = 255
    quality = superpixel_quality(halves(5), truth, tolerance=0)
    assert (quality.boundary_recall, quality.undersegmentation, quality.achievable_accuracy) == (1, 0, 1)
    shifted = superpixel_quality(halves(6), truth, tolerance=0)
    assert shifted.boundary_recall == 0 and shifted.achievable_accuracy == 1, "only ignored pixels are misplaced"


def test_without_a_border_there_is_no_recall() -> None:
    assert np.isnan(superpixel_quality(halves(4), np.zeros((6, 10), np.uint8)).boundary_recall)
    with pytest.raises(EvaluationError, match="cannot be held"):
        superpixel_quality(halves(4), halves(4, width=11))
    with pytest.raises(EvaluationError, match="not ignored"):
        superpixel_quality(halves(4), np.full((6, 10), 255))
