"""A race between settings: those that are clearly worse are dropped after a part of the images.

All settings see the same images in the same seeded order, round by round. After a round every setting is held
against the best one in a paired test over the images seen so far, and dropped when even the upper bound of its
difference to that one lies below zero.

The test. mIoU is a mean of ratios of sums, so the standard error of the difference of two settings is the jackknife's:
from the differences with one image left out at a time. It sees that a class rests on one or two images, where a
linearized error would be near zero and drop the best setting far too often. Images are drawn without replacement from
the N that are there, so the error carries the factor sqrt(1 - n/N): what is compared is the mIoU of these N images,
and after all of them nothing is left to chance. The bound uses Student's t.

The correction. The best of S settings is lost only if, in some round, some other one looks significantly better: at
most rounds x (S - 1) tests, none of which is independent of the others, and the best one is chosen by the data. Each
test therefore has the level alpha / (rounds x (S - 1)) (Bonferroni), which holds under any dependence. A sharper
sequential bound would need assumptions on the order in which classes turn up; Bonferroni costs little here, because
the bound grows with the square root of the logarithm of the number of tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from wsss.evaluation.confusion import EvaluationError, MeanOver, miou_from_counts


@dataclass(frozen=True)
class RaceRules:
    """How a race is run.

    Attributes:
        alpha: largest probability that the best setting is dropped.
        first: images of the first round; fewer than about 30 make the standard error unreliable.
        growth: images seen after a round, as a multiple of those seen before it; above 1.
        seed: of the order of the images.
    """

    alpha: float = 0.05
    first: int = 50
    growth: float = 1.5
    seed: int = 0


@dataclass(frozen=True)
class Drop:
    """A setting that left a race as clearly worse.

    Attributes:
        images: how many it was judged on.
        estimate: of its mIoU over all images (fraction).
        beaten_by: number of the best setting at that time.
    """

    images: int
    estimate: float
    beaten_by: int


# (numbers still in the race, positions of the images of this round) -> (number -> counts int64 (n, 3, C) of all n
# images seen so far, how the mean over classes is formed). A number that is missing has failed and leaves the race.
Look = Callable[[Sequence[int], Sequence[int]], tuple[Mapping[int, np.ndarray], MeanOver]]


def race_rounds(images: int, rules: RaceRules) -> tuple[int, ...]:
    """Images seen after each round, ascending, the last of them `images`.

    Raises EvaluationError on rules that make no rounds.
    """
    if images < 1 or rules.first < 2 or rules.growth <= 1 or not 0 < rules.alpha < 1:
        raise EvaluationError(
            f"{rules} make no race over {images} images",
            "race_rounds",
            "first at least 2, growth above 1, alpha between 0 and 1, at least one image",
        )
    rounds: list[int] = []
    size = float(rules.first)
    # A last round of a few images is not worth a test: it joins the one before.
    while size * (1 + (rules.growth - 1) / 2) < images:
        rounds.append(int(size))
        size *= rules.growth
    return (*rounds, images)


def comparison_level(rules: RaceRules, rounds: int, settings: int) -> float:
    """One-sided level of each comparison, so that the best of all settings is dropped at most with `rules.alpha`."""
    return rules.alpha / (rounds * max(1, settings - 1))


def jackknife(counts: np.ndarray, mean_over: MeanOver = "defined") -> np.ndarray:
    """mIoU of all images but one: int64 (S, n, 3, C) -> float64 (S, n), NaN where nothing is left."""
    counts = np.asarray(counts)
    rest = counts.sum(axis=1, keepdims=True) - counts
    return miou_from_counts(rest[:, :, 0], rest[:, :, 1], rest[:, :, 2], mean_over)


def survivors(counts: np.ndarray, images: int, level: float, mean_over: MeanOver = "defined") -> np.ndarray:
    """Which of the settings stay in the race after a round.

    Args:
        counts: int64 (S, n, 3, C) of the n images seen so far.
        images: N, of the whole race.
        level: one-sided level of each comparison with the leader.

    Returns:
        bool (S,): the leader is always among them; after all N images, those with its mIoU.
    """
    counts = np.asarray(counts)
    seen = counts.shape[1]
    total = counts.sum(axis=1)
    scores = np.atleast_1d(miou_from_counts(total[:, 0], total[:, 1], total[:, 2], mean_over))
    if np.isnan(scores).all():
        return np.ones(len(scores), dtype=bool)
    scores = np.where(np.isnan(scores), -np.inf, scores)
    leader = int(scores.argmax())
    left_out = jackknife(counts, mean_over)
    differences = left_out - left_out[leader]
    spread = np.where(np.isnan(differences), np.inf, differences)
    with np.errstate(invalid="ignore"):
        variance = (seen - 1) * spread.var(axis=1)
    variance = np.where(np.isnan(variance), np.inf, variance)
    quantile = stats.t.ppf(1 - level, seen - 1) if seen > 1 else np.inf
    error = np.sqrt(variance * max(0.0, 1 - seen / images))
    return scores - scores[leader] + quantile * error >= 0


def race(
    look: Look,
    numbers: Sequence[int],
    images: int,
    rules: RaceRules,
    comparisons: int,
    leader: tuple[int, np.ndarray] | None = None,
) -> dict[int, Drop]:
    """Drop settings that are clearly worse, looking at few images of them; number -> how it was dropped.

    After the last round before all images the race ends: what is left is to be evaluated on the other images.

    Args:
        look: counts the images of a round; called once for each round.
        numbers: of the settings.
        images: N, of the whole race.
        comparisons: settings that share the error probability of `rules`, at least those of this race.
        leader: number and counts int64 (N, 3, C) of a setting that is evaluated already; it is never dropped.

    Raises EvaluationError on rules that make no race.
    """
    rounds = race_rounds(images, rules)[:-1]
    order = [int(place) for place in np.random.default_rng(rules.seed).permutation(images)]
    alive, drops, done = list(numbers), {}, 0
    for size in rounds:
        counts, mean_over = look(alive, order[done:size])
        done = size
        alive = [number for number in alive if number in counts]
        racing = {number: counts[number] for number in alive}
        offset = 0.0
        if leader is not None:
            racing[leader[0]] = leader[1][order[:size]]
            # The images seen may be easier or harder than all of them; the leader tells by how much.
            offset = _miou(leader[1], mean_over) - _miou(racing[leader[0]], mean_over)
        if len(racing) < 2:
            break
        level = comparison_level(rules, len(rounds), comparisons)
        stay = survivors(np.stack(list(racing.values())), images, level, mean_over)
        scores = [_miou(each, mean_over) for each in racing.values()]
        first = list(racing)[int(np.nanargmax(scores))]
        for number, score, stays in zip(racing, scores, stay, strict=True):
            if not stays and number in alive:
                alive.remove(number)
                drops[number] = Drop(size, float(np.clip(score + offset, 0, 1)), first)
    return drops


def _miou(counts: np.ndarray, mean_over: MeanOver) -> float:
    right, truth, predicted = counts.sum(axis=0)
    return float(miou_from_counts(right, truth, predicted, mean_over))
