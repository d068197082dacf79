"""Recipes side by side: a planted difference is found, equals are not told apart, other data are not compared."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from wsss.evaluation.bootstrap import PairedComparison
from wsss.evaluation.confusion import class_counts, miou
from wsss.reporting.comparison import (
    Contender,
    Cost,
    Scored,
    common_metrics,
    difference,
    difference_table,
    number_table,
    with_one_mean,
)

CLASSES = 4
METRIC = "segmentation/miou_val"


def predicted(images: int, right: float, training: int, world: int = 0) -> np.ndarray:
    """Confusions (N, C, C) of a predictor that is right in a share of the pixels; the images belong to the world."""
    data, luck = np.random.default_rng([world, 1]), np.random.default_rng([world, 2, training])
    result = np.zeros((images, CLASSES, CLASSES), dtype=np.int64)
    for image in result:
        hardness, truth = data.normal(0, 0.15), data.integers(0, CLASSES, 200)
        share = np.clip(right + hardness + luck.normal(0, 0.05), 0, 1)
        prediction = np.where(luck.random(200) < share, truth, luck.integers(0, CLASSES, 200))
        np.add.at(image, (truth, prediction), 1)
    return result


def contender(title: str, *confusions: np.ndarray) -> Contender:
    number = Scored(
        values=tuple(float(miou(each.sum(axis=0))) for each in confusions),
        counts=tuple(class_counts(each) for each in confusions),
        images=tuple(f"image{index}" for index in range(len(confusions[0]))),
    )
    seeds = tuple(range(len(confusions)))
    return Contender(
        title=title,
        runs=tuple(f"{title}-{seed}" for seed in seeds),
        seeds=seeds,
        dataset="voc2012",
        cost=Cost(60.0),
        numbers={METRIC: number},
    )


def test_a_planted_gain_is_found_with_an_interval_that_holds_it() -> None:
    base = predicted(150, 0.6, training=0)
    better = base.copy()
    for image in better[:60]:  # one class of these images is right everywhere
        image[2, 2], image[2, [0, 1, 3]] = image[2].sum(), 0
    planted = float(miou(better.sum(axis=0)) - miou(base.sum(axis=0)))
    found = difference(contender("better", better), contender("base", base), METRIC)
    assert isinstance(found, PairedComparison)
    assert found.difference == pytest.approx(planted) and 0 < found.low < planted < found.high
    (row,) = difference_table([contender("base", base), contender("better", better)], [METRIC]).rows
    assert row[-1] == "better" and row[1:3] == ("better", "base")


def test_equal_predictors_are_told_apart_at_the_stated_rate() -> None:
    """Of 200 worlds with two equally good predictors about 10 are called different: 4 to 16 hold 95 %."""
    called = 0
    for world in range(200):
        first, second = (contender(str(t), predicted(40, 0.6, training=t, world=world)) for t in (1, 2))
        found = difference(first, second, METRIC)
        assert isinstance(found, PairedComparison)
        called += found.low > 0 or found.high < 0
    assert 4 <= called <= 16


def test_several_seeds_are_compared_by_their_means() -> None:
    first = contender("a", *(predicted(50, 0.7, training=t) for t in (1, 2, 3)))
    second = contender("b", *(predicted(50, 0.6, training=t) for t in (4, 5)))
    found = difference(first, second, METRIC)
    assert isinstance(found, PairedComparison)
    assert found.difference == pytest.approx(first.numbers[METRIC].mean - second.numbers[METRIC].mean)
    assert found.low > 0
    assert " ± " in number_table([first, second], [METRIC]).rows[0][2]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dataset": "coco2014"}, "other data set"),
        ({"counts": (class_counts(predicted(20, 0.6, training=0, world=1)),)}, "other masks"),
        ({"numbers": {}}, "not scored"),
        ({"images": ("z",) * 20}, "other images"),
        ({"mean_over": "truth"}, "other mean over classes"),
        ({"counts": ()}, "counts of its images are not kept"),
    ],
)
def test_what_is_not_comparable_stands_apart_and_says_why(change: dict[str, object], reason: str) -> None:
    base = contender("base", predicted(20, 0.6, training=0))
    inner = {key: value for key, value in change.items() if key in ("images", "mean_over", "counts")}
    outer = {key: value for key, value in change.items() if key not in inner}
    other = replace(base, title="other", **outer)  # type: ignore[arg-type]
    if inner:
        other = replace(other, numbers={METRIC: replace(base.numbers[METRIC], **inner)})  # type: ignore[arg-type]
    assert difference(other, base, METRIC) == reason
    rows = difference_table([base, other], [METRIC]).rows
    # On another data set, or without the number, a recipe is held against nothing; else a row says the reason.
    assert [row[-1] for row in rows] == ([] if outer else [f"not comparable: {reason}"])
    cell = number_table([base, other], [METRIC]).rows[1][2]
    assert "(" not in cell


def test_a_number_is_held_against_the_first_row_that_has_it() -> None:
    """Methods end in different numbers (with another CRF, without class maps): the first row is not always there."""
    first, second, third = (contender(name, predicted(20, 0.6, training=t)) for t, name in enumerate("abc"))
    first = replace(first, numbers={"cam/miou_train": first.numbers[METRIC]})
    rows = [first, second, third]
    assert [row[1:3] for row in difference_table(rows, ["cam/miou_train", METRIC]).rows] == [("c", "b")]
    cells = [row[2] for row in number_table(rows, [METRIC]).rows]
    assert cells[0] == "-" and "(" not in cells[1] and "(" in cells[2]


def test_numbers_of_only_one_recipe_are_left_out() -> None:
    base = contender("base", predicted(20, 0.6, training=0))
    more = replace(base, numbers={**base.numbers, "cam/miou_train": base.numbers[METRIC]})
    assert common_metrics([base, more]) == [METRIC]
    assert common_metrics([more]) == [METRIC, "cam/miou_train"]


def test_costs_stand_in_columns_where_some_row_has_them() -> None:
    first, second = contender("a", predicted(4, 0.6, training=0)), contender("b", predicted(4, 0.6, training=1))
    baseline = replace(first, title="all background", cost=None)
    assert number_table([first, second], [METRIC]).columns == ("recipe", "seeds", METRIC, "time")
    on_gpus = replace(second, cost=Cost(3600.0, gpu_seconds=4 * 3600.0, size=2.5e9))
    table = number_table([first, on_gpus, baseline], [METRIC])
    assert table.columns == ("recipe", "seeds", METRIC, "time", "GPU-hours", "stored")
    assert [row[-3:] for row in table.rows] == [
        ("1 min 00 s", "0", "0 B"),
        ("1 h 00 min", "4", "2.5 GB"),
        ("-", "-", "-"),
    ]
    assert "GPU-hours" in table.note and "still holds" in table.note


def test_methods_with_other_means_are_scored_over_the_classes_in_the_masks() -> None:
    """A class that is nowhere counts as 0 under "all": the same predictions must give the same number side by side."""
    counts = predicted(20, 0.6, training=0)
    padded = np.pad(counts, ((0, 0), (0, 3), (0, 3)))  # three classes that are nowhere
    scored = {mean_over: float(miou(padded.sum(axis=0), mean_over=mean_over)) for mean_over in ("defined", "all")}
    assert scored["all"] < scored["defined"] - 0.1
    rows = [
        replace(
            each := contender(name, padded),
            numbers={METRIC: replace(each.numbers[METRIC], values=(value,), mean_over=name)},  # type: ignore[arg-type]
        )
        for name, value in scored.items()
    ]
    one = with_one_mean(rows)
    expected = float(miou(padded.sum(axis=0), mean_over="truth"))
    assert [each.numbers[METRIC].mean for each in one] == [pytest.approx(expected)] * 2
    found = difference(one[0], one[1], METRIC)
    assert isinstance(found, PairedComparison) and found.difference == 0
    assert f"{METRIC}: mean over the classes in the masks" in number_table(one, [METRIC]).note
    assert with_one_mean(rows[:1]) == rows[:1]


def test_a_number_without_counts_keeps_its_own_mean() -> None:
    base = contender("base", predicted(20, 0.6, training=0))
    without = replace(base, numbers={METRIC: Scored((0.4,), mean_over="all")})
    other = replace(base, numbers={METRIC: replace(base.numbers[METRIC], mean_over="all")})
    assert with_one_mean([base, without, other])[1] == without
