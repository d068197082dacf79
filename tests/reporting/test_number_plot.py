"""The picture of a comparison's numbers: what stands in it, and that every row and number has its place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.reporting.test_comparison import METRIC, contender, predicted

from wsss.evaluation.bootstrap import bootstrap_interval_from_counts
from wsss.reporting.comparison import Scored, all_background
from wsss.reporting.number_plot import NumberLine, number_lines, plot_numbers

CAM = "cam/miou_train"


def test_lines_are_in_percent_with_the_interval_of_the_mean_over_seeds() -> None:
    one = contender("one", predicted(40, 0.6, training=1))
    number = one.numbers[METRIC]
    twice = replace(
        one,
        title="twice",
        seeds=(0, 1),
        numbers={METRIC: replace(number, values=number.values * 2, counts=number.counts * 2)},
    )
    without = replace(one, title="without", numbers={CAM: Scored((0.25,))})
    lines = number_lines([one, twice, without, *all_background([one])], [METRIC, CAM])
    assert [line.row for line in lines[METRIC]] == [0, 1, 3]
    assert [line.is_reference for line in lines[METRIC]] == [False, False, True]
    single = bootstrap_interval_from_counts(number.counts[0])
    for line, seeds in zip(lines[METRIC], (1, 2), strict=False):
        assert line.values == (pytest.approx(100 * number.mean),) * seeds
        assert (line.low, line.high) == pytest.approx((100 * single.low, 100 * single.high)), "the same training twice"
    assert lines[CAM] == [NumberLine(2, False, (25.0,), 25.0, 25.0)], "no counts: no interval"


@pytest.mark.parametrize(("numbers", "places"), [(1, (1, 1)), (4, (1, 4)), (5, (2, 3)), (9, (3, 3))])
def test_panels_fill_a_rectangle(tmp_path: Path, numbers: int, places: tuple[int, int]) -> None:
    panels = {f"cam/miou_{index}": [NumberLine(0, False, (50.0,), 40.0, 60.0)] for index in range(numbers)}
    path = plot_numbers(panels, ["one", "two"], tmp_path / "numbers.png")
    with Image.open(path) as image:
        dark = np.asarray(image.convert("L")) < 40  # axes alone: points and text of a method are blue
    rows, columns = (np.flatnonzero(dark.mean(axis=axis) > share) for axis, share in ((1, 0.3), (0, 0.2)))
    assert (_runs(rows), _runs(columns)) == places


def _runs(places: np.ndarray) -> int:
    """How many groups of neighbors."""
    return int((np.diff(places) > 3).sum()) + 1
