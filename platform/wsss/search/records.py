"""What is written of a sweep, readable while it runs.

    <home>/sweeps/<sweep id>/sweep.json              the sweep: what is searched, how, and what it found
    <home>/sweeps/<sweep id>/trials/00007.json       one trial that was, or is being, evaluated
    <home>/sweeps/<sweep id>/best.yaml               recipe file, once the sweep has found something
    <home>/sweeps/<sweep id>/study.db                Optuna study (unless another database was named)

Every file is written in one step, so a reader never sees half of one. These files are the truth: the Optuna
study and MLflow are filled from them, and a sweep that was killed continues from them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from wsss.errors import WsssError
from wsss.evaluation.bootstrap import Interval, PairedComparison
from wsss.files import write_json
from wsss.formatting import percent

SWEEPS_FOLDER = "sweeps"
SWEEP_FILE = "sweep.json"
TRIALS_FOLDER = "trials"
BEST_FILE = "best.yaml"
STUDY_FILE = "study.db"

Record = TypeVar("Record")
Level = Literal["outer", "inner", "curve", "unused"]
TrialStatus = Literal["running", "finished", "failed", "pruned"]
SweepStatus = Literal["running", "finished", "failed", "stopped"]
Select = Literal["held_out", "oracle", "default_threshold", "label_free"]


class SweepRecordError(WsssError):
    """There is no such sweep, or its record cannot be read."""


@dataclass(frozen=True)
class SearchedKey:
    """One key of the search space, and where the pipeline puts it.

    Attributes:
        key: dotted recipe key.
        kind: "float", "int" or "categorical".
        low, high, log, step: of a number; step 0: none.
        choices: of a categorical key.
        default: the recipe's value.
        conditions: key -> values of that key under which this one is active; empty: always.
        stage: earliest stage that a change recomputes; "" when no stage of the metric depends on it.
        level: "outer": a change forces training (or a stage above the cost limit); "inner": it does not;
            "curve": a threshold, whose every value one pass scores; "unused": the metric does not depend on it.
        trains: training stages that a change recomputes.
    """

    key: str
    kind: Literal["float", "int", "categorical"]
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float = 0.0
    choices: tuple[Any, ...] = ()
    default: Any = None
    conditions: dict[str, list[Any]] = field(default_factory=dict)
    stage: str = ""
    level: Level = "inner"
    trains: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """Its values in words: `4 to 24, step 2`, `0.01 to 0.2, log`, `a | b`; with its conditions."""
        if self.kind == "categorical":
            text = " | ".join(value_text(choice) for choice in self.choices)
        else:
            text = f"{self.low:g} to {self.high:g}" + (", log" if self.log else "")
            text += f", step {self.step:g}" if self.step and not (self.kind == "int" and self.step == 1) else ""
        for name, allowed in self.conditions.items():
            text += f"; when {name} = {' or '.join(value_text(value) for value in allowed)}"
        return text


@dataclass(frozen=True)
class StageUse:
    """A stage that a trial asked for.

    Attributes:
        executed: this trial computed it; False: served from the store, or shared with another trial.
        seconds: what its execution cost, whoever executed it (worker seconds of its own, waiting not counted).
    """

    name: str
    kind: str
    key: str
    executed: bool
    seconds: float


@dataclass(frozen=True)
class CurvePoint:
    """The score at one threshold; fractions. `chosen` is the score on the images that choose, `reported` that on
    the other ones; both equal `value` where all images choose and report."""

    threshold: float
    value: float
    chosen: float
    reported: float


@dataclass(frozen=True)
class CriterionPoint:
    """A criterion without masks at one threshold (None: there is none to choose); higher is better."""

    threshold: float | None
    value: float


@dataclass(frozen=True)
class Rung:
    """Where early stopping compares outer trials.

    Attributes:
        metric: of an evaluation stage before the searched one, or of a training on its way to it.
        stage: training stage that is looked at while it trains; "" when everything behind the metric is computed.
        fraction: of its epochs.
    """

    metric: str
    stage: str = ""
    fraction: float = 1.0

    @property
    def text(self) -> str:
        """In words."""
        return f"{self.metric} after {100 * self.fraction:g} % of {self.stage}" if self.stage else self.metric


@dataclass(frozen=True)
class PreviewValue:
    """What a metric was while a stage trained: after `epoch` of `epochs`; `value` is a fraction."""

    metric: str
    stage: str
    epoch: int
    epochs: int
    value: float


@dataclass(frozen=True)
class Race:
    """What a trial showed on a part of the images, before the others were computed.

    Attributes:
        images, of: images that it was judged on, of those that a choice may look at.
        seconds: that it took, as if its own workers had done it in parallel (like those of a stage).
        estimate: of its value over all images, where it was dropped; None where it stayed.
        beaten_by: number of the better trial, likewise.
    """

    images: int
    of: int
    seconds: float
    estimate: float | None = None
    beaten_by: int | None = None

    @property
    def text(self) -> str:
        """How a dropped trial lost, in words."""
        return (
            f"dropped after {self.images} of {self.of} images: clearly worse than trial {self.beaten_by}, "
            f"about {percent(self.estimate or 0.0)} %"
        )


@dataclass(frozen=True)
class TrialRecord:
    """One trial: one value for every searched key, and what became of it.

    Attributes:
        number: 0, 1, ... in the order of asking; 0 is the recipe itself.
        outer, inner: recipe key -> value; together all that differs from the sweep's recipe. Inactive conditional
            keys are absent.
        outer_key: short hash of `outer`: trials of one outer_key share every costly stage.
        batch: trials of one batch were evaluated together.
        status: "running" until evaluated; "pruned": dropped in a race or stopped early, see reason.
        reason: why it failed or was pruned.
        stopped_at: of a trial pruned at a rung: (its number from 1, best value of the outer trial there).
        previews: metrics while its stages trained, where early stopping looked at them.
        race: where it was held against others on a part of the images; pruned trials without `stopped_at` lost one.
        values: objective name -> value that the search saw: {metric: fraction} (under label_free the criterion) and,
            where cost is an objective, {"cost_seconds": seconds}.
        quoted: the number to quote, a fraction: on images that chose nothing, where the rule holds some out.
        metrics: all numbers of the evaluation stage and of the evaluation stages before it.
        threshold: of the value, where the metric has a curve; None otherwise.
        default_value: at the recipe's own threshold, over all images.
        oracle: at the best threshold, over all images: both chosen by masks.
        chosen: on the half of the images that chooses; None without counts per image.
        held_out: on the other half, at the threshold chosen on the first; the honest number.
        criterion: without masks, at a few thresholds; empty when it was not asked for.
        label_free: mIoU of all images at the threshold that the criterion chooses; None likewise.
        low, high: 95 % bootstrap interval over images of `quoted`; None without counts.
        curve: score at every threshold; empty without a curve.
        cost_seconds: what all its stages cost together: the price of this trial on its own, extrapolated to all
            images where it was computed on a part of them. Work that its batch shared counts with its share.
        spent_seconds: what the stages that it executed cost.
        stages: asked for, in order.
        run_ids: MLflow keys of the trial and its stage executions.
        artifacts: stage -> key of the evaluation stage and of the scorer before it.
        seed: of the training stages.
    """

    number: int
    outer: dict[str, Any]
    inner: dict[str, Any]
    outer_key: str
    batch: int
    status: TrialStatus = "running"
    reason: str = ""
    stopped_at: tuple[int, float] | None = None
    previews: tuple[PreviewValue, ...] = ()
    race: Race | None = None
    values: dict[str, float] = field(default_factory=dict)
    quoted: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    threshold: float | None = None
    default_value: float | None = None
    oracle: float | None = None
    chosen: float | None = None
    held_out: float | None = None
    criterion: tuple[CriterionPoint, ...] = ()
    label_free: float | None = None
    low: float | None = None
    high: float | None = None
    curve: tuple[CurvePoint, ...] = ()
    cost_seconds: float = 0.0
    spent_seconds: float = 0.0
    stages: tuple[StageUse, ...] = ()
    run_ids: tuple[str, ...] = ()
    artifacts: dict[str, str] = field(default_factory=dict)
    seed: int = 0
    started: float = field(default_factory=time.time)
    ended: float = 0.0

    @property
    def settings(self) -> dict[str, Any]:
        """Outer and inner values together."""
        return {**self.outer, **self.inner}

    def save(self, sweep_folder: Path) -> None:
        """Write the trial's file in one step."""
        _write(sweep_folder / TRIALS_FOLDER / f"{self.number:05d}.json", asdict(self))


@dataclass(frozen=True)
class ConfirmedTrial:
    """A trial evaluated under several seeds.

    Attributes:
        trial: number of the trial that found it; 0 is the recipe itself.
        seeds, values: one value a seed, by the sweep's selection rule (`held_out` where it applies).
        mean, spread: over seeds; spread is the standard deviation, 0 for one seed.
        low, high: 95 % t interval of the mean over seeds; equal to the mean for one seed.
    """

    trial: int
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    mean: float
    spread: float
    low: float
    high: float


@dataclass(frozen=True)
class Best:
    """What the sweep declares.

    Attributes:
        trial: its number.
        settings: recipe key -> value, thresholds of the curve included: what best.yaml changes.
        value: of the selection rule. reported: the number to quote (`held_out` where the rule holds images out).
        default_value, default_reported: the same of the recipe itself, at its own threshold.
        gain_low, gain_high: 95 % paired bootstrap interval, over the images that report, of the best setting's mIoU
            minus the recipe's, under the sweep's own seed; None without counts per image.
        confirmed: whether the choice rests on several seeds.
    """

    trial: int
    settings: dict[str, Any]
    value: float
    reported: float
    default_value: float
    default_reported: float
    confirmed: bool = False
    gain_low: float | None = None
    gain_high: float | None = None


@dataclass(frozen=True)
class Selected:
    """What one rule of choosing gives.

    Attributes:
        rule: "default", "oracle", "cross_fitted", "held_out" or "label_free"; see `wsss.search.choose.rules`.
        trials: number of the chosen trial; two for "cross_fitted", the choices of the two halves of the images.
        images: how many images the numbers are over: those that the choice was not made on, for "held_out".
        miou: with its interval over images; the choice itself is held fixed in it.
        gain: over the recipe on the same images, paired.
        used_masks: whether masks made the choice.
    """

    rule: str
    trials: tuple[int, ...]
    images: int
    miou: Interval
    gain: PairedComparison
    used_masks: bool


@dataclass(frozen=True)
class SweepRecord:
    """A sweep, finished or not.

    Attributes:
        space: every key of the search space, with its derived stage and level.
        metric: what is searched for, e.g. "pseudo_label/miou_train"; higher is better.
        metric_stage: reduce stage that makes it; `rungs`: where early stopping compares outer trials.
        select: how the value of a trial is read off its evaluation, see `TrialRecord`.
        criterion: name of the one without masks, "" when none was asked for.
        objectives: names in `TrialRecord.values`, with their directions.
        sampler, scheduler, seed, concurrency: of the search; with concurrency above 1 the order of results, and
            so the proposed trials, differ between repetitions.
        trials: budget; inner_trials: under each outer one; batch: evaluated together.
        seeds: of the training stages during the search.
        selected: rules of choosing side by side, see `wsss.search.choose.rules`.
        asked, executed, served: stage executions over all trials.
        independent_seconds: what the trials would have cost, had each computed itself what some trial computed.
        executed_seconds: sum of what was really executed; wall_seconds: of all attempts together.
        identity: digest of what makes it this sweep and no other.
        provenance: code, machine, libraries.
    """

    sweep_id: str
    method: str
    recipe_name: str
    recipe: dict[str, Any]
    dataset: str
    store_url: str
    space_name: str
    space: tuple[SearchedKey, ...]
    metric: str
    metric_stage: str
    select: Select
    objectives: dict[str, Literal["max", "min"]]
    sampler: str
    seed: int
    trials: int
    inner_trials: int
    batch: int
    concurrency: int
    seeds: tuple[int, ...]
    identity: str = ""
    criterion: str = ""
    scheduler: str = "none"
    rungs: tuple[Rung, ...] = ()
    data_digest: str = ""
    study_url: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)
    status: SweepStatus = "running"
    error: str = ""
    started: float = field(default_factory=time.time)
    ended: float = 0.0
    wall_seconds: float = 0.0
    asked: int = 0
    executed: int = 0
    served: int = 0
    independent_seconds: float = 0.0
    executed_seconds: float = 0.0
    best: Best | None = None
    selected: tuple[Selected, ...] = ()
    confirmations: tuple[ConfirmedTrial, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def git_commit(self) -> str:
        """Commit of the code, with "-dirty" when it had changes; "" when unknown."""
        commit = str(self.provenance.get("git_commit") or "")
        return commit + ("-dirty" if commit and self.provenance.get("git_dirty") else "")

    def save(self, folder: Path) -> None:
        """Write the sweep's file in one step."""
        _write(folder / SWEEP_FILE, asdict(self))


def value_text(value: Any) -> str:
    """A value of the recipe as people write it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def executed_stages(trials: Iterable[TrialRecord]) -> set[tuple[str, str]]:
    """(name, key) of every stage that some trial computed: what was there before the sweep is not among them."""
    return {(use.name, use.key) for trial in trials for use in trial.stages if use.executed}


def sweep_folder(home: Path, sweep_id: str) -> Path:
    """Where a sweep is written."""
    return home / SWEEPS_FOLDER / sweep_id


def load_sweep(folder: Path) -> SweepRecord:
    """Read the record of a sweep folder, running or not.

    Raises:
        SweepRecordError: there is none, or it is not readable.
    """
    return _load(SweepRecord, folder / SWEEP_FILE)


def load_trials(folder: Path) -> list[TrialRecord]:
    """All trials of a sweep folder, by number.

    Raises:
        SweepRecordError: one is not readable.
    """
    return [load_trial(path) for path in sorted((folder / TRIALS_FOLDER).glob("[0-9]*.json"))]


def load_trial(path: Path) -> TrialRecord:
    """Read one trial's file. Raises SweepRecordError."""
    return _load(TrialRecord, path)


def find_sweeps(home: Path) -> list[SweepRecord]:
    """All readable sweeps below `home`, oldest first."""
    records = []
    for path in (home / SWEEPS_FOLDER).glob(f"*/{SWEEP_FILE}"):
        try:
            records.append(load_sweep(path.parent))
        except SweepRecordError:
            continue
    return sorted(records, key=lambda record: record.started)


def _load(kind: type[Record], path: Path) -> Record:
    try:
        return _decoded(kind, json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise SweepRecordError("there is no such sweep or trial", str(path), "`wsss ls sweeps` lists them") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SweepRecordError(
            f"the record cannot be read: {error}", str(path), "run the same `wsss tune` command again"
        ) from error


def _decoded(kind: Any, value: Any) -> Any:
    """JSON as the annotated type: dataclasses and tuples come back, all else is as it stands."""
    arguments = get_args(kind)
    if is_dataclass(kind):
        hints = _hints(kind)
        return kind(**{name: _decoded(hints[name], each) for name, each in value.items()})  # pyright: ignore
    if get_origin(kind) is tuple:
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(_decoded(each, part) for each, part in zip(kinds, value, strict=True))
    if get_origin(kind) is UnionType and value is not None:
        return _decoded(next(each for each in arguments if each is not type(None)), value)
    return value


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    write_json(path, content)  # in this order: that of objectives and of values counts
