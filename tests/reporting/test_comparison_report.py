"""The page of a comparison: which pictures it shows, ranks over seeds, the best of each class, cost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.reporting.test_comparison import CLASSES, METRIC, contender, predicted
from tests.reporting.test_report import Links

from wsss.evaluation.confusion import class_counts
from wsss.reporting.comparison import Contender, Cost, Scored, all_background
from wsss.reporting.comparison_report import (
    NUMBERS_PICTURE,
    ComparisonReport,
    _class_table,
    comparison_grids,
    image_mious,
    rank_table,
    telling_images,
    write_comparison,
)
from wsss.reporting.run_report import SampleImage, SampleRows

NAMES = ("background", "cat", "dog", "cow")


def right_in(*shares: float) -> Scored:
    """Two classes, 100 pixels each in every image, of which a share is right."""
    confusions = np.zeros((len(shares), 2, 2), dtype=np.int64)
    for confusion, share in zip(confusions, shares, strict=True):
        right = round(100 * share)
        confusion[0], confusion[1] = (right, 100 - right), (100 - right, right)
    images = tuple(f"image{index}" for index in range(len(shares)))
    return Scored((0.5,), (class_counts(confusions),), images)


def test_disputed_pictures_come_first_then_those_that_are_worst_for_all() -> None:
    one, two = right_in(0.9, 0.2, 0.5, 0.8, 0.9), right_in(0.9, 0.2, 0.9, 0.1, 0.9)
    assert telling_images([one, two], 3) == ["image3", "image2", "image1"]
    assert telling_images([one, one], 2) == ["image1", "image2"], "nobody disagrees: the worst alone"
    assert len(telling_images([one, two], 99)) == 5
    assert image_mious(one)[0] == pytest.approx(90 / 110)


def test_an_image_without_a_scored_pixel_is_neither_disputed_nor_worst() -> None:
    one, two = right_in(0.9, 0.2, 0.0), right_in(0.9, 0.3, 0.0)
    for each in (one, two):
        each.counts[0][2] = 0
    assert telling_images([one, two], 2) == ["image1", "image0"]


def test_the_best_of_a_class_is_marked_over_the_seeds_that_have_it() -> None:
    """A class that one seed neither has nor predicts must not pull the mean of the others down."""
    with_class, without = np.zeros((1, 4, 4), np.int64), np.zeros((1, 4, 4), np.int64)
    with_class[0, 0, 0], with_class[0, 1, 1], with_class[0, 0, 1] = 50, 10, 10
    without[0, 0, 0] = 50
    report = ComparisonReport(
        title="",
        contenders=[contender("two seeds", with_class, without), contender("one seed", without)],
        metrics=[METRIC],
        classes={"voc2012": NAMES},
        grids=[],
    )
    rows = {row[0]: row[1:] for row in _class_table(report, METRIC).rows}
    assert rows["cat"] == ("50.00 ●", "-") and rows["dog"] == ("-", "-")
    assert rows["background"] == ("91.67", "100.00 ●")


def test_ranks_are_means_over_the_seeds_that_all_have() -> None:
    def with_values(title: str, **by_seed: float) -> Contender:
        seeds = tuple(int(name[1:]) for name in by_seed)
        number = Scored(tuple(by_seed.values()))
        return Contender(title=title, runs=(), seeds=seeds, dataset="d", cost=Cost(1.0), numbers={METRIC: number})

    first = with_values("first", s0=0.5, s1=0.4, s2=0.9)
    second = with_values("second", s0=0.3, s1=0.6, s2=0.8)
    third = with_values("third", s0=0.3, s1=0.1)
    table = rank_table([first, second, third], [METRIC])
    assert [row[1:] for row in table.rows] == [
        ("first", "1.50", "1, 2"),
        ("second", "1.75", "2.5, 1"),
        ("third", "2.75", "2.5, 3"),
    ]
    assert rank_table([first, with_values("one seed", s0=0.3)], [METRIC]).rows == ()


def test_all_background_is_scored_from_the_truth_of_the_counts() -> None:
    base = contender("base", predicted(20, 0.6, training=0))
    (row,) = all_background([base, contender("better", predicted(20, 0.8, training=1))])
    counts = base.numbers[METRIC].counts[0]
    background, pixels = counts[:, 1, 0].sum(), counts[:, 1].sum()
    assert row.numbers[METRIC].mean == pytest.approx(background / pixels / CLASSES)
    assert row.cost is None and row.numbers[METRIC].same_truth(base.numbers[METRIC])


def test_the_page_has_tables_pictures_and_costs(tmp_path: Path) -> None:
    methods = [
        contender("one", predicted(12, 0.7, training=1), predicted(12, 0.7, training=3)),
        replace(contender("two", predicted(12, 0.5, training=2), predicted(12, 0.5, training=4)), cost=Cost(600.0)),
    ]
    asked: list[tuple[str, list[str]]] = []

    def gather(metric: str, shown: object, images: object) -> tuple[SampleRows, tuple[str, ...]]:
        asked.append((metric, list(images)))  # type: ignore[call-overload]
        picture = np.zeros((8, 8, 3), np.uint8)
        labels = np.zeros((8, 8), np.uint8)
        samples = tuple(
            SampleImage(name=name, image=picture, arrays={"one": labels, "two": labels, "truth": labels})
            for name in asked[-1][1]
        )
        return SampleRows(
            title=metric, columns=dict.fromkeys(("one", "two", "truth"), "labels"), samples=samples
        ), NAMES

    grids = comparison_grids(methods, [METRIC], gather)
    assert [metric for metric, _ in asked] == [METRIC] and len(asked[0][1]) == 6
    report = ComparisonReport(
        title="Comparison on voc2012",
        contenders=(*methods, *all_background(methods)),
        metrics=[METRIC],
        classes={"voc2012": NAMES},
        grids=grids,
    )
    page = write_comparison(tmp_path, report)
    links, text = Links(), page.read_text()
    links.feed(text)
    assert links.open == [] and links.anchors == links.ids
    assert [
        name for name in links.ids if name in ("comparison", "numbers", "images", "ranks_over_seeds", "differences")
    ] == [*("comparison", "numbers", "images", "differences", "ranks_over_seeds")]
    assert "all background" in text and "cow" in text and "●" in text
    assert len(links.sources) == 3 and str(NUMBERS_PICTURE) in links.sources
    for source in links.sources:
        with Image.open(page.parent / source) as image:
            assert min(image.size) > 250


def test_pictures_of_other_images_are_not_put_side_by_side() -> None:
    one = contender("one", predicted(12, 0.7, training=1))
    other = contender("two", predicted(12, 0.5, training=2, world=5))
    assert comparison_grids([one, other], [METRIC], lambda *given: pytest.fail("asked")) == []
