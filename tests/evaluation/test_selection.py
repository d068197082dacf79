import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsss.evaluation.bootstrap import bootstrap_interval_from_counts, paired_comparison_from_counts
from wsss.evaluation.confusion import EvaluationError, miou_from_counts
from wsss.evaluation.selection import (
    best_setting,
    choose,
    counts_of_settings,
    half_of,
    in_selection_part,
    label_free_choice,
    rank_correlation,
    select,
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


def by_rule(counts, names, **options):
    return {row.rule: row for row in select(counts, names, samples=100, **options)}


@given(seed=st.integers(0, 2**31), number=st.integers(1, 6), images=st.integers(2, 30))
@settings(max_examples=60, deadline=None)
def test_choices_by_their_definition(seed, number, images):
    counts, names = random_counts(seed, number, images), names_of(images)
    mious = [score(each) for each in counts]
    chosen = choose(counts, names)
    assert chosen.mious == pytest.approx(mious)
    assert chosen.oracle == int(np.argmax(mious)) and chosen.oracle_miou == pytest.approx(max(mious))
    halves = np.array([half_of(name) for name in names])
    if set(halves) == {0, 1}:
        best = [int(np.argmax([score(each[halves == half]) for each in counts])) for half in (0, 1)]
        assert chosen.held_out == tuple(best)
        pooled = np.concatenate([counts[best[1]][halves == 0], counts[best[0]][halves == 1]])
        assert chosen.held_out_miou == pytest.approx(score(pooled))
    else:
        assert chosen.held_out is None and chosen.held_out_miou is None


@given(seed=st.integers(0, 2**31), number=st.integers(1, 5), images=st.integers(8, 30), default=st.integers(0, 4))
@settings(max_examples=30, deadline=None)
def test_every_way_reports_the_counts_of_its_choice(seed, number, images, default):
    counts, names, default = random_counts(seed, number, images), names_of(images), default % number
    criterion = np.random.default_rng(seed).random((number, images))
    rows = by_rule(counts, names, default=default, label_free=criterion, split=0.5)
    everything = {"confidence": 0.95, "samples": 100, "seed": 0}
    for rule, setting in (
        ("default", default),
        ("oracle", best_setting(counts)),
        ("label_free", int(criterion.mean(axis=1).argmax())),
    ):
        row = rows[rule]
        assert row.settings == (setting,) and row.images == images
        assert row.miou == bootstrap_interval_from_counts(counts[setting], **everything)
        assert row.gain == paired_comparison_from_counts(counts[setting], counts[default], **everything)
    assert rows["default"].gain.difference == rows["default"].gain.low == rows["default"].gain.high == 0
    assert rows["oracle"].gain.difference >= 0
    assert [rule for rule, row in rows.items() if row.used_masks] == [
        rule for rule in rows if rule in ("oracle", "held_out", "split")
    ]
    part = np.array([in_selection_part(name, 0.5) for name in names])
    if part.any() and not part.all():
        row = rows["split"]
        assert row.settings == (best_setting(counts[:, part]),) and row.images == int((~part).sum())
        assert row.miou.value == pytest.approx(score(counts[row.settings[0]][~part]))
    else:
        assert "split" not in rows


def test_the_oracle_is_too_good_and_the_held_out_numbers_are_not():
    """Forty settings that differ by chance alone: whatever is chosen is worth what all of them are worth.

    Images, and so the truth of every setting, are drawn anew in each repetition.
    """
    gains: dict[str, list[float]] = {}
    for seed in range(60):
        rows = by_rule(random_counts(seed, 40, 60), names_of(60), default=0)
        for rule, row in rows.items():
            gains.setdefault(rule, []).append(row.gain.difference)
    mean = {rule: float(np.mean(values)) for rule, values in gains.items()}
    error = {rule: float(np.std(values) / np.sqrt(60)) for rule, values in gains.items()}
    assert mean["oracle"] > 10 * error["oracle"]
    for rule in ("held_out", "split"):
        assert abs(mean[rule]) < 3 * error[rule], rule
        assert mean[rule] < mean["oracle"] / 3, rule


def test_a_real_difference_is_found_by_every_way():
    counts = random_counts(1, 12, 80, spread=0.2)
    rows = by_rule(counts, names_of(80), default=0)
    for rule in ("oracle", "held_out", "split"):
        assert all(setting >= 9 for setting in rows[rule].settings), rule
        assert rows[rule].gain.low > 0.05 and rows[rule].gain.p_value < 0.05, rule


def test_interval_of_a_gain_is_narrower_than_that_of_a_number():
    """Paired: what makes an image hard for both settings takes no part in their difference."""
    rng = np.random.default_rng(0)
    hard = rng.random((1, 100, 1))
    truth = np.full((2, 100, CLASSES), 1000)
    right = np.round(truth * (0.2 + 0.6 * hard + np.array([0.0, 0.02])[:, None, None]))
    counts = np.stack([right, truth, truth], axis=2).astype(np.int64)
    row = by_rule(counts, names_of(100))["oracle"]
    assert row.settings == (1,) and row.gain.low > 0
    assert row.gain.high - row.gain.low < 0.1 * (row.miou.high - row.miou.low)


def test_counts_of_settings_are_aligned_by_name():
    counts, names = random_counts(4, 2, 5), names_of(5)
    order = [3, 1, 4, 0, 2]
    second = {"image_counts_crf": counts[1][order], "images_crf": np.array(names)[order], "image_counts": counts[0]}
    evaluations = [{"image_counts_crf": counts[0], "images_crf": np.array(names)}, second]
    stacked, found = counts_of_settings(evaluations, "crf")
    assert found == names and np.array_equal(stacked, counts)
    second["images_crf"] = np.array([*names[:4], "another"])
    with pytest.raises(EvaluationError, match="setting 1 was evaluated on 5 images"):
        counts_of_settings(evaluations, "crf")
    with pytest.raises(EvaluationError, match="setting 0 keeps no counts"):
        counts_of_settings(evaluations)
    with pytest.raises(EvaluationError, match="no setting"):
        counts_of_settings([])


def test_criterion_without_a_value_for_some_images():
    nan = float("nan")
    assert label_free_choice(np.array([[0.1, nan], [nan, nan], [nan, 0.3]])) == 2
    assert label_free_choice(np.array([[0.3, 0.3], [0.3, 0.3]])) == 0
    with pytest.raises(EvaluationError, match="criterion"):
        label_free_choice(np.full((2, 3), nan))


@given(st.lists(st.integers(-5, 5), min_size=2, max_size=12), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_rank_correlation_is_spearmans(values, seed):
    from scipy.stats import spearmanr

    other = np.random.default_rng(seed).integers(-3, 4, len(values))
    found = rank_correlation(values, other)
    if len(set(values)) == 1 or len(set(other.tolist())) == 1:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(float(np.asarray(spearmanr(values, other))[0]))
        assert rank_correlation(np.exp(values), other) == pytest.approx(found)


def test_divisions_of_the_images_know_nothing_of_each_other():
    names = names_of(4000)
    part = np.array([in_selection_part(name, 0.3) for name in names])
    assert part.mean() == pytest.approx(0.3, abs=0.03)
    halves = np.array([half_of(name) for name in names])
    assert halves.mean() == pytest.approx(0.5, abs=0.03)
    assert abs(np.corrcoef(part, halves)[0, 1]) < 0.05
    larger = np.array([in_selection_part(name, 0.6) for name in names])
    assert np.all(larger[part]), "a larger part holds the smaller one"


def test_what_does_not_fit_is_said():
    counts = random_counts(0, 3, 5)
    with pytest.raises(EvaluationError, match="stack bootstrap"):
        setting_mious(counts[0])
    with pytest.raises(EvaluationError, match="4 names"):
        select(counts, names_of(4))
    with pytest.raises(EvaluationError, match="default 3"):
        select(counts, names_of(5), default=3)
    with pytest.raises(EvaluationError, match="4 names"):
        choose(counts, names_of(4))
    with pytest.raises(EvaluationError, match="no pixel was scored"):
        best_setting(np.zeros_like(counts))
    with pytest.raises(EvaluationError, match="same settings"):
        rank_correlation([1, 2], [1, 2, 3])
