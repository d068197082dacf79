import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsss.evaluation.confusion import EvaluationError
from wsss.evaluation.racing import (
    RaceRules,
    _t_quantile,
    jackknife,
    race,
    race_rounds,
    survivors,
)
from wsss.evaluation.selection import setting_mious

CLASSES = 21


def population(seed: int, number: int, images: int, spread: float, by_class: float = 0.3) -> np.ndarray:
    """Counts (S, N, 3, C) as of VOC: rare classes, few classes an image, sizes and errors with long tails.

    spread: standard deviation of the settings' quality; by_class: of what each is better or worse at.
    """
    rng = np.random.default_rng(seed)
    frequency = rng.dirichlet(np.full(CLASSES - 1, 0.5))
    quality = rng.normal(0, spread, number)[:, None] + rng.normal(0, by_class * (spread > 0), (number, CLASSES))
    present = np.zeros((images, CLASSES), bool)
    present[:, 0] = True
    for image in range(images):
        present[image, 1 + rng.choice(CLASSES - 1, size=rng.integers(1, 4), p=frequency)] = True
    size = (rng.lognormal(8, 1.0, (images, CLASSES)) + 50) * present
    shape = (number, images, CLASSES)
    logit = 0.8 + 0.7 * rng.normal(size=(1, images, 1)) + quality[:, None] + rng.normal(0, 0.6, shape)
    right = np.round(size / (1 + np.exp(-logit)))
    wrong = size * rng.lognormal(-1.9, 0.9, (1, images, CLASSES)) * np.exp(-quality[:, None] / 2)
    wrong = wrong * rng.lognormal(0, 0.3, shape)
    wrong[:, np.arange(images), rng.integers(1, CLASSES, images)] += rng.random((number, images)) * 0.03 * size.sum(1)
    truth = np.broadcast_to(np.round(size), shape)
    return np.stack([right, truth, right + np.round(wrong)], axis=2).astype(np.int64)


@pytest.mark.parametrize("mean_over", ["defined", "truth"])
@pytest.mark.parametrize("spread", [0.0, 0.05])
def test_the_best_setting_is_dropped_at_most_at_the_stated_rate(mean_over, spread):
    """Eight settings that can hardly be told apart, or not at all: the hardest case for the test.

    With the true rate at alpha = 5 %, more than 15 drops in 160 races have a probability below 1 %.
    """
    dropped = 0
    for seed in range(80):
        counts = population(seed, 8, 200, spread)
        best = int(setting_mious(counts, mean_over).argmax())
        for order in range(2):
            rules = RaceRules(alpha=0.05, first=30, seed=order, mean_over=mean_over)
            dropped += race(lambda setting, at, c=counts: c[setting][list(at)], 8, 200, rules).images[best] < 200
    assert dropped <= 15, f"{dropped} of 160"


def test_clearly_worse_settings_see_few_images():
    spent, found = [], 0
    for seed in range(10):
        counts = population(seed, 20, 600, 0.3)
        result = race(lambda setting, at, c=counts: c[setting][list(at)], 20, 600)
        spent.append(result.spent)
        found += result.winner == int(setting_mious(counts).argmax())
        assert result.images[result.winner] == 600
        assert result.spent == sum(result.images) / (20 * 600)
    assert np.mean(spent) < 0.4 and found == 10


def test_a_race_without_decisions_is_the_full_evaluation():
    counts = population(3, 5, 90, 0.0)
    seen: dict[int, list[int]] = {}

    def count(setting, positions):
        seen.setdefault(setting, []).extend(positions)
        return counts[setting][list(positions)]

    result = race(count, 5, 90, RaceRules(alpha=1e-12, first=20))
    assert all(sorted(positions) == list(range(90)) for positions in seen.values()), "each image once"
    assert len({tuple(positions) for positions in seen.values()}) == 1, "the same order for all"
    assert result.spent == 1 and result.winner == int(setting_mious(counts).argmax())
    np.testing.assert_allclose(result.mious, setting_mious(counts), atol=1e-15)


def test_one_setting_alone_sees_everything():
    counts = population(0, 1, 40, 0.0)
    result = race(lambda setting, at: counts[setting][list(at)], 1, 40, RaceRules(first=10))
    assert result.images == (40,) and result.winner == 0


@given(seed=st.integers(0, 2**31), number=st.integers(1, 6), images=st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_the_leader_stays_and_all_images_decide(seed, number, images):
    rng = np.random.default_rng(seed)
    right = rng.integers(0, 5, (number, images, 4))
    counts = np.stack([right, right + rng.integers(0, 5, right.shape), right + rng.integers(0, 5, right.shape)], axis=2)
    scores = np.nan_to_num(setting_mious(counts), nan=-1)
    leader = int(scores.argmax())
    assert survivors(counts, 2 * images, 0.01)[leader]
    if images > 1 and not np.isnan(jackknife(counts)).any():
        assert np.array_equal(survivors(counts, images, 0.01), scores == scores[leader])
    if images == 1:
        assert survivors(counts, 2, 0.01).all(), "one image tells nothing"


def test_a_class_on_a_single_image_is_no_certainty():
    """Equal settings but for one class that one image has: leaving that image out takes the difference away."""
    counts = np.zeros((2, 40, 3, 3), np.int64)
    counts[:, :, 0, 0], counts[:, :, 1:, 0] = 90, 100
    counts[:, 0, 0, 2], counts[:, 0, 1:, 2] = [30, 80], 100
    counts[0, 0, 0, 2], counts[1, 0, 0, 2] = 30, 80
    assert survivors(counts, 1000, 0.01).all()


def test_an_obvious_difference_is_seen():
    rng = np.random.default_rng(0)
    counts = np.zeros((2, 40, 3, 3), np.int64)
    counts[:, :, 1:] = 100
    counts[0, :, 0], counts[1, :, 0] = rng.integers(80, 90, (40, 3)), rng.integers(40, 50, (40, 3))
    assert survivors(counts, 1000, 0.001).tolist() == [True, False]


def test_rounds_end_with_all_images():
    assert race_rounds(300, RaceRules(first=50, growth=2)) == (50, 100, 300)
    assert race_rounds(10, RaceRules(first=50)) == (10,)
    rounds = race_rounds(5000, RaceRules(first=40, growth=1.3))
    assert rounds[-1] == 5000 and list(rounds) == sorted(set(rounds))
    with pytest.raises(EvaluationError, match="make no race"):
        race_rounds(100, RaceRules(growth=1.0))


def test_t_quantile_is_that_of_the_tables():
    from scipy.stats import t

    for freedom in (10, 29, 200):
        for level in (1e-4, 0.01, 0.05):
            assert _t_quantile(1 - level, freedom) == pytest.approx(t.ppf(1 - level, freedom), rel=0.02)


def test_nothing_scored_is_an_error():
    empty = np.zeros((2, 5, 3, 3), np.int64)
    with pytest.raises(EvaluationError, match="no pixel was scored"):
        race(lambda setting, at: empty[setting][list(at)], 2, 5, RaceRules(first=2))
