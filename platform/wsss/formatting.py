"""The one way in which durations, percentages, intervals, sizes and counts are printed."""

from __future__ import annotations

import math


def duration(seconds: float | None) -> str:
    """4.2 s, 3 min 20 s, 2 h 05 min; "?" when nothing is known."""
    if seconds is None:
        return "?"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def percent(fraction: float | None) -> str:
    """A fraction in percent, without the sign: 0.7271 -> "72.71"; "-" for none or NaN."""
    return "-" if fraction is None or not math.isfinite(fraction) else f"{100 * fraction:.2f}"


def points(difference: float) -> str:
    """A difference of two fractions in points of percent, with its direction: 0.0125 -> "+1.25"."""
    return f"{100 * difference:+.2f}"


def interval(low: float, high: float, *, signed: bool = False) -> str:
    """Bounds that are fractions, in percent: "70.10 to 75.30"; signed, for a difference: "-0.40 to +1.20"."""
    shown = points if signed else percent
    return f"{shown(low)} to {shown(high)}"


def mean_and_spread(mean: float, spread: float | None) -> str:
    """Fractions in percent: "72.71 ± 0.30", or the mean alone where there is no spread."""
    return percent(mean) + ("" if spread is None else f" ± {percent(spread)}")


def byte_count(size: float) -> str:
    """Bytes in the largest decimal unit that leaves a digit before the point: 999 B, 1.0 kB, 12.3 MB."""
    if size < 1000:
        return f"{size:.0f} B"
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 999.95:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} TB"


def count(number: int, noun: str) -> str:
    """A number with its noun: "1 image", "3 images"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
