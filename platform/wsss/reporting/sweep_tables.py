"""Tables of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from wsss.formatting import duration, interval, percent, points
from wsss.reporting.sweep_values import (
    StageCost,
    best_trial,
    by_importance,
    finished,
    recipe_trial,
    shown_value,
    stage_costs,
    value_of,
)
from wsss.reporting.tables import Table, to_csv
from wsss.search.records import SweepRecord, TrialRecord

_RULES = {
    "held_out": "the trial is chosen on one half of the images, and quoted on the other half",
    "oracle": "the trial is chosen by the masks of all images: too good a number for new images",
    "default_threshold": "the recipe's own threshold, all images; the other trials are chosen by their masks",
    "label_free": "the trial is chosen by a criterion without masks, which the search sees times 100; quoted is the "
    "mIoU of all images",
}
_QUOTED = {
    "held_out": "held out",
    "oracle": "chosen by all masks",
    "default_threshold": "at the recipe's threshold",
    "label_free": "chosen without masks",
}
_SEEN = {
    "held_out": "The search itself, and the races, looked at the first half of the images: only the number on the "
    "other half is of images that nothing was chosen on.",
    "oracle": "The search itself looked at all masks, so that every way by masks looks too good.",
    "default_threshold": "The search itself looked at all masks, so that every way by masks looks too good.",
    "label_free": "The search itself looked at no mask.",
}
# Field of a trial's record, how its threshold was chosen, and whether masks chose it.
_WAYS = (
    ("default_value", "none: the recipe's own, all images", "no"),
    ("oracle", "best of all images", "yes, of the images that are scored"),
    ("chosen", "best of one half, on that half", "yes, of the images that are scored"),
    ("held_out", "best of one half, on the other half", "yes, of other images"),
    ("label_free", "criterion without masks", "no"),
)
_TOP = 15


def best_table(sweep: SweepRecord, trials: Sequence[TrialRecord]) -> Table:
    """The recipe beside the best trial: the numbers, then every searched key."""
    recipe, best = recipe_trial(finished(trials, sweep.metric)), best_trial(sweep, trials)
    columns = ("", "recipe", "best", "change", "stage", "level")
    if recipe is None or best is None:
        return Table("Recipe and best", columns, (), note="The recipe or any other trial has no value yet.")
    old, new = recipe.values[sweep.metric], best.values[sweep.metric]
    rows = [_compared(f"{sweep.metric}, as the search saw it", old, new, sweep.metric_stage)]
    if sweep.best is not None:
        basis = "mean over seeds" if sweep.best.confirmed else _QUOTED[sweep.select]
        rows.append(_compared(f"to quote: {basis}", sweep.best.default_reported, sweep.best.reported, ""))
        if sweep.best.gain_low is not None and sweep.best.gain_high is not None:
            gain = interval(sweep.best.gain_low, sweep.best.gain_high, signed=True)
            rows.append((f"95 % interval of the gain over images, paired, seed {sweep.seeds[0]}", "", "", gain, "", ""))
    costs = (duration(recipe.cost_seconds), duration(best.cost_seconds))
    rows.append(("time of all stages on its own", *costs, "", "", ""))
    for key in sweep.space:
        before, after = value_of(sweep, recipe, key), value_of(sweep, best, key)
        if key.level == "curve":
            before = key.default  # the recipe's number may be read at another threshold than its own
        changed = "changed" if shown_value(before) != shown_value(after) else ""
        rows.append((key.key, shown_value(before), shown_value(after), changed, key.stage, key.level))
    note = (
        f"Best: trial {best.number} of {len(trials)}. mIoU in percent; {_RULES[sweep.select]}. What is quoted of the "
        "recipe is at its own threshold. Level: a change of an outer key forces training, of an inner one only cheaper "
        "stages, of a curve one nothing."
    )
    return Table("Recipe and best", columns, tuple(rows), frozenset({"recipe", "best", "change"}), note)


def selection_table(sweep: SweepRecord, trials: Sequence[TrialRecord]) -> Table:
    """What each way of reading the number gives, for the recipe and the best trial."""
    recipe, best = recipe_trial(finished(trials, sweep.metric)), best_trial(sweep, trials)
    shown = {} if recipe is None else {f"recipe (trial {recipe.number})": recipe}
    if best is not None and (recipe is None or best.number != recipe.number):
        shown[f"best (trial {best.number})"] = best
    columns = ("way of choosing the threshold", "chosen by masks", *shown)
    bounded = "default_value" if sweep.select == "default_threshold" else sweep.select
    rows = []
    for field, text, by_masks in _WAYS:
        cells = []
        for trial in shown.values():
            cell = percent(getattr(trial, field))
            if field == bounded and trial.low is not None and trial.high is not None:
                cell += f" ({interval(trial.low, trial.high)})"
            cells.append(cell)
        if any(getattr(trial, field) is not None for trial in shown.values()):
            rows.append((text, by_masks, *cells))
    note = (
        "mIoU in percent, with the 95 % interval over images where the rule of the sweep quotes it. The trial itself "
        f"was chosen by the sweep: {_RULES[sweep.select]}."
    )
    return Table("How the number was chosen", columns, tuple(rows), frozenset(columns[2:]), note)


def selected_table(sweep: SweepRecord) -> Table:
    """Ways of choosing among all trials of the sweep side by side."""
    names = {
        **{field: text for field, text, _ in _WAYS},
        "default": "none: the recipe",
        "cross_fitted": "each half at the other half's best",
    }
    rows = []
    for row in sweep.selected:
        by_masks = "yes" if row.used_masks else "no"
        chosen = ", ".join(dict.fromkeys(f"trial {number}" if number else "recipe" for number in row.trials))
        gain = f"{points(row.gain.difference)} ({interval(row.gain.low, row.gain.high, signed=True)})"
        numbers = (str(row.images), percent(row.miou.value), interval(row.miou.low, row.miou.high))
        rows.append((names[row.rule], by_masks, chosen, *numbers, "-" if row.rule == "default" else gain))
    columns = ("rule of choosing", "by masks", "chosen", "images", "mIoU", "95 % interval", "over the recipe")
    note = (
        "mIoU in percent; intervals from a bootstrap over images, the same resamples for all, the choice held fixed. "
        f"The difference is paired. The best of all images was chosen on what it is scored on. {_SEEN[sweep.select]}"
    )
    return Table("Rules of choosing the trial", columns, tuple(rows), frozenset(columns[3:]), note)


def confirmation_table(sweep: SweepRecord) -> Table:
    """Trials under several seeds."""
    seeds = sorted({seed for each in sweep.confirmations for seed in each.seeds})
    columns = ("trial", *(f"seed {seed}" for seed in seeds), "mean", "spread", "95 % interval")
    rows = []
    for each in sweep.confirmations:
        by_seed = dict(zip(each.seeds, each.values, strict=True))
        name = "recipe" if each.trial == 0 else f"trial {each.trial}"
        spread = (percent(each.spread), interval(each.low, each.high)) if len(each.values) > 1 else ("-", "-")
        rows.append((name, *(percent(by_seed.get(seed)) for seed in seeds), percent(each.mean), *spread))
    note = "mIoU in percent by the sweep's rule; the interval is Student's for the mean over seeds."
    return Table("Confirmation over seeds", columns, tuple(rows), frozenset(columns[1:]), note)


def cost_table(sweep: SweepRecord, trials: Sequence[TrialRecord]) -> Table:
    """Stage by stage: executions asked for, executed and served from the store, and their time."""
    total = StageCost(sweep.asked, sweep.executed, sweep.independent_seconds, sweep.executed_seconds)
    rows = tuple(
        (
            name,
            *(str(number) for number in (cost.asked, cost.executed, cost.asked - cost.executed)),
            *(duration(seconds) for seconds in (cost.executed_seconds, cost.independent_seconds)),
        )
        for name, cost in {**stage_costs(trials), "all": total}.items()
    )
    columns = ("stage", "asked for", "executed", "from the store", "time", "independent trials")
    states = {status: sum(trial.status == status for trial in trials) for status in ("finished", "failed", "pruned")}
    ratio = ""
    if sweep.executed_seconds > 0:
        ratio = f", {sweep.independent_seconds / sweep.executed_seconds:.1f} times less than independent trials"
    note = (
        f"{', '.join(f'{number} {status}' for status, number in states.items() if number)} of {len(trials)} trials. "
        f"Executed stages took {duration(sweep.executed_seconds)}{ratio}; wall time {duration(sweep.wall_seconds)}. "
        "Independent: every trial computes itself what some trial had to compute; what was there before counts for "
        f"neither, and work that a batch shares counts once.{_in_memory_in_words(trials)}{_race_in_words(trials)}"
    )
    return Table("Cost and reuse", columns, rows, frozenset(columns[1:]), note)


def _in_memory_in_words(trials: Sequence[TrialRecord]) -> str:
    uses = [use for trial in trials for use in trial.stages]
    names = dict.fromkeys(use.name for use in uses if use.executed and use.kind == "map" and use.seconds == 0)
    if not names:
        return ""
    return f" Maps of {', '.join(names)} that one trial alone asked for were computed on the way to its score."


def _race_in_words(trials: Sequence[TrialRecord]) -> str:
    dropped = [trial.race for trial in trials if trial.race is not None and trial.race.estimate is not None]
    if not dropped:
        return ""
    whole = sum(trial.status == "finished" for trial in trials)
    share = (whole + sum(race.images / race.of for race in dropped)) / (whole + len(dropped))
    return (
        f" {len(dropped)} trials were dropped as clearly worse after {min(race.images for race in dropped)} to "
        f"{max(race.images for race in dropped)} of {dropped[0].of} images; all trials together were judged on "
        f"{100 * share:.0f} % of them. What images that were left out would have cost is extrapolated."
    )


def importance_table(importances: Mapping[str, Mapping[str, float]]) -> Table:
    """Share of each key by each way."""
    names = by_importance(importances)
    rows = tuple((key, *(percent(shares.get(key)) for shares in importances.values())) for key in names)
    columns = ("key", *importances)
    note = "Share of the variation of the value among the finished trials, percent; it says nothing of other ranges."
    return Table("Importance of the searched keys", columns, rows, frozenset(columns[1:]), note)


def top_table(sweep: SweepRecord, trials: Sequence[TrialRecord]) -> Table:
    """The best trials, with what they change."""
    found = sorted(finished(trials, sweep.metric), key=lambda trial: (-trial.values[sweep.metric], trial.number))
    held_out = any(trial.held_out is not None for trial in found)
    columns = ("trial", "value", *(("held out",) if held_out else ()), "time on its own", "spent", "settings")
    rows = tuple(
        (
            str(trial.number),
            percent(trial.values[sweep.metric]),
            *((percent(trial.held_out),) if held_out else ()),
            duration(trial.cost_seconds),
            duration(trial.spent_seconds),
            _settings(sweep, trial),
        )
        for trial in found[:_TOP]
    )
    note = f"The best {len(rows)} of {len(found)}; trials.csv holds all." if len(found) > len(rows) else ""
    return Table("Best trials", columns, rows, frozenset(columns[:-1]), note)


def failed_table(sweep: SweepRecord, trials: Sequence[TrialRecord]) -> Table:
    """Failed and pruned trials with their reasons."""
    rows = tuple(
        (str(trial.number), trial.status, trial.reason or "no reason recorded", _settings(sweep, trial))
        for trial in trials
        if trial.status in ("failed", "pruned")
    )
    return Table("Trials without a value", ("trial", "status", "reason", "settings"), rows, frozenset({"trial"}))


def trials_csv(sweep: SweepRecord, trials: Sequence[TrialRecord]) -> str:
    """One line for each trial: status, values (fractions), costs (seconds), every key of the space."""
    first = ("status", "batch", "outer_key", "seed")
    numbers = ("quoted", "default_value", "oracle", "chosen", "held_out", "label_free", "low", "high", "threshold")
    last = ("cost_seconds", "spent_seconds")
    columns = ("trial", *first, "value", *numbers, *last, "asked", "executed", "reason")
    rows = []
    for trial in trials:
        settings = [value_of(sweep, trial, key) for key in sweep.space]
        rows.append(
            (
                *(trial.number, *(getattr(trial, name) for name in first), trial.values.get(sweep.metric)),
                *(getattr(trial, name) for name in (*numbers, *last)),
                *(len(trial.stages), sum(use.executed for use in trial.stages), trial.reason),
                *("" if shown_value(value) == "-" else value for value in settings),
            )
        )
    return to_csv((*columns, *(key.key for key in sweep.space)), rows)


def _compared(what: str, old: float, new: float, stage: str) -> tuple[str, ...]:
    return (what, percent(old), percent(new), points(new - old), stage, "")


def _settings(sweep: SweepRecord, trial: TrialRecord) -> str:
    """What a trial changes, keys of the curve included."""
    changed = []
    for key in sweep.space:
        value = value_of(sweep, trial, key)
        if shown_value(value) not in ("-", shown_value(key.default)):
            changed.append(f"{key.key}={shown_value(value)}")
    return ", ".join(changed) or "the recipe"
