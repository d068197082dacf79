"""Scores of segmentation networks on small hand-made confusion matrices."""

from __future__ import annotations

import math

import numpy as np
import pytest

from wsss.evaluation.segmentation_metrics import final_metrics, selection_metrics

# Class 2 is predicted but not in the truth, class 3 in neither.
CONFUSION = np.array([[6, 1, 1, 0], [2, 10, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], dtype=np.int64)


def test_final_metrics_average_over_classes_of_the_truth() -> None:
    metrics = final_metrics(CONFUSION)
    assert metrics.iou[:3].tolist() == pytest.approx([6 / 10, 10 / 13, 0])
    assert math.isnan(metrics.iou[3])
    assert metrics.miou == pytest.approx((6 / 10 + 10 / 13) / 2)
    assert metrics.pixel_accuracy == pytest.approx(16 / 20)
    assert metrics.mean_accuracy == pytest.approx((6 / 8 + 10 / 12) / 2)
    assert metrics.frequency_weighted_iou == pytest.approx((8 * 6 / 10 + 12 * 10 / 13) / 20)


def test_selection_metrics_differ_by_their_epsilon_only() -> None:
    metrics = selection_metrics(CONFUSION)
    assert metrics.miou == pytest.approx(final_metrics(CONFUSION).miou, abs=1e-5)
    assert metrics.miou < final_metrics(CONFUSION).miou
    assert metrics.iou[3] == 0
    assert metrics.overall_accuracy == pytest.approx(0.8, abs=1e-5)
    assert metrics.prediction_accuracy == pytest.approx((6 / 8 + 10 / 11 + 0) / 3, abs=1e-5)
    assert selection_metrics(CONFUSION, epsilon=10.0).iou[0] == pytest.approx(6 / 20)


def test_without_pixels_there_is_no_score() -> None:
    empty = np.zeros((4, 4), dtype=np.int64)
    assert selection_metrics(empty).miou == 0
    assert math.isnan(final_metrics(empty).frequency_weighted_iou)
