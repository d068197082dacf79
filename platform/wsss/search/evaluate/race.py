"""Drops trials of a batch that are clearly worse after a part of the images, before the rest is computed.

Every trial is one job (`wsss.search.evaluate.in_memory`) that is computed for the images of one round after the other.
After each round the trials are held against the best one that is known (`wsss.evaluation.racing`). Those that stay go
on to the other images and keep what the race has computed. All trials of a batch go through a round together, so that
stages which share work between trials still share it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from wsss.evaluation.confusion import MeanOver
from wsss.evaluation.racing import RaceRules, race
from wsss.execution.numeric_mode import numeric_mode
from wsss.execution.stage_job import StageJob
from wsss.execution.tasks import call_many, describe
from wsss.pipeline import Arrays, MapStage, ReduceStage
from wsss.search.choose.score import ImageCounts, counts_of
from wsss.search.evaluate.in_memory import MemoryArtifact, with_memory
from wsss.search.evaluate.trial import CONFUSIONS
from wsss.search.records import Race, Select

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class RacingTrial:
    """A trial in a race: the fused job of its scorer, and its numbers, which lack that input."""

    number: int
    scorer: StageJob
    evaluation: StageJob


@dataclass(frozen=True)
class Leader:
    """The best trial that is known: counts of all images at its own threshold, (N, 3, C)."""

    number: int
    names: tuple[str, ...]
    counts: Array
    mean_over: MeanOver

    def of(self, names: Sequence[str]) -> Array:
        """ImageCounts (n, 3, C) of some of the images."""
        places = {name: place for place, name in enumerate(self.names)}
        return self.counts[[places[name] for name in names]]


@dataclass(frozen=True)
class Comparison:
    """How the sweep reads its number (`score_of`), and how sure a drop must be.

    Attributes:
        images: those that a choice may look at.
        comparisons: trials of the whole sweep, which share the error probability of `rules`.
    """

    metric: str
    select: Select
    limits: tuple[float, float] | None
    images: tuple[str, ...]
    comparisons: int
    rules: RaceRules


@dataclass(frozen=True)
class RaceEnd:
    """What became of a trial.

    Attributes:
        race: its `estimate` is there when the trial was dropped.
        error: why it failed; empty unless it did.
        known: image -> arrays of its scorer, of the images that it saw; empty when it was dropped.
    """

    race: Race
    error: str = ""
    known: Mapping[str, Arrays] = field(default_factory=dict)


class _WorkerDiedError(Exception):
    """What a worker was lost with."""


def run_race(
    racing: Sequence[RacingTrial],
    leader: Leader | None,
    rule: Comparison,
    workers: int,
    gpu: bool,
    tell: Callable[[str], None],
) -> dict[int, RaceEnd]:
    """Race the trials against each other and the leader; trial number -> how it ended.

    Empty when a worker died: the full evaluation then finds out which trial is to blame.
    """
    trials = {trial.number: trial for trial in racing}
    known: dict[int, dict[str, Arrays]] = {number: {} for number in trials}
    counted: dict[int, ImageCounts] = {}
    seconds, seen = dict.fromkeys(trials, 0.0), dict.fromkeys(trials, 0)
    errors: dict[int, str] = {}

    def look(numbers: Sequence[int], positions: Sequence[int]) -> tuple[dict[int, Array], MeanOver]:
        names = [rule.images[place] for place in positions]
        pieces = [list(piece) for piece in np.array_split(names, min(2 * max(1, workers), len(names)))]
        alive = [trials[number] for number in numbers]
        answers = call_many(score_images, [(alive, piece, gpu) for piece in pieces], workers, tell, gpu)
        if lost := next((answer for answer in answers if isinstance(answer, RuntimeError)), None):
            raise _WorkerDiedError(str(lost))
        scored: dict[int, dict[str, Arrays]] = {}
        for place, number in enumerate(numbers):
            seen[number] += len(names)
            found = [answer[place] for answer in answers]
            if error := next((each for each in found if isinstance(each, str)), ""):
                errors[number] = error
                continue
            scored[number] = {name: arrays for records, _ in found for name, arrays in records.items()}
            seconds[number] += sum(spent for _, spent in found) / max(1, workers)
            known[number].update(scored[number])
        arguments = [(trials[number], records, rule.metric) for number, records in scored.items()]
        here: dict[int, ImageCounts] = {}
        for number, counts in zip(scored, call_many(count_images, arguments, workers, tell), strict=True):
            if isinstance(counts, RuntimeError):
                errors[number] = str(counts)
            else:
                here[number] = counts.of(names)
                counted[number] = _joined(counted[number], here[number]) if number in counted else here[number]
        mean_over = leader.mean_over if leader is not None else _mean_over(counted[number] for number in here)
        return {number: _at_best(replace(counted[number], mean_over=mean_over), rule) for number in here}, mean_over

    best = None if leader is None else (leader.number, leader.of(rule.images))
    try:
        drops = race(look, list(trials), len(rule.images), rule.rules, rule.comparisons, best)
    except _WorkerDiedError as error:
        tell(f"race: {error}; without it")
        return {}
    tell(
        f"race: {len(drops)} of {len(trials)} trials dropped after at most {max(seen.values())} of "
        f"{len(rule.images)} images"
    )
    ends: dict[int, RaceEnd] = {}
    for number in trials:
        drop, error = drops.get(number), errors.get(number, "")
        lost = (None, None) if drop is None else (drop.estimate, drop.beaten_by)
        shown = Race(seen[number], len(rule.images), seconds[number], *lost)
        ends[number] = RaceEnd(shown, error, {} if drop is not None or error else known[number])
    return ends


def _at_best(counts: ImageCounts, rule: Comparison) -> Array:
    """Counts (n, 3, C) at the best threshold of these very images: no trial is dropped for a misplaced one."""
    index = counts.default
    if rule.select != "default_threshold":
        curve = counts.curve(np.ones(len(counts.names), dtype=bool))
        index = int(np.nanargmax(np.where(counts.allowed(rule.limits), curve, -np.inf)))
    return counts.images[:, index]


def _joined(before: ImageCounts, more: ImageCounts) -> ImageCounts:
    return replace(
        before,
        images=np.concatenate([before.images, more.images]),
        names=(*before.names, *more.names),
        mean_over=_mean_over([before, more]),
    )


def _mean_over(counts: Iterable[ImageCounts]) -> MeanOver:
    found = {each.mean_over for each in counts}
    return "all" if "all" in found else "truth" if "truth" in found else "defined"


def score_images(
    arguments: tuple[Sequence[RacingTrial], Sequence[str], bool],
) -> list[tuple[dict[str, Arrays], float] | str]:
    """Arrays of the scorer by image for every trial, with its seconds, or why it failed. Runs in a worker."""
    racing, names, gpu = arguments
    torch.set_num_threads(1)
    started = time.monotonic()
    records: list[dict[str, Arrays]] = [{} for _ in racing]
    try:
        stage = racing[0].scorer.stage
        assert isinstance(stage, MapStage) and stage.build_many is not None
        device = "cuda:0" if gpu else "cpu"
        with numeric_mode(racing[0].scorer.mode):
            scores = stage.build_many([trial.scorer.context(device) for trial in racing])
        with numeric_mode(racing[0].scorer.mode), torch.inference_mode():
            for name in names:
                for record, arrays in zip(records, scores(name), strict=True):
                    record[name] = arrays
    except Exception as error:
        if len(racing) == 1:
            return [describe(error)]
        # One of the trials is to blame: each on its own tells which.
        return [answer for trial in racing for answer in score_images(([trial], names, gpu))]
    seconds = (time.monotonic() - started) / len(racing)
    return [(record, seconds) for record in records]


def count_images(arguments: tuple[RacingTrial, dict[str, Arrays], str]) -> ImageCounts:
    """Counts of a trial from the arrays of its scorer. Runs in a worker."""
    trial, records, metric = arguments
    stage = trial.evaluation.stage
    assert isinstance(stage, ReduceStage)
    scored = MemoryArtifact(trial.scorer.stage.name, trial.scorer.key, records)
    with numeric_mode(trial.evaluation.mode):
        reduction = stage.compute(with_memory(trial.evaluation, {scored.stage: scored}).context("cpu"))
    arrays_of = scored.arrays if CONFUSIONS in stage.inputs else None
    counts = counts_of(metric, reduction.arrays, reduction.tables, arrays_of)
    if counts is None:
        raise ValueError(f"stage {stage.name} keeps no counts of its images")
    return counts
