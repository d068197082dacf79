"""Drops trials of a batch that are clearly worse after a part of the images, before the rest is computed.

Every trial is one job (`wsss.search.evaluate.in_memory`) that is computed for the images of one round after the other.
After each round the trials are held against the best one that is known (`wsss.evaluation.racing`). Those that stay go
on to the other images and keep what the race has computed. All trials of a batch go through a round together, so that
stages which share work between trials still share it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from wsss.evaluation.confusion import MeanOver
from wsss.evaluation.racing import RaceRules, comparison_level, race_rounds, survivors
from wsss.execution.numeric_mode import numeric_mode
from wsss.execution.stage_job import StageJob
from wsss.execution.tasks import call_many, describe
from wsss.pipeline import Arrays, MapStage, ReduceStage
from wsss.search.choose.score import Counts, counts_of
from wsss.search.evaluate.in_memory import MemoryArtifact, with_memory
from wsss.search.evaluate.trial import CONFUSIONS
from wsss.search.records import Race, Select

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Entrant:
    """A setting in a race: the fused job of its scorer, and its numbers, which lack that input."""

    number: int
    scorer: StageJob
    evaluation: StageJob


@dataclass(frozen=True)
class Leader:
    """The best setting that is known: counts of all images at its own threshold, (N, 3, C)."""

    number: int
    names: tuple[str, ...]
    counts: Array
    mean_over: MeanOver

    def of(self, names: Sequence[str]) -> Array:
        """Counts (n, 3, C) of some of the images."""
        places = {name: place for place, name in enumerate(self.names)}
        return self.counts[[places[name] for name in names]]


@dataclass(frozen=True)
class Rule:
    """How the sweep reads its number (`score_of`), and how sure a drop must be.

    Attributes:
        images: those that a choice may look at.
        comparisons: settings of the whole sweep, which share the error probability of `rules`.
    """

    metric: str
    select: Select
    limits: tuple[float, float] | None
    images: tuple[str, ...]
    comparisons: int
    rules: RaceRules


@dataclass(frozen=True)
class RaceEnd:
    """What became of a setting.

    Attributes:
        race: its `estimate` is there when the setting was dropped.
        error: why it failed; empty unless it did.
        known: image -> arrays of its scorer, of the images that it saw; empty when it was dropped.
    """

    race: Race
    error: str = ""
    known: Mapping[str, Arrays] = field(default_factory=dict)


def run_race(
    entrants: Sequence[Entrant], leader: Leader | None, rule: Rule, workers: int, gpu: bool, tell: Callable[[str], None]
) -> dict[int, RaceEnd]:
    """Race the settings against each other and the leader; setting number -> how it ended.

    Empty when a worker died: the full evaluation then finds out which setting is to blame.
    """
    rounds = race_rounds(len(rule.images), rule.rules)[:-1]  # after the last one nothing is saved
    order = [rule.images[place] for place in np.random.default_rng(rule.rules.seed).permutation(len(rule.images))]
    level = comparison_level(rule.rules, len(rounds), rule.comparisons)
    alive = {entrant.number: entrant for entrant in entrants}
    known: dict[int, dict[str, Arrays]] = {number: {} for number in alive}
    counted: dict[int, list[Counts]] = {number: [] for number in alive}
    seconds = dict.fromkeys(alive, 0.0)
    ends: dict[int, RaceEnd] = {}
    done = 0

    def end(number: int, estimate: float | None = None, other: int | None = None, error: str = "") -> None:
        race = Race(done, len(rule.images), seconds[number], estimate, other)
        ends[number] = RaceEnd(race, error, known[number] if estimate is None and not error else {})

    for size in rounds:
        names, done = order[done:size], size
        pieces = [list(piece) for piece in np.array_split(names, min(2 * max(1, workers), len(names)))]
        settings = list(alive.values())
        answers = call_many(score_images, [(settings, piece, gpu) for piece in pieces], workers, gpu)
        if any(isinstance(answer, RuntimeError) for answer in answers):
            tell(f"race: {next(answer for answer in answers if isinstance(answer, RuntimeError))}; without it")
            return {}
        scored: dict[int, dict[str, Arrays]] = {}
        for place, number in enumerate(list(alive)):
            found = [answer[place] for answer in answers]
            if error := next((each for each in found if isinstance(each, str)), ""):
                end(number, error=error)
                del alive[number]
                continue
            scored[number] = {name: arrays for records, _ in found for name, arrays in records.items()}
            seconds[number] += sum(spent for _, spent in found) / max(1, workers)
            known[number].update(scored[number])
        arguments = [(alive[number], records, rule.metric) for number, records in scored.items()]
        for number, counts in zip(scored, call_many(count_images, arguments, workers), strict=True):
            if isinstance(counts, RuntimeError):
                end(number, error=str(counts))
                del alive[number]
                continue
            counted[number].append(counts.of(names))
        if len(alive) + (leader is not None) < 2:
            break
        for number, estimate, other in _clearly_worse({n: counted[n] for n in alive}, leader, rule, level):
            end(number, estimate, other)
            del alive[number]
    for number in alive:
        end(number)
    dropped = sum(each.race.estimate is not None for each in ends.values())
    tell(f"race: {dropped} of {len(entrants)} settings dropped after at most {done} of {len(order)} images")
    return ends


def _clearly_worse(
    seen: Mapping[int, Sequence[Counts]], leader: Leader | None, rule: Rule, level: float
) -> list[tuple[int, float, int]]:
    """(number, estimate of its value, number of the setting that beats it) of those that are dropped.

    Every setting is given its best threshold on these very images, so that none is dropped for a misplaced one.
    """
    numbers = list(seen)
    joined = [_joined(parts) for parts in seen.values()]
    truth = any(part.mean_over == "truth" for part in joined)
    mean_over: MeanOver = leader.mean_over if leader is not None else "truth" if truth else "defined"
    counts = [_at_best(replace(part, mean_over=mean_over), rule) for part in joined]
    names = joined[0].names
    offset = 0.0
    if leader is not None:
        numbers.append(leader.number)
        counts.append(leader.of(names))
    stacked = np.stack(counts)
    stay = survivors(stacked, len(rule.images), level, mean_over)
    scores = [_miou(each, mean_over) for each in counts]
    if leader is not None:
        # The images of the round may be easier or harder than all of them; the leader tells by how much.
        offset = _miou(leader.of(rule.images), mean_over) - scores[-1]
    first = numbers[int(np.nanargmax(scores))]
    return [
        (number, float(np.clip(score + offset, 0, 1)), first)
        for number, score, stays in zip(numbers, scores, stay, strict=True)
        if not stays and number in seen
    ]


def _at_best(counts: Counts, rule: Rule) -> Array:
    index = counts.default
    if rule.select != "default_threshold":
        curve = counts.curve(np.ones(len(counts.names), dtype=bool))
        index = int(np.nanargmax(np.where(counts.allowed(rule.limits), curve, -np.inf)))
    return counts.images[:, index]


def _joined(parts: Sequence[Counts]) -> Counts:
    return replace(
        parts[0],
        images=np.concatenate([part.images for part in parts]),
        names=tuple(name for part in parts for name in part.names),
        mean_over="truth" if any(part.mean_over == "truth" for part in parts) else "defined",
    )


def _miou(counts: Array, mean_over: MeanOver) -> float:
    whole = Counts(counts[:, None], np.zeros(0), ("",) * len(counts), mean_over, 0)
    return float(whole.curve(np.ones(len(counts), dtype=bool))[0])


def score_images(
    arguments: tuple[Sequence[Entrant], Sequence[str], bool],
) -> list[tuple[dict[str, Arrays], float] | str]:
    """Arrays of the scorer by image for every entrant, with its seconds, or why it failed. Runs in a worker."""
    entrants, names, gpu = arguments
    torch.set_num_threads(1)
    started = time.monotonic()
    records: list[dict[str, Arrays]] = [{} for _ in entrants]
    try:
        stage = entrants[0].scorer.stage
        assert isinstance(stage, MapStage) and stage.build_many is not None
        device = "cuda:0" if gpu else "cpu"
        with numeric_mode(entrants[0].scorer.mode):
            scores = stage.build_many([entrant.scorer.context(device) for entrant in entrants])
        with numeric_mode(entrants[0].scorer.mode), torch.inference_mode():
            for name in names:
                for record, arrays in zip(records, scores(name), strict=True):
                    record[name] = arrays
    except Exception as error:
        if len(entrants) == 1:
            return [describe(error)]
        # One of the settings is to blame: each on its own tells which.
        return [answer for entrant in entrants for answer in score_images(([entrant], names, gpu))]
    seconds = (time.monotonic() - started) / len(entrants)
    return [(record, seconds) for record in records]


def count_images(arguments: tuple[Entrant, dict[str, Arrays], str]) -> Counts:
    """Counts of an entrant from the arrays of its scorer. Runs in a worker."""
    entrant, records, metric = arguments
    stage = entrant.evaluation.stage
    assert isinstance(stage, ReduceStage)
    scored = MemoryArtifact(entrant.scorer.stage.name, entrant.scorer.key, records)
    with numeric_mode(entrant.evaluation.mode):
        reduction = stage.compute(with_memory(entrant.evaluation, {scored.stage: scored}).context("cpu"))
    arrays_of = scored.arrays if CONFUSIONS in stage.inputs else None
    counts = counts_of(metric, reduction.arrays, reduction.tables, arrays_of)
    if counts is None:
        raise ValueError(f"stage {stage.name} keeps no counts of its images")
    return counts
