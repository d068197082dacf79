from typing import Any

import numpy as np
import pytest

from wsss.evaluation.bootstrap import (
    Interval,
    PairedComparison,
    bootstrap_interval_from_counts,
    paired_comparison_from_counts,
)
from wsss.evaluation.confusion import EvaluationError, class_counts, miou


def matrices(number: int, seed: int, right: float = 0.7, classes: int = 4) -> np.ndarray:
    rng = np.random.default_rng(seed)
    result = np.zeros((number, classes, classes), np.int64)
    for image in result:
        truth = rng.integers(0, classes, 300)
        share = np.clip(rng.normal(right, 0.15), 0, 1)
        prediction = np.where(rng.random(300) < share, truth, rng.integers(0, classes, 300))
        np.add.at(image, (truth, prediction), 1)
    return result


def bootstrap_interval(per_image: np.ndarray, **options: Any) -> Interval:
    return bootstrap_interval_from_counts(class_counts(per_image), **options)


def paired_comparison(first: np.ndarray, second: np.ndarray, **options: Any) -> PairedComparison:
    return paired_comparison_from_counts(class_counts(first), class_counts(second), **options)


def test_matches_a_plain_loop_over_resamples():
    per_image = matrices(7, 0)
    result = bootstrap_interval(per_image, samples=150, confidence=0.9, seed=3)
    rng = np.random.default_rng(3)
    values = []
    for _ in range(150):
        weights = rng.multinomial(7, np.full(7, 1 / 7))
        values.append(miou((per_image * weights[:, None, None]).sum(axis=0)))
    assert result.value == pytest.approx(miou(per_image.sum(axis=0)))
    assert (result.low, result.high) == pytest.approx(tuple(np.percentile(values, [5, 95])))
    assert result.low < result.value < result.high


def test_the_seed_alone_decides():
    per_image = matrices(20, 1)
    assert bootstrap_interval(per_image, seed=5) == bootstrap_interval(per_image, seed=5)
    assert bootstrap_interval(per_image, seed=5) != bootstrap_interval(per_image, seed=6)


def test_more_images_make_a_narrower_interval():
    few, many = bootstrap_interval(matrices(10, 2)), bootstrap_interval(matrices(200, 2))
    assert many.high - many.low < (few.high - few.low) / 2


def test_identical_images_have_no_spread():
    per_image = np.repeat(matrices(1, 3), 9, axis=0)
    result = bootstrap_interval(per_image, samples=50)
    assert result.low == pytest.approx(result.value) == pytest.approx(result.high)


def test_paired_comparison_sees_a_small_consistent_gain():
    second = matrices(60, 4, right=0.6)
    first = second.copy()
    for image in first:  # the same images, five pixels of one confusion put right
        moved = min(5, image[1, 2])
        image[1, 2] -= moved
        image[1, 1] += moved
    result = paired_comparison(first, second, samples=300)
    assert result.difference == pytest.approx(miou(first.sum(axis=0)) - miou(second.sum(axis=0)))
    assert 0 < result.low < result.difference < result.high
    assert result.p_value == 0.0
    # Unpaired intervals of the two overlap: only the pairing settles it.
    assert bootstrap_interval(first).low < bootstrap_interval(second).high


def test_paired_comparison_of_equals_is_zero():
    per_image = matrices(8, 5)
    result = paired_comparison(per_image, per_image, samples=40)
    assert (result.difference, result.low, result.high, result.p_value) == (0, 0, 0, 1.0)


def test_wrong_input_is_refused():
    with pytest.raises(EvaluationError, match="N, 3, C"):
        bootstrap_interval_from_counts(np.zeros((3, 3), int))
    with pytest.raises(EvaluationError, match="at least 1"):
        bootstrap_interval(np.zeros((0, 3, 3), int))
    with pytest.raises(EvaluationError, match="no pixel"):
        bootstrap_interval(np.zeros((2, 3, 3), int))
    with pytest.raises(EvaluationError, match="confidence"):
        bootstrap_interval(matrices(2, 0), confidence=95)
    with pytest.raises(EvaluationError, match="same images"):
        paired_comparison(matrices(2, 0), matrices(3, 0))
