"""A trial of a sweep on its way: what all have in common, what one has computed so far, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsss.evaluation.racing import RaceRules
from wsss.execution.prepare import PreparedRun
from wsss.execution.stage_job import StageJob
from wsss.method import Method
from wsss.pipeline import Stage
from wsss.search.choose.criteria import Criterion
from wsss.search.choose.score import Score
from wsss.search.evaluate.in_memory import fused_jobs
from wsss.search.records import PreviewValue, Race, Select, StageUse
from wsss.search.space.pipelines import KeyedPipeline, metric_stage
from wsss.store import Artifact

CONFUSIONS = "confusions"


@dataclass(frozen=True)
class SweepContext:
    """What every trial of a sweep has in common; travels to the workers by pickle.

    Attributes:
        recipe: what trials change.
        metric: what is searched for; limits: range of the thresholds that may be chosen, see `score_of`.
        criterion: without masks, computed for every trial; None: none.
        varied: the first stages that keys of the innermost search change: trials share nothing behind all of them.
        race: how trials are raced, None: each is evaluated on all images; trials: trials of the sweep.
        run_id: who computes, for the manifests of artifacts; code: provenance, likewise.
    """

    method: Method
    recipe: Any
    recipe_name: str
    home: Path
    store_url: str
    metric: str
    select: Select
    limits: tuple[float, float] | None
    run_id: str
    code: Mapping[str, Any]
    criterion: Criterion | None = None
    varied: tuple[str, ...] = ()
    race: RaceRules | None = None
    trials: int = 1


@dataclass(frozen=True)
class TrialOutcome:
    """What became of one trial. `error` is empty unless it failed; else the rest is what was known by then.

    Attributes:
        race: where it took part in one; with an estimate, it was dropped there and has no score.
        in_memory: the stage that computed others on the way (`wsss.search.evaluate.in_memory`); "" without one.
        share: of the images of these stages, those that were computed.
    """

    number: int
    error: str = ""
    score: Score | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    stages: tuple[StageUse, ...] = ()
    artifacts: dict[str, str] = field(default_factory=dict)
    seed: int = 0
    previews: tuple[PreviewValue, ...] = ()
    race: Race | None = None
    in_memory: str = ""
    share: float = 1.0

    @property
    def dropped(self) -> bool:
        """Whether it lost a race."""
        return self.race is not None and self.race.estimate is not None

    @property
    def cost_seconds(self) -> float:
        """What all its stages cost, whoever executed them; images that were left out are extrapolated."""
        in_memory = 0.0 if self.race is None else self.race.seconds
        in_memory += sum(stage.seconds for stage in self.stages if stage.name == self.in_memory)
        return sum(stage.seconds for stage in self.stages if stage.name != self.in_memory) + in_memory / self.share

    @property
    def spent_seconds(self) -> float:
        """What the stages that it executed cost, and the race."""
        raced = 0.0 if self.race is None else self.race.seconds
        return sum(stage.seconds for stage in self.stages if stage.executed) + raced


@dataclass
class RunningTrial:
    """One trial under way. `artifacts` by stage name; `executed` are the stages that were computed for it.

    Attributes:
        previews: metrics while its stages trained; looks: the stages that this took.
        fused: its scorer, where the stages before it are computed in memory; see `wsss.search.evaluate.in_memory`.
    """

    number: int
    error: str = ""
    keyed: KeyedPipeline | None = None
    prepared: PreparedRun | None = None
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    executed: set[str] = field(default_factory=set)
    previews: list[PreviewValue] = field(default_factory=list)
    looks: list[StageUse] = field(default_factory=list)
    fused: StageJob | None = None
    race: Race | None = None

    @property
    def share(self) -> float:
        """Of the images of the stages that are computed in memory, those that are looked at."""
        jobs = fused_jobs(self.fused)
        if not jobs:
            return 1.0
        looked_at = len(jobs[-1].view.names) if self.race is None or self.going_on else self.race.images
        return looked_at / max(len(job.view.names) for job in jobs)

    @property
    def going_on(self) -> bool:
        """Whether it neither failed nor lost a race."""
        return not self.error and (self.race is None or self.race.estimate is None)

    @property
    def pipeline(self) -> KeyedPipeline:
        """The pipeline of a trial that did not fail to build one."""
        assert self.keyed is not None
        return self.keyed

    def target(self, metric: str) -> Stage:
        """The stage that makes a metric."""
        return self.pipeline.pipeline.stage(metric_stage(self.pipeline.pipeline, metric))


def best_so_far(number: int, threshold: float | None, artifacts: Mapping[str, str]) -> dict[str, Any]:
    """What a race is told of the best trial: plain values, because Tune passes it on."""
    return {"number": number, "threshold": threshold, "artifacts": dict(artifacts)}
