import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsss.evaluation.confusion import EvaluationError, class_counts, miou, miou_from_counts
from wsss.evaluation.selection import (
    best_setting,
    choose,
    choose_by_halves,
    half_of,
    setting_mious,
)

CLASSES = 4


def random_counts(seed: int, number: int, images: int, noise: float = 0.15, spread: float = 0.0) -> np.ndarray:
    """Counts (S, N, 3, C) of settings that differ by chance alone, or by `spread` between the first and the last."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(50, 500, (1, images, CLASSES))
    level = 0.6 + np.linspace(0, spread, number)[:, None, None]
    right = np.round(truth * np.clip(level + noise * rng.normal(size=(number, images, CLASSES)), 0, 1))
    predicted = right + rng.integers(0, 100, right.shape)
    return np.stack([right, np.broadcast_to(truth, right.shape), predicted], axis=2).astype(np.int64)


def names_of(number: int) -> list[str]:
    return [f"2007_{index:06d}" for index in range(number)]


def score(counts: np.ndarray) -> float:
    total = counts.sum(axis=0)
    return float(miou_from_counts(total[0], total[1], total[2]))


@given(seed=st.integers(0, 2**31), number=st.integers(1, 6), images=st.integers(2, 30))
@settings(max_examples=60)
def test_choices_by_their_definition(seed, number, images):
    counts, names = random_counts(seed, number, images), names_of(images)
    mious = [score(each) for each in counts]
    chosen = choose(counts, names)
    assert chosen.mious == pytest.approx(mious)
    assert chosen.oracle == int(np.argmax(mious)) and chosen.oracle_miou == pytest.approx(max(mious))
    halves = np.array([half_of(name) for name in names])
    if set(halves) == {0, 1}:
        best = [int(np.argmax([score(each[halves == half]) for each in counts])) for half in (0, 1)]
        assert chosen.cross_fitted == tuple(best)
        pooled = np.concatenate([counts[best[1]][halves == 0], counts[best[0]][halves == 1]])
        assert chosen.cross_fitted_miou == pytest.approx(min(score(pooled), max(mious)))
    else:
        assert chosen.cross_fitted is None and chosen.cross_fitted_miou is None


@pytest.mark.parametrize("mean_over", ["defined", "truth"])
@given(seed=st.integers(0, 2**31), number=st.integers(1, 9), images=st.integers(1, 5), classes=st.integers(2, 25))
@settings(max_examples=150)
def test_no_choice_is_worth_more_than_the_oracle(mean_over, seed, number, images, classes):
    """Sparse counts: classes that only some images, or only the predictions, hold."""
    rng = np.random.default_rng(seed)
    per_image = rng.integers(0, 4, (number, images, classes, classes)) * (rng.random((classes, classes)) < 0.3)
    per_image[:, :, 0, 0] += 1
    counts = class_counts(per_image)
    chosen = choose(counts, names_of(images), mean_over=mean_over)
    assert all(chosen.oracle_miou >= value for value in chosen.mious if value is not None)
    assert chosen.cross_fitted_miou is None or chosen.oracle_miou >= chosen.cross_fitted_miou
    for each in per_image:
        assert chosen.oracle_miou >= miou(each.sum(axis=0), mean_over)


@pytest.mark.parametrize("mean_over", ["defined", "truth"])
def test_two_settings_mixed_do_not_count_for_more_than_the_best_one(mean_over):
    """mIoU is no sum over images: pooled, the halves at each other's best setting can reach more than any setting."""
    first = [[[0, 0, 2], [0, 1, 0], [0, 0, 1]], [[0, 0, 0], [0, 0, 0], [0, 3, 1]]]  # one matrix for each half
    second = [[[2, 0, 0], [1, 0, 0], [0, 0, 1]], [[0, 0, 0], [0, 0, 0], [4, 0, 0]]]
    halves = np.array([first, second])
    chosen = choose_by_halves(class_counts(halves), mean_over)
    assert chosen.cross_fitted == (1, 0)
    mixed = float(miou(halves[0, 0] + halves[1, 1], mean_over))
    assert mixed > max(value for value in chosen.mious if value is not None) + 0.2
    assert chosen.cross_fitted_miou == chosen.oracle_miou < mixed


def test_the_first_of_equal_settings_is_chosen():
    confusions = np.array([[[0, 5], [5, 0]], [[5, 0], [0, 5]], [[5, 0], [0, 5]]])[:, None]
    assert best_setting(class_counts(confusions)) == 1


def test_what_does_not_fit_is_said():
    counts = random_counts(0, 3, 5)
    with pytest.raises(EvaluationError, match="stack confusion"):
        setting_mious(counts[0])
    with pytest.raises(EvaluationError, match="4 names"):
        choose(counts, names_of(4))
    with pytest.raises(EvaluationError, match="no pixel was scored"):
        best_setting(np.zeros_like(counts))
