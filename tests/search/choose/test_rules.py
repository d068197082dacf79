"""Ways of choosing among the settings of a sweep: what each takes, and that only honest ones are honest."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from wsss.evaluation.bootstrap import bootstrap_interval_from_counts, paired_comparison_from_counts
from wsss.search.choose.rules import compare_rules
from wsss.search.choose.score import ImageCounts
from wsss.search.records import CriterionPoint, CurvePoint, SearchedKey, Selected, TrialRecord

METRIC = "x/miou_train"
THRESHOLDS = np.array([0.2, 0.3, 0.4])
KEYS = (SearchedKey("t", "float", low=0.2, high=0.3, step=0.1, default=0.2, level="curve"),)
CLASSES = 4


def random_counts(seed: int, settings: int, images: int, spread: float = 0.0, noise: float = 0.15) -> np.ndarray:
    """Counts (S, N, T, 3, C) that differ by chance alone, or by `spread` between the first and the last setting."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(50, 500, (1, images, 1, CLASSES))
    level = 0.6 + np.linspace(0, spread, settings)[:, None, None, None]
    shape = (settings, images, len(THRESHOLDS), CLASSES)
    right = np.round(truth * np.clip(level + noise * rng.normal(size=shape), 0, 1))
    predicted = right + rng.integers(0, 100, shape)
    return np.stack([right, np.broadcast_to(truth, shape), predicted], axis=3).astype(np.int64)


def as_sweep(counts: np.ndarray, with_curve: bool = True) -> tuple[list[TrialRecord], list[ImageCounts]]:
    """Trials and their counts, as a sweep leaves them."""
    names = tuple(f"2007_{index:06d}" for index in range(counts.shape[1]))
    if not with_curve:
        counts = counts[:, :, :1]
    read = [ImageCounts(each, THRESHOLDS if with_curve else np.zeros(0), names, "defined", 0) for each in counts]
    trials = []
    for number, each in enumerate(read):
        everywhere = np.ones(len(names), dtype=bool)
        curves = (each.curve(images) for images in (everywhere, each.choosing, ~each.choosing))
        points = [CurvePoint(float(t), *map(float, row)) for t, *row in zip(THRESHOLDS, *curves, strict=False)]
        trials.append(TrialRecord(number, {}, {}, "k", 0, status="finished", curve=tuple(points) if with_curve else ()))
    return trials, read


def by_rule(counts: np.ndarray, with_curve: bool = True) -> dict[str, Selected]:
    trials, read = as_sweep(counts, with_curve)
    return {way.rule: way for way in compare_rules(trials, KEYS, lambda trial: read[trial.number])}


@pytest.mark.parametrize("with_curve", [True, False])
def test_every_way_reports_the_counts_of_its_choice(with_curve: bool) -> None:
    counts = random_counts(3, 5, 24)
    trials, read = as_sweep(counts, with_curve)
    ways = by_rule(counts, with_curve)
    names, choosing = read[0].names, read[0].choosing
    allowed = 2 if with_curve else 1  # 0.4 is outside the searched range
    scores = {
        half: np.array([each.curve(images)[:allowed] for each in read])
        for half, images in (("all", np.ones(len(names), bool)), ("first", choosing), ("second", ~choosing))
    }
    taken = {half: np.unravel_index(values.argmax(), values.shape) for half, values in scores.items()}
    best, first, second = taken["all"], taken["first"], taken["second"]
    assert ways["default"].trials == (0,) and ways["default"].gain.difference == 0
    assert ways["oracle"].trials == (best[0],) and ways["oracle"].used_masks
    assert ways["cross_fitted"].trials == (first[0], second[0])
    assert ways["held_out"].trials == (first[0],) and ways["held_out"].images == int((~choosing).sum())
    default = counts[0, :, 0]
    expected = {
        "oracle": (counts[best[0], :, best[1]], default),
        "held_out": (counts[first[0], ~choosing, first[1]], default[~choosing]),
        "cross_fitted": (
            np.where(choosing[:, None, None], counts[second[0], :, second[1]], counts[first[0], :, first[1]]),
            default,
        ),
    }
    for rule, (ours, recipe) in expected.items():
        assert ways[rule].miou == bootstrap_interval_from_counts(ours), rule
        assert ways[rule].gain == paired_comparison_from_counts(ours, recipe), rule
    assert "label_free" not in ways
    assert trials[0].criterion == ()


def test_a_criterion_without_masks_chooses_by_itself() -> None:
    counts = random_counts(4, 3, 20)
    trials, read = as_sweep(counts)
    values = {0: (1.0, float("nan")), 1: (1.2, 1.9), 2: (1.4, 1.3)}
    trials = [
        replace(
            trial, criterion=tuple(CriterionPoint(t, v) for t, v in zip((0.2, 0.3), values[trial.number], strict=True))
        )
        for trial in trials
    ]
    (way,) = [w for w in compare_rules(trials, KEYS, lambda t: read[t.number]) if w.rule == "label_free"]
    assert way.trials == (1,) and not way.used_masks and way.images == 20
    assert way.miou == bootstrap_interval_from_counts(counts[1, :, 1]), "at the criterion's threshold, 0.3"


def test_without_counts_of_the_recipe_there_is_nothing_to_compare() -> None:
    trials, _ = as_sweep(random_counts(0, 2, 8))
    assert compare_rules(trials, KEYS, lambda trial: None) == ()
    assert compare_rules(trials[1:], KEYS, lambda trial: None) == ()


def test_the_oracle_is_too_good_and_the_held_out_numbers_are_not() -> None:
    """Forty settings that differ by chance alone: whatever is chosen is worth what all of them are worth.

    Images, and so the truth of every setting, are drawn anew in each repetition.
    """
    gains: dict[str, list[float]] = {}
    for seed in range(40):
        for rule, way in by_rule(random_counts(seed, 40, 60), with_curve=False).items():
            gains.setdefault(rule, []).append(way.gain.difference)
    mean = {rule: float(np.mean(values)) for rule, values in gains.items()}
    error = {rule: float(np.std(values) / np.sqrt(40)) for rule, values in gains.items()}
    assert mean["oracle"] > 8 * error["oracle"]
    for rule in ("cross_fitted", "held_out"):
        assert abs(mean[rule]) < 3 * error[rule], rule
        assert mean[rule] < mean["oracle"] / 3, rule


def test_a_real_difference_is_found_by_every_way() -> None:
    ways = by_rule(random_counts(1, 12, 80, spread=0.2))
    for rule in ("oracle", "cross_fitted", "held_out"):
        assert all(setting >= 9 for setting in ways[rule].trials), rule
        assert ways[rule].gain.low > 0.05 and ways[rule].gain.p_value < 0.05, rule


def test_interval_of_a_gain_is_narrower_than_that_of_a_number() -> None:
    """Paired: what makes an image hard for both settings takes no part in their difference."""
    rng = np.random.default_rng(0)
    hard = rng.random((1, 100, 1, 1))
    truth = np.full((2, 100, 1, CLASSES), 1000)
    right = np.round(truth * (0.2 + 0.6 * hard + np.array([0.0, 0.02])[:, None, None, None]))
    counts = np.stack([right, truth, truth], axis=3).astype(np.int64)
    way = by_rule(counts, with_curve=False)["oracle"]
    assert way.trials == (1,) and way.gain.low > 0
    assert way.gain.high - way.gain.low < 0.1 * (way.miou.high - way.miou.low)
