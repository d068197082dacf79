"""Racing: settings that are clearly worse are dropped after a part of the images, so that few see all of them.

All settings see the same images in the same seeded order, round by round. After a round every setting is held
against the leader in a paired test over the images seen so far, and dropped when even the upper bound of its
difference to the leader lies below zero.

The test. mIoU is a mean of ratios of sums, so the standard error of the difference of two settings is the jackknife's:
from the differences with one image left out at a time. It sees that a class rests on one or two images, where a
linearized error would be near zero and drop the best setting far too often. Images are drawn without replacement from
the N that are there, so the error carries the factor sqrt(1 - n/N): what is compared is the mIoU of these N images,
and after all of them nothing is left to chance. The bound uses Student's t.

The correction. The best of S settings is lost only if, in some round, some other one looks significantly better: at
most rounds x (S - 1) tests, none of which is independent of the others, and the leader is chosen by the data. Each
test therefore has the level alpha / (rounds x (S - 1)) (Bonferroni), which holds under any dependence. A sharper
sequential bound would need assumptions on the order in which classes turn up; Bonferroni costs little here, because
the bound grows with the square root of the logarithm of the number of tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from wsss.evaluation.confusion import EvaluationError, MeanOver, miou_from_counts

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class RaceRules:
    """How a race is run.

    Attributes:
        alpha: largest probability that the best setting is dropped.
        first: images of the first round; fewer than about 30 make the standard error unreliable.
        growth: images seen after a round, as a multiple of those seen before it; above 1.
        seed: of the order of the images.
        mean_over: see `confusion.miou`.
    """

    alpha: float = 0.05
    first: int = 50
    growth: float = 1.5
    seed: int = 0
    mean_over: MeanOver = "defined"


@dataclass(frozen=True)
class RaceResult:
    """How a race ended.

    Attributes:
        winner: index of the setting with the highest mIoU among those that saw all images.
        mious: mIoU of every setting on the images that it saw (fraction); NaN where nothing was scored.
        images: how many images each setting saw.
        rounds: images seen after each round.
        spent: images seen by all settings together, as a fraction of settings x images.
    """

    winner: int
    mious: tuple[float, ...]
    images: tuple[int, ...]
    rounds: tuple[int, ...]
    spent: float


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


def jackknife(counts: Array, mean_over: MeanOver = "defined") -> Array:
    """mIoU of all images but one: int64 (S, n, 3, C) -> float64 (S, n), NaN where nothing is left."""
    counts = np.asarray(counts)
    rest = counts.sum(axis=1, keepdims=True) - counts
    return miou_from_counts(rest[:, :, 0], rest[:, :, 1], rest[:, :, 2], mean_over)


def survivors(counts: Array, images: int, level: float, mean_over: MeanOver = "defined") -> Array:
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
    error = np.sqrt(variance * max(0.0, 1 - seen / images))
    return scores - scores[leader] + _t_quantile(1 - level, seen - 1) * error >= 0


def race(
    count: Callable[[int, Sequence[int]], Array], settings: int, images: int, rules: RaceRules | None = None
) -> RaceResult:
    """Find the best setting, looking at few images of those that are clearly worse.

    Args:
        count: (setting, positions of images in 0..images-1) -> int64 (n, 3, C); called once for every setting and
            every image that it must see.
        settings, images: how many.
        rules: of the race.

    Raises EvaluationError on rules that make no race, or when no pixel was scored.
    """
    rules = rules or RaceRules()
    rounds = race_rounds(images, rules)
    order = np.random.default_rng(rules.seed).permutation(images)
    level = comparison_level(rules, len(rounds), settings)
    alive = list(range(settings))
    seen: dict[int, list[Array]] = {setting: [] for setting in alive}
    done = 0
    for size in rounds:
        positions = [int(position) for position in order[done:size]]
        for setting in alive:
            seen[setting].append(np.asarray(count(setting, positions)))
        done = size
        stacked = np.stack([np.concatenate(seen[setting]) for setting in alive])
        if size < images:
            stay = survivors(stacked, images, level, rules.mean_over)
            alive = [setting for setting, stays in zip(alive, stay, strict=True) if stays]
        if len(alive) == 1 and size < images:
            # Nobody is left to race against, but the winner's number is over all images.
            positions = [int(position) for position in order[size:]]
            seen[alive[0]].append(np.asarray(count(alive[0], positions)))
            break
    mious, shown = [], []
    for setting in range(settings):
        total = np.concatenate(seen[setting])
        shown.append(len(total))
        sums = total.sum(axis=0)
        mious.append(float(miou_from_counts(sums[0], sums[1], sums[2], rules.mean_over)))
    finalists = [setting for setting in alive if not np.isnan(mious[setting])]
    if not finalists:
        raise EvaluationError("no pixel was scored", "race", "check that the masks are not all ignored")
    winner = max(finalists, key=lambda setting: mious[setting])
    return RaceResult(winner, tuple(mious), tuple(shown), rounds, sum(shown) / (settings * images))


def _t_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t by its expansion around the normal one; infinite without a degree of freedom."""
    if freedom < 1:
        return float("inf")
    z = NormalDist().inv_cdf(probability)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3
