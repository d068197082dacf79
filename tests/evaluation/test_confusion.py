import os
from pathlib import Path

import numpy as np
import pytest

from wsss.evaluation.confusion import (
    EvaluationError,
    all_background,
    class_counts,
    class_iou,
    confusion_matrix,
    counted_truth,
    intersections_and_totals,
    iou,
    mean_accuracy,
    miou,
    pixel_accuracy,
    smoothed_miou,
)

SHARED = Path(os.environ.get("WSSS_SHARED", Path(__file__).parents[3] / "shared"))


def fixture(name: str) -> dict[str, np.ndarray]:
    path = SHARED / "parity" / "ssc" / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"parity fixtures not found under {SHARED}")
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def test_rows_are_truth_and_columns_prediction():
    truth = np.array([[0, 1], [2, 1]])
    prediction = np.array([[0, 2], [2, 1]])
    expected = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 1]])
    result = confusion_matrix(truth, prediction, 3)
    assert result.dtype == np.int64
    np.testing.assert_array_equal(result, expected)


def test_ignored_truth_is_left_out():
    truth = np.array([255, -1, 3, 7, 1], dtype=np.int16)
    result = confusion_matrix(truth, np.array([0, 1, 2, 0, 1], dtype=np.uint8), 3)
    assert result.sum() == 1
    assert result[1, 1] == 1
    np.testing.assert_array_equal(counted_truth(truth, 3), [False, False, False, False, True])


def test_ignore_index_inside_the_classes():
    result = confusion_matrix(np.array([0, 1, 1]), np.array([0, 1, 0]), 2, ignore_index=0)
    np.testing.assert_array_equal(result, [[0, 0], [1, 1]])


def test_prediction_out_of_range_is_an_error_unless_mapped():
    truth = np.array([0, 1], dtype=np.uint8)
    prediction = np.array([255, 1], dtype=np.uint8)
    with pytest.raises(EvaluationError, match="prediction_ignore_to=0"):
        confusion_matrix(truth, prediction, 2)
    result = confusion_matrix(truth, prediction, 2, prediction_ignore_to=0)
    np.testing.assert_array_equal(result, [[1, 0], [0, 1]])
    with pytest.raises(EvaluationError, match="-3"):
        confusion_matrix(truth, np.array([-3, 1]), 2, prediction_ignore_to=0)


def test_shapes_and_dtypes_are_checked():
    with pytest.raises(EvaluationError, match="differ in shape"):
        confusion_matrix(np.zeros((2, 3), int), np.zeros((3, 2), int), 2)
    with pytest.raises(EvaluationError, match="argmax"):
        confusion_matrix(np.zeros(2, int), np.zeros(2), 2)
    with pytest.raises(EvaluationError, match="shape"):
        iou(np.zeros((2, 3), int))


def test_no_overflow_for_uint8_inputs_with_many_classes():
    truth = np.full(1000, 80, dtype=np.uint8)
    result = confusion_matrix(truth, truth, 81)
    assert result[80, 80] == 1000


def test_miou_over_defined_or_true_classes():
    confusion = np.array([[8, 2, 0], [0, 0, 0], [0, 0, 0]])
    np.testing.assert_allclose(iou(confusion), [0.8, 0.0, np.nan])
    assert miou(confusion) == pytest.approx(0.4)
    assert miou(confusion, mean_over="truth") == pytest.approx(0.8)
    assert miou(confusion, mean_over="all") == pytest.approx(0.8 / 3), "class 2, which is nowhere, counts as 0"
    for mean_over in ("defined", "truth", "all"):
        assert np.isnan(miou(np.zeros((3, 3), int), mean_over))
    np.testing.assert_allclose(miou(np.stack([confusion, 0 * confusion]), "all"), [0.8 / 3, np.nan])
    assert class_iou(confusion, ["background", "a", "b"]) == {"background": 0.8, "a": 0.0, "b": None}
    with pytest.raises(EvaluationError):
        class_iou(confusion, ["background"])


def test_smoothed_miou_differs_by_its_epsilon_only():
    # Class 2 is predicted and in no truth, class 3 in neither.
    confusion = np.array([[6, 1, 1, 0], [2, 10, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    assert smoothed_miou(confusion) == pytest.approx((6 / 10 + 10 / 13) / 2, abs=1e-5)
    assert smoothed_miou(confusion) < miou(confusion, "truth")
    assert smoothed_miou(confusion, epsilon=10.0) == pytest.approx((6 / 20 + 10 / 23) / 2)
    assert smoothed_miou(np.zeros((4, 4), int)) == 0


def test_class_counts_are_one_array_of_what_a_score_needs():
    stack = np.random.default_rng(0).integers(0, 9, (4, 5, 3, 3))
    counts = class_counts(stack)
    assert counts.shape == (4, 5, 3, 3) and counts.dtype == np.int64
    for place, expected in enumerate(intersections_and_totals(stack)):
        np.testing.assert_array_equal(counts[..., place, :], expected)


def test_scores_take_leading_axes():
    stack = np.random.default_rng(0).integers(0, 9, (4, 5, 3, 3))
    assert iou(stack).shape == (4, 5, 3)
    assert miou(stack).shape == (4, 5)
    assert miou(stack)[2, 3] == pytest.approx(miou(stack[2, 3]))
    assert pixel_accuracy(stack)[1, 1] == pytest.approx(pixel_accuracy(stack[1, 1]))


def test_accuracies():
    confusion = np.array([[6, 2], [1, 1]])
    assert pixel_accuracy(confusion) == pytest.approx(0.7)
    assert mean_accuracy(confusion) == pytest.approx((0.75 + 0.5) / 2)


def test_all_background_is_what_a_background_prediction_scores():
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 4, 200)
    confusion = confusion_matrix(truth, rng.integers(0, 4, 200), 4)
    expected = confusion_matrix(truth, np.zeros(200, int), 4)
    np.testing.assert_array_equal(all_background(confusion), expected)


def test_pseudo_label_scores_agree_with_the_reference():
    values = fixture("eval_sem_seg")
    matrices = [
        confusion_matrix(values[f"in_gt{i}"], values[f"in_pred{i}"], 21, prediction_ignore_to=0) for i in range(3)
    ]
    total = np.sum(matrices, axis=0)
    np.testing.assert_allclose(iou(total), values["iou"], rtol=1e-6)
    assert miou(total) == pytest.approx(float(values["miou"]), rel=1e-6)


def test_segmentation_scores_agree_with_the_reference():
    values = fixture("seg_metrics")
    total = confusion_matrix(values["in_gt"], values["in_pred"], 21)
    accuracy, recall, _, mean_iou = values["test_metric"]
    assert pixel_accuracy(total) == pytest.approx(float(accuracy), rel=1e-6)
    assert mean_accuracy(total) == pytest.approx(float(recall), rel=1e-6)
    assert miou(total, mean_over="truth") == pytest.approx(float(mean_iou), rel=1e-6)
