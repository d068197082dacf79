import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.evaluation.test_confusion import fixture
from tests.references import label_at_threshold

from wsss.evaluation.confusion import EvaluationError, confusion_matrix, iou, miou
from wsss.evaluation.curves import threshold_confusions

NUM_CLASSES = 5
# Few distinct values, most of them also thresholds: ties between classes, and with the background, abound.
LEVELS = [-0.3, 0.0, 0.1, 0.2, 0.25, 0.3, 0.7, 1.0]


@st.composite
def cases(draw):
    number = draw(st.integers(0, 4))
    height, width = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    dtype = draw(st.sampled_from([np.float16, np.float32, np.float64]))
    value = st.one_of(st.sampled_from(LEVELS), st.floats(-1, 2, width=32))
    maps = np.array(
        draw(st.lists(value, min_size=number * height * width, max_size=number * height * width)), dtype=dtype
    ).reshape(number, height, width)
    keys = np.array(draw(st.permutations(range(1, NUM_CLASSES)))[:number], dtype=np.int64)
    truth = np.array(
        draw(st.lists(st.sampled_from([0, 1, 2, 3, 4, 255, -1, 9]), min_size=height * width, max_size=height * width)),
        dtype=np.int16,
    ).reshape(height, width)
    thresholds = draw(st.lists(st.one_of(st.sampled_from(LEVELS), st.floats(-1, 2)), min_size=1, max_size=6))
    return maps, keys, truth, thresholds


def one_by_one(maps, keys, truth, thresholds):
    """The definition, written out: fill a background map, argmax, count."""
    maps = maps.astype(np.float32) if maps.dtype == np.float16 else maps
    matrices = []
    for threshold in thresholds:
        stacked = np.pad(maps, ((1, 0), (0, 0), (0, 0)), constant_values=threshold)
        labels = np.concatenate([[0], keys]).astype(np.int64)[stacked.argmax(axis=0)]
        matrices.append(confusion_matrix(truth, labels, NUM_CLASSES))
    return np.stack(matrices)


@settings(max_examples=300)
@given(cases())
def test_one_pass_equals_every_threshold_by_itself(case):
    maps, keys, truth, thresholds = case
    result = threshold_confusions(maps, keys, truth, thresholds, NUM_CLASSES)
    assert result.dtype == np.int64
    np.testing.assert_array_equal(result, one_by_one(maps, keys, truth, thresholds))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_value_exactly_at_the_threshold_is_background(dtype):
    maps = np.array([[[0.2, np.nextafter(dtype(0.2), dtype(1))]]], dtype=dtype)
    result = threshold_confusions(maps, np.array([1]), np.array([[1, 1]]), [0.2], 2)
    np.testing.assert_array_equal(result[0], [[0, 0], [1, 1]])
    np.testing.assert_array_equal(label_at_threshold(maps, np.array([1]), 0.2), [[0, 1]])


def test_the_earlier_map_wins_a_tie():
    maps = np.full((2, 1, 1), 0.5, np.float32)
    result = threshold_confusions(maps, np.array([3, 1]), np.array([[1]]), [0.2], NUM_CLASSES)
    assert result[0, 1, 3] == 1


def test_an_image_without_classes_is_background():
    maps = np.zeros((0, 2, 2), np.float32)
    truth = np.array([[0, 1], [255, 0]])
    result = threshold_confusions(maps, np.zeros(0, np.int64), truth, [0.1, 0.9], NUM_CLASSES)
    assert result[:, 0, 0].tolist() == [2, 2]
    assert result[:, 1, 0].tolist() == [1, 1]
    assert result.sum() == 6


def test_what_does_not_fit_is_refused():
    maps = np.zeros((1, 2, 2), np.float32)
    truth = np.zeros((2, 2), int)
    with pytest.raises(EvaluationError, match="size of the mask"):
        threshold_confusions(maps, np.array([1]), np.zeros((3, 2), int), [0.1], 3)
    with pytest.raises(EvaluationError, match="1-based"):
        threshold_confusions(maps, np.array([0]), truth, [0.1], 3)
    with pytest.raises(EvaluationError, match="do not fit"):
        threshold_confusions(maps, np.array([1, 2]), truth, [0.1], 3)
    with pytest.raises(EvaluationError, match="NaN"):
        threshold_confusions(maps + np.nan, np.array([1]), truth, [0.1], 3)
    with pytest.raises(EvaluationError, match="floating point"):
        threshold_confusions(maps.astype(int), np.array([1]), truth, [0.1], 3)


def test_cam_scores_agree_with_the_reference():
    values = fixture("eval_cam")
    keys = [np.array([3, 8]), np.array([15]), np.array([3, 15, 20])]
    matrices = [
        threshold_confusions(values[f"in_cam{i}"], keys[i], values[f"in_gt{i}"], [0.1, 0.2], 21)[1] for i in range(3)
    ]
    total = np.sum(matrices, axis=0)
    expected = values["iou"]
    np.testing.assert_allclose(np.nan_to_num(iou(total), nan=-1.0), expected, rtol=1e-6)
    assert miou(total) == pytest.approx(float(values["miou"]), rel=1e-6)
