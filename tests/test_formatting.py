"""Numbers look the same wherever they are printed."""

from __future__ import annotations

import inspect
import math
import re
from pathlib import Path

import pytest

from wsss import formatting
from wsss.formatting import byte_count, count, duration, interval, mean_and_spread, percent, points


def test_durations() -> None:
    seconds = (None, 0.04, 4.25, 59.94, 59.96, 90, 200, 3599.4, 3599.6, 5399, 7500)
    assert [duration(each) for each in seconds] == [
        "?",
        "0.0 s",
        "4.2 s",
        "59.9 s",
        "1 min 00 s",
        "1 min 30 s",
        "3 min 20 s",
        "59 min 59 s",
        "1 h 00 min",
        "1 h 30 min",
        "2 h 05 min",
    ]


def test_fractions_in_percent() -> None:
    assert percent(0.72706) == "72.71"
    assert percent(None) == percent(math.nan) == "-"
    assert [points(each) for each in (0.0125, -0.004, 0.0)] == ["+1.25", "-0.40", "+0.00"]
    assert interval(0.701, 0.753) == "70.10 to 75.30"
    assert interval(-0.004, 0.012, signed=True) == "-0.40 to +1.20"
    assert mean_and_spread(0.72706, 0.003) == "72.71 ± 0.30"
    assert mean_and_spread(0.72706, None) == "72.71"


def test_bytes_and_counts() -> None:
    sizes = (0, 999, 1000, 1500, 999_960, 2_500_000_000, 3e12)
    assert [byte_count(each) for each in sizes] == ["0 B", "999 B", "1.0 kB", "1.5 kB", "1.0 MB", "2.5 GB", "3.0 TB"]
    assert [count(each, "image") for each in (0, 1, 2)] == ["0 images", "1 image", "2 images"]


@pytest.mark.parametrize("module", ["commands", "reporting", "search", "execution"])
def test_nobody_else_prints_percent_or_durations_in_a_way_of_their_own(module: str) -> None:
    """A screen once said "200 s" as "3 min" above a table that said "3 min 20 s"."""
    own = re.compile(r"\{100 \* [^{}]*:[+]?\.2f\}|\{[a-z_.]*seconds[^{}]*:\.\df\} s|def (duration|percent|file_size)\b")
    folder = Path(inspect.getfile(formatting)).parent / module
    found = {path.name: own.findall(path.read_text()) for path in folder.rglob("*.py") if own.search(path.read_text())}
    assert found == {}
