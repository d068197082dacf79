"""Pictures that are drawn once: what is the same is copied, whatever differs is drawn."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.reporting.test_report import full_report

from wsss.reporting import plots
from wsss.reporting.picture_cache import PictureCache, picture_digest
from wsss.reporting.report import write_report


@dataclass(frozen=True)
class Rows:
    title: str
    values: tuple[float, ...]


def plot(*given: Any, path: Path, **named: Any) -> Path:
    path.write_bytes(repr((given, named)).encode())
    return path


def other_plot(*given: Any, path: Path, **named: Any) -> Path:
    return plot(*given, path=path, **named)


DIFFERENT: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
    (plot, ("a",), {}),
    (other_plot, ("a",), {}),
    (plot, ("a", ""), {}),
    (plot, (("a",),), {}),
    (plot, (), {"title": "a"}),
    (plot, (1,), {}),
    (plot, (1.0,), {}),
    (plot, ("1",), {}),
    (plot, (None,), {}),
    (plot, ({"x": 1, "y": 2},), {}),
    (plot, ({"y": 2, "x": 1},), {}),
    (plot, (Rows("a", (1.0, 2.0)),), {}),
    (plot, (Rows("a", (1.0, 3.0)),), {}),
    (plot, (np.zeros((2, 3), np.uint8),), {}),
    (plot, (np.zeros((3, 2), np.uint8),), {}),
    (plot, (np.zeros((2, 3), np.int8),), {}),
    (plot, (np.eye(2, 3, dtype=np.uint8),), {}),
    (plot, (["ab", "c"],), {}),
    (plot, (["a", "bc"],), {}),
]


def test_every_difference_is_another_picture() -> None:
    assert len({picture_digest(*each) for each in DIFFERENT}) == len(DIFFERENT)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(values, values)
def test_two_values_share_a_digest_only_if_they_are_equal(first: Any, second: Any) -> None:
    same = picture_digest(plot, (first,), {}) == picture_digest(plot, (second,), {})
    assert same == (repr(first) == repr(second))


def test_a_second_report_draws_nothing_and_shows_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Path] = []
    canvas = plots.FigureCanvasAgg

    class Counting(canvas):
        def print_png(self, path: Path, *more: Any, **named: Any) -> None:
            drawn.append(path)
            super().print_png(path, *more, **named)

    monkeypatch.setattr(plots, "FigureCanvasAgg", Counting)
    first = write_report(tmp_path / "first", full_report(0), tmp_path / "home")
    assert len(drawn) == len(first.figures) == 5
    second = write_report(tmp_path / "second", full_report(0), tmp_path / "home")
    assert len(drawn) == 5
    assert [path.name for path in second.figures] == [path.name for path in first.figures]
    for before, after in zip(first.figures, second.figures, strict=True):
        assert before.read_bytes() == after.read_bytes()
    write_report(tmp_path / "third", full_report(1), tmp_path / "home")
    assert len(drawn) > 5


def test_a_cache_that_can_not_be_written_draws(tmp_path: Path) -> None:
    blocked = tmp_path / "cache"
    blocked.write_text("a file stands where the folder should be")
    path = PictureCache(blocked).draw(tmp_path / "new" / "a.png", plot, "a")
    assert path.read_bytes() == repr((("a",), {})).encode()


def test_pictures_of_no_use_for_a_month_go(tmp_path: Path) -> None:
    cache = PictureCache(tmp_path / "cache")
    cache.draw(tmp_path / "a.png", plot, "old")
    cache.draw(tmp_path / "a.png", plot, "used")
    month_ago = time.time() - 31 * 24 * 3600
    for file in (tmp_path / "cache").iterdir():
        os.utime(file, (month_ago, month_ago))
    cache.draw(tmp_path / "a.png", plot, "used")
    cache.draw(tmp_path / "a.png", plot, "new")
    kept = {file.read_bytes() for file in (tmp_path / "cache").glob("*.png")}
    assert kept == {repr(((name,), {})).encode() for name in ("used", "new")}
