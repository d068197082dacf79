"""Plots of a sweep as PNG files, in the look of the run's plots."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from wsss.reporting.plots import COLORS, clean_axes, grouped_bars, name_bars, new_figure, new_plot, save
from wsss.reporting.sweep_values import (
    NO_VALUE,
    best_so_far,
    best_trial,
    by_importance,
    finished,
    pareto_front,
    recipe_trial,
    shown_value,
    stage_costs,
    value_of,
)
from wsss.search.records import SearchedKey, SweepRecord, TrialRecord

_BLUE, _ORANGE, _GREEN = COLORS[0], COLORS[1], COLORS[2]
_PALE = "#9cc3e0"
_GREY = "#999999"


def plot_search_history(sweep: SweepRecord, trials: Sequence[TrialRecord], path: Path) -> Path:
    """Value of every trial (percent) in the order of asking, the best so far, the number to quote, and what failed."""
    found = finished(trials, sweep.metric)
    figure, axes = new_plot(8.4, 4.2, f"{sweep.metric} by trial", "trial", "mIoU (percent)")
    numbers = [trial.number for trial in found]
    values = [100 * trial.values[sweep.metric] for trial in found]
    held_out = any(trial.held_out is not None for trial in found)
    label = "value: on the images that choose" if held_out else "value"
    axes.plot(numbers, values, "o", color=_BLUE, markersize=5, alpha=0.65, markeredgewidth=0, label=label)
    axes.step(numbers, best_so_far(values), where="post", color=_BLUE, linewidth=1.8, label="best so far")
    if held_out:
        quoted = [100 * (trial.quoted or 0.0) for trial in found]
        axes.plot(numbers, quoted, "o", color=_ORANGE, markersize=4, fillstyle="none", label="held out")
    recipe = recipe_trial(found)
    if recipe is not None:
        value = 100 * recipe.values[sweep.metric]
        axes.axhline(value, color="black", linewidth=1, linestyle="--", label=f"recipe {value:.2f}")
    for status, marker, color in (("failed", "x", "black"), ("pruned", "v", _GREY)):
        at = [trial.number for trial in trials if trial.status == status]
        if at:
            # On the lower edge of the plot: they have no value.
            edge, label = axes.get_xaxis_transform(), f"{status} ({len(at)})"
            axes.plot(at, [0.02] * len(at), marker, color=color, markersize=6, transform=edge, label=label)
    axes.margins(y=0.12)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return save(figure, path)


def plot_importance(importances: Mapping[str, Mapping[str, float]], path: Path) -> Path:
    """Share of every key (percent) as bars, one color for each way of computing it.

    importances: way ("fANOVA") -> key -> share 0 to 1.
    """
    names = by_importance(importances)
    height = 1.5 + max(1.0, len(names) * (0.18 + 0.14 * len(importances)))
    label = "share of the variation of the value (percent)"
    figure, axes = new_plot(7.2, height, "Importance of the searched keys", label, grid="x")
    grouped_bars(axes, names, importances, thickness=0.9, ends=True)
    axes.margins(x=0.1)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return save(figure, path)


def plot_slices(sweep: SweepRecord, trials: Sequence[TrialRecord], path: Path) -> Path:
    """Value (percent) against each searched key, one panel each; recipe and best marked."""
    keys = [key for key in sweep.space if key.level != "unused"]
    columns = min(3, max(1, len(keys)))
    rows = max(1, math.ceil(len(keys) / columns))
    figure = new_figure(4.1 * columns if columns > 1 else 6.0, 3.0 * rows + 0.5)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes in panels.flat[len(keys) :]:
        axes.set_axis_off()
    for index, (axes, key) in enumerate(zip(panels.flat, keys, strict=False)):
        clean_axes(axes)
        axes.set_title(key.key, fontsize=9.5)
        _slice(axes, sweep, trials, key)
        if index % columns == 0:
            axes.set_ylabel("mIoU (percent)")
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return save(figure, path)


def plot_value_against_cost(sweep: SweepRecord, trials: Sequence[TrialRecord], path: Path) -> Path:
    """Value (percent) against what the trial costs on its own, with the trials that no cheaper one beats."""
    found = finished(trials, sweep.metric)
    divisor, unit = _time_unit(max((trial.cost_seconds for trial in found), default=1.0))
    label = f"time of all stages of the trial on its own ({unit})"
    figure, axes = new_plot(6.4, 4.2, f"{sweep.metric} against cost", label, "mIoU (percent)")
    costs = [trial.cost_seconds / divisor for trial in found]
    values = [100 * trial.values[sweep.metric] for trial in found]
    axes.plot(costs, values, "o", color=_BLUE, markersize=5, alpha=0.65, markeredgewidth=0, label="trial")
    front = zip(*((costs[index], values[index]) for index in pareto_front(costs, values)), strict=True)
    axes.step(*front, where="post", color=_GREEN, linewidth=1.6, label="best for its cost")
    _mark(axes, sweep, trials, lambda trial: trial.cost_seconds / divisor)
    axes.margins(0.08)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return save(figure, path)


def plot_reuse(sweep: SweepRecord, trials: Sequence[TrialRecord], path: Path) -> Path:
    """Stage executions asked for against those done, and time against that of independent trials."""
    stages = stage_costs(trials)
    figure = new_figure(9.6, 1.9 + max(1.4, 0.3 * len(stages)))
    counts, times = figure.subplots(1, 2, gridspec_kw={"width_ratios": [3, 2]})
    clean_axes(counts, grid="x")
    positions = np.arange(len(stages))
    counts.barh(positions, [cost.asked for cost in stages.values()], height=0.8, color=_PALE, label="asked for")
    counts.barh(positions, [cost.executed for cost in stages.values()], height=0.45, color=_BLUE, label="executed")
    name_bars(counts, list(stages), fontsize=9)
    counts.set_xlabel("stage executions")
    counts.set_title(f"{sweep.asked} asked for, {sweep.executed} executed", fontsize=10)
    clean_axes(times, grid="x")
    seconds = (sweep.independent_seconds, sweep.executed_seconds, sweep.wall_seconds)
    divisor, unit = _time_unit(max(seconds))
    times.barh(range(3), [value / divisor for value in seconds], height=0.55, color=[_PALE, _BLUE, _GREEN])
    for position, value in enumerate(seconds):
        times.text(value / divisor, position, f" {value / divisor:.3g}", va="center", fontsize=9)
    name_bars(times, ("independent trials", "executed", "wall time"), fontsize=9)
    times.margins(x=0.15)
    times.set_xlabel(unit)
    ratio = sweep.independent_seconds / sweep.executed_seconds if sweep.executed_seconds else math.nan
    times.set_title("time" + (f": {ratio:.1f} times less than independent" if ratio > 1 else ""), fontsize=10)
    figure.legend(*counts.get_legend_handles_labels(), loc="outside lower left", ncols=2, frameon=False, fontsize=9)
    return save(figure, path)


def _slice(axes: Axes, sweep: SweepRecord, trials: Sequence[TrialRecord], key: SearchedKey) -> None:
    categorical = key.kind == "categorical"
    names = [shown_value(choice) for choice in key.choices]

    def place(trial: TrialRecord) -> float | None:
        value = value_of(sweep, trial, key)
        if value is NO_VALUE or not categorical:
            return None if value is NO_VALUE else float(value)
        # Apart from each other, and the same in every drawing.
        shift = (trial.number * 0.618034) % 1 - 0.5
        return (names.index(shown_value(value)) if shown_value(value) in names else len(names)) + 0.4 * shift

    placed = [(place(trial), 100 * trial.values[sweep.metric]) for trial in finished(trials, sweep.metric)]
    x = [position for position, _ in placed if position is not None]
    y = [value for position, value in placed if position is not None]
    axes.plot(x, y, "o", color=_BLUE, markersize=4.5, alpha=0.6, markeredgewidth=0, label="trial")
    _mark(axes, sweep, trials, place)
    if categorical:
        others = ["other"] if any(position > len(names) - 0.5 for position in x) else []
        axes.set_xticks(range(len(names) + len(others)), [*names, *others], fontsize=8)
        axes.set_xlim(-0.6, len(names) + len(others) - 0.4)
    else:
        # The whole range, so that what was not tried is seen; a recipe may lie outside it.
        low, high = min([key.low, *x]), max([key.high, *x])
        if key.log:
            axes.set_xscale("log")
            margin = (high / low) ** 0.05
            axes.set_xlim(low / margin, high * margin)
        else:
            margin = 0.05 * (high - low)
            axes.set_xlim(low - margin, high + margin)
    axes.margins(y=0.1)


def _mark(
    axes: Axes, sweep: SweepRecord, trials: Sequence[TrialRecord], place: Callable[[TrialRecord], float | None]
) -> None:
    """Mark recipe and best where they have a value. place: a trial's position along the x axis, None for none."""
    recipe, best = recipe_trial(finished(trials, sweep.metric)), best_trial(sweep, trials)
    marks = [(recipe, "D", "black", 7.0, "recipe")]
    if best is not None and (recipe is None or best.number != recipe.number):
        marks.append((best, "*", _ORANGE, 14.0, f"best (trial {best.number})"))
    for trial, marker, color, size, label in marks:
        x = None if trial is None else place(trial)
        if trial is not None and x is not None:
            y = 100 * trial.values[sweep.metric]
            axes.plot(x, y, marker, color=color, markersize=size, markeredgecolor="white", label=label)


def _time_unit(seconds: float) -> tuple[float, str]:
    """Divisor and name of the unit in which people read this number of seconds."""
    if seconds < 120:
        return 1.0, "seconds"
    return (60.0, "minutes") if seconds < 7200 else (3600.0, "hours")
