"""Map stages of one trial as one stage: what lies before its scorer is computed in memory, image by image.

A trial of a sweep is wanted for its numbers. The maps that only it asks for are therefore neither stored nor computed
for images that are not scored; the artifact of the scorer is the same as without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from wsss.errors import WsssError
from wsss.execution.numeric_mode import numeric_mode
from wsss.execution.stage_job import StageJob
from wsss.execution.tasks import describe
from wsss.pipeline import Arrays, MapStage, StageContext
from wsss.store import DamagedArtifact

Level = tuple[list[tuple[int, str]], Callable[[str], Sequence[Arrays]]]


@dataclass(frozen=True)
class FusedConfig:
    """Config of a fused stage.

    Attributes:
        jobs: of the stages in order, the scorer last; they lack the inputs that the ones before them make.
        known: image -> arrays of the scorer that are there already.
    """

    jobs: tuple[StageJob, ...]
    known: Mapping[str, Arrays] = field(default_factory=dict)


class MemoryArtifact:
    """Arrays in memory, read as an artifact is."""

    def __init__(self, stage: str, key: str, records: dict[str, Arrays] | None = None) -> None:
        self.stage, self.key = stage, key
        self.records: dict[str, Arrays] = {} if records is None else records

    def images(self) -> list[str]:
        """Their names."""
        return list(self.records)

    def arrays(self, image: str) -> Arrays:
        """Those of an image; KeyError when there are none."""
        return self.records[image]


def fuse(jobs: Sequence[StageJob], known: Mapping[str, Arrays] | None = None) -> StageJob:
    """The last of the jobs, computing those before it on the way."""
    stages = [job.stage for job in jobs]
    last = stages[-1]
    stage = MapStage(
        name=last.name,
        version=last.version,
        config=FusedConfig(tuple(jobs), known or {}),
        inputs=last.inputs,
        reads=last.reads,
        image_list=last.image_list,
        uses_gpu=any(stage.uses_gpu for stage in stages),
        chooses_by_masks=any(stage.chooses_by_masks for stage in stages),
        build=_build,
        build_many=build_fused,
    )
    return replace(with_memory(jobs[-1], {job.stage.name: _memory_of(job) for job in jobs}), stage=stage)


def fused_jobs(job: StageJob | None) -> tuple[StageJob, ...]:
    """What a fused job computes; nothing for any other."""
    config = None if job is None else job.stage.config
    return config.jobs if isinstance(config, FusedConfig) else ()


def with_memory(job: StageJob, made: Mapping[str, MemoryArtifact]) -> StageJob:
    """The job with those of its inputs that it lacks, by stage name."""
    missing = {role: made[upstream] for role, upstream in job.stage.inputs.items() if role not in job.inputs}
    inputs: dict[str, Any] = {**job.inputs, **missing}
    return replace(job, inputs=inputs)


def build_fused(contexts: Sequence[StageContext]) -> Callable[[str], Sequence[Arrays]]:
    """The scorer's arrays of an image for several trials. Stages that share work between trials share it here."""
    configs: list[FusedConfig] = [context.config for context in contexts]
    device = contexts[0].device
    memories = [{job.stage.name: _memory_of(job) for job in config.jobs} for config in configs]
    # Trials may differ in which stages are theirs alone.
    longest_first = sorted(configs, key=lambda config: -len(config.jobs))
    order = dict.fromkeys(job.stage.name for config in longest_first for job in config.jobs)
    levels = [_level(name, configs, memories, device) for name in order]

    def compute(name: str) -> Sequence[Arrays]:
        if all(name in config.known for config in configs):
            return [config.known[name] for config in configs]
        for places, arrays_of in levels:
            for (place, stage), arrays in zip(places, arrays_of(name), strict=True):
                memories[place][stage].records = {name: arrays}
        return [
            memory[config.jobs[-1].stage.name].arrays(name) for memory, config in zip(memories, configs, strict=True)
        ]

    return compute


class Recomputed:
    """The arrays of the last of some jobs, computed when they are read; pickles without what it has built."""

    def __init__(self, jobs: Sequence[StageJob]) -> None:
        self._job = fuse(jobs)
        self._compute: Callable[[str], Arrays] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_job": self._job, "_compute": None}

    def arrays(self, image: str) -> Arrays:
        """Those of an image, computed on the CPU."""
        with numeric_mode(self._job.mode):
            if self._compute is None:
                torch.set_num_threads(1)
                self._compute = _build(self._job.context("cpu"))
            with torch.inference_mode():
                return self._compute(image)


def _build(context: StageContext) -> Callable[[str], Arrays]:
    compute = build_fused([context])
    return lambda name: compute(name)[0]


def _memory_of(job: StageJob) -> MemoryArtifact:
    return MemoryArtifact(job.stage.name, job.key)


def _level(
    name: str, configs: Sequence[FusedConfig], memories: Sequence[Mapping[str, MemoryArtifact]], device: str
) -> Level:
    """Where the results of a stage go, and the function that computes them for an image."""
    places: list[tuple[int, str]] = []
    jobs: list[StageJob] = []
    for place, config in enumerate(configs):
        for job in config.jobs:
            if job.stage.name == name:
                places.append((place, name))
                jobs.append(with_memory(job, memories[place]))
    contexts = [job.context(device) for job in jobs]
    stages = [job.stage for job in jobs if isinstance(job.stage, MapStage)]
    torch.manual_seed(0)
    if len(jobs) > 1 and stages[0].build_many is not None:
        return places, _naming(name, stages[0].build_many(contexts))
    functions = [stage.build(context) for stage, context in zip(stages, contexts, strict=True)]
    return places, _naming(name, lambda image: [function(image) for function in functions])


def _naming(stage: str, compute: Callable[[str], Sequence[Arrays]]) -> Callable[[str], Sequence[Arrays]]:
    """So that an error says which of the stages failed."""

    def named(image: str) -> Sequence[Arrays]:
        try:
            return compute(image)
        except Exception as error:
            kind = DamagedArtifact if isinstance(error, DamagedArtifact) else WsssError
            raise kind(f"stage {stage}: {describe(error)}") from error

    return named
