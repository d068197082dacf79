"""Drops settings of a batch that are clearly worse after a part of the images, before the rest is computed.

The stages that only one setting asks for are computed in memory, for the images of one round after the other; nothing
of it is stored. After each round the settings are held against the best one that is known (`wsss.evaluation.racing`).
What is left is then evaluated as ever, on all images. All settings of a batch go through a round together, so that
stages which share work between settings (a network's forward pass) still share it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from wsss.evaluation.confusion import MeanOver
from wsss.evaluation.racing import RaceRules, comparison_level, race_rounds, survivors
from wsss.execution.many import call_many, describe
from wsss.execution.stage_job import StageJob
from wsss.pipeline import Arrays, MapStage, ReduceStage
from wsss.search.record import Race, Select
from wsss.search.score import Counts, counts_of

Array = np.ndarray[Any, np.dtype[Any]]
_CONFUSIONS = "confusions"


@dataclass(frozen=True)
class Chain:
    """What is computed in memory for one setting: map stages in order, the last of them the scorer; then the numbers.

    The jobs lack the inputs that stages of the chain make.
    """

    number: int
    maps: tuple[StageJob, ...]
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
    """What became of a setting: `race.estimate` is there when it was dropped, `error` when it failed."""

    race: Race
    error: str = ""


class _LiveArtifact:
    """Arrays of a stage that was computed in memory, read as an artifact is."""

    def __init__(self, job: StageJob) -> None:
        self.stage, self.key = job.stage.name, job.key
        self.records: dict[str, Arrays] = {}

    def images(self) -> list[str]:
        return list(self.records)

    def arrays(self, name: str) -> Arrays:
        return self.records[name]


def run_race(
    chains: Sequence[Chain], leader: Leader | None, rule: Rule, workers: int, gpu: bool, tell: Callable[[str], None]
) -> dict[int, RaceEnd]:
    """Race the settings against each other and the leader; setting number -> how it ended.

    Empty when a worker died: the full evaluation then finds out which setting is to blame.
    """
    rounds = race_rounds(len(rule.images), rule.rules)[:-1]  # after the last one nothing is saved
    order = [rule.images[place] for place in np.random.default_rng(rule.rules.seed).permutation(len(rule.images))]
    level = comparison_level(rule.rules, len(rounds), rule.comparisons)
    alive = {chain.number: chain for chain in chains}
    seen: dict[int, list[Counts]] = {number: [] for number in alive}
    seconds = dict.fromkeys(alive, 0.0)
    ends: dict[int, RaceEnd] = {}
    done = 0

    def end(number: int, images: int, estimate: float | None = None, other: int | None = None, error: str = "") -> None:
        ends[number] = RaceEnd(Race(images, len(rule.images), seconds[number], estimate, other), error)

    for size in rounds:
        names, done = order[done:size], size
        pieces = [list(piece) for piece in np.array_split(names, min(max(1, workers), len(names)))]
        arguments = [(list(alive.values()), piece, rule.metric, gpu) for piece in pieces]
        answers = call_many(count_chains, arguments, workers, gpu)
        if any(isinstance(answer, RuntimeError) for answer in answers):
            tell(f"race: {next(answer for answer in answers if isinstance(answer, RuntimeError))}; without it")
            return {}
        for position, number in enumerate(list(alive)):
            found = [answer[position] for answer in answers]
            error = next((each for each in found if isinstance(each, str)), "")
            if error:
                end(number, size, error=error)
                del alive[number]
                continue
            seen[number] += [counts for counts, _ in found]
            seconds[number] += sum(spent for _, spent in found) / len(pieces)
        if len(alive) + (leader is not None) < 2:
            break
        for number, estimate, other in _clearly_worse({n: seen[n] for n in alive}, leader, rule, level):
            end(number, size, estimate, other)
            del alive[number]
    for number in alive:
        end(number, done)
    dropped = sum(each.race.estimate is not None for each in ends.values())
    tell(f"race: {dropped} of {len(chains)} settings dropped after at most {done} of {len(order)} images")
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


def count_chains(
    arguments: tuple[Sequence[Chain], Sequence[str], str, bool],
) -> list[tuple[Counts, float] | str]:
    """Counts of the images for every chain, with its seconds, or why it failed. Runs in a worker."""
    chains, names, metric, gpu = arguments
    torch.set_num_threads(1)
    try:
        return list(_counted(chains, names, metric, "cuda:0" if gpu else "cpu"))
    except Exception as error:
        if len(chains) == 1:
            return [describe(error)]
    # One of the settings is to blame: each on its own tells which.
    return [answer for chain in chains for answer in count_chains(([chain], names, metric, gpu))]


def _counted(chains: Sequence[Chain], names: Sequence[str], metric: str, device: str) -> list[tuple[Counts, float]]:
    started = time.monotonic()
    live = [{job.stage.name: _LiveArtifact(job) for job in chain.maps} for chain in chains]
    scorers = [chain.maps[-1].stage.name for chain in chains]
    # Settings may differ in which stages are theirs alone: a level holds the jobs of one stage.
    order = dict.fromkeys(job.stage.name for chain in sorted(chains, key=lambda c: -len(c.maps)) for job in chain.maps)
    levels = [_level(name, chains, live, device) for name in order]
    with torch.inference_mode():
        for image in names:
            for places, compute in levels:
                for (place, stage), arrays in zip(places, compute(image), strict=True):
                    live[place][stage].records[image] = arrays
            for place, artifacts in enumerate(live):  # maps of many images would fill the memory
                for stage, artifact in artifacts.items():
                    if stage != scorers[place]:
                        artifact.records.clear()
    found = []
    for place, chain in enumerate(chains):
        stage = chain.evaluation.stage
        assert isinstance(stage, ReduceStage)
        reduction = stage.compute(_bound(chain.evaluation, live[place]).context("cpu"))
        scored = live[place][scorers[place]].arrays if _CONFUSIONS in stage.inputs else None
        counts = counts_of(metric, reduction.metrics[metric], reduction.arrays, reduction.tables, scored)
        if counts is None:
            raise ValueError(f"stage {stage.name} keeps no counts of its images")
        found.append(counts.of(names))
    seconds = (time.monotonic() - started) / len(chains)
    return [(counts, seconds) for counts in found]


def _level(
    name: str, chains: Sequence[Chain], live: Sequence[Mapping[str, _LiveArtifact]], device: str
) -> tuple[list[tuple[int, str]], Callable[[str], Sequence[Arrays]]]:
    """Where the results of a stage go, and the function that computes them for an image."""
    places, jobs = [], []
    for place, chain in enumerate(chains):
        for job in chain.maps:
            if job.stage.name == name:
                places.append((place, name))
                jobs.append(_bound(job, live[place]))
    contexts = [job.context(device) for job in jobs]
    stages = [job.stage for job in jobs if isinstance(job.stage, MapStage)]
    torch.manual_seed(0)
    if len(jobs) > 1 and stages[0].build_many is not None:
        return places, stages[0].build_many(contexts)
    functions = [stage.build(context) for stage, context in zip(stages, contexts, strict=True)]
    return places, lambda image: [function(image) for function in functions]


def _bound(job: StageJob, live: Mapping[str, _LiveArtifact]) -> StageJob:
    inputs: dict[str, Any] = dict(job.inputs)
    for role, upstream in job.stage.inputs.items():
        if role not in inputs:
            inputs[role] = live[upstream]
    return replace(job, inputs=inputs)
