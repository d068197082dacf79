"""The plan of a run: which stages are there already, which must be computed, and what that may cost."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from wsss.data.dataset import Dataset
from wsss.errors import WsssError, nearest
from wsss.files import write_json
from wsss.pipeline import Pipeline, ReduceStage, Stage, stage_keys
from wsss.store import Artifact, DamagedArtifact, Store
from wsss.weights import WeightFile, file_digest, missing_downloads


class PlanError(WsssError):
    """A run can be refused before anything is spent."""


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a plan.

    Attributes:
        artifact: the published result, if the store holds it.
        damage: what is wrong with a published result that is not what was stored; "" without one.
        needed: must be computed now; a stage that is neither cached nor needed only fed stages that are cached.
        images: images that it runs over; 0 for a reduce stage without a list.
        expected_seconds: from earlier runs on this machine; None when there was none.
    """

    stage: Stage
    key: str
    artifact: Artifact | None
    needed: bool
    images: int
    expected_seconds: float | None
    damage: str = ""

    @property
    def cached(self) -> bool:
        """Whether the store holds the result."""
        return self.artifact is not None


@dataclass(frozen=True)
class Plan:
    """All stages in order."""

    stages: tuple[PlannedStage, ...]

    @property
    def needed(self) -> tuple[PlannedStage, ...]:
        """Stages that must be computed."""
        return tuple(planned for planned in self.stages if planned.needed)

    @property
    def downloads(self) -> Mapping[Path, WeightFile]:
        """Weight files that the stages to compute need and that are yet to be downloaded."""
        return missing_downloads(path for planned in self.needed for path in planned.stage.files.values())

    @property
    def timed(self) -> tuple[PlannedStage, ...]:
        """Stages to compute that ran on this machine before, so that their time is known."""
        return tuple(planned for planned in self.needed if planned.expected_seconds is not None)

    @property
    def expected_seconds(self) -> float:
        """Sum over the timed stages: all that the plan takes, or the least of it while others were never timed."""
        return sum(planned.expected_seconds or 0.0 for planned in self.timed)


class CostHistory:
    """Seconds per image (or step) of every stage, as last measured on this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def seconds(self, stage: Stage, images: int) -> float | None:
        """Expected seconds of a stage over `images` images; None when it was never timed."""
        entry = self._read().get(_cost_name(stage))
        return None if entry is None else entry * max(images, 1)

    def record(self, stage: Stage, images: int, seconds: float) -> None:
        """Remember a whole execution (not a resumed one)."""
        entries = self._read()
        entries[_cost_name(stage)] = seconds / max(images, 1)
        with suppress(OSError):  # costs are a note: a full disk must not stop the run for them
            write_json(self.path, entries, sort_keys=True)

    def _read(self) -> dict[str, float]:
        try:
            entries = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return {}
        return entries if isinstance(entries, dict) else {}


def make_plan(pipeline: Pipeline, dataset: Dataset, store: Store, costs: CostHistory, until: str | None = None) -> Plan:
    """Keys of all stages, what the store holds of them, and what must be computed.

    Only what somebody needs is computed: numbers (reduce stages) and final stages are always wanted, the
    others when a stage that is to be computed reads them. A damaged artifact counts as absent; nothing is changed here.

    Raises:
        PlanError: `until` names no stage.
        StoreError: the store does not answer.
    """
    if until is not None and until not in {stage.name for stage in pipeline}:
        names = [stage.name for stage in pipeline]
        raise PlanError(f"there is no stage {until!r}{nearest(until, names)}", "--until", f"stages: {', '.join(names)}")
    keys = stage_keys(pipeline, dataset, lambda path: file_digest(path, dataset.cache))
    stages = pipeline.stages if until is None else pipeline.upstream(until)
    artifacts: dict[str, Artifact | None] = {}
    damages: dict[str, str] = {}
    for stage in stages:
        try:
            artifacts[stage.name] = store.find(stage.name, keys[stage.name])
        except DamagedArtifact as error:
            artifacts[stage.name], damages[stage.name] = None, error.what
    consumed = {name for stage in stages for name in stage.inputs.values()}
    results = [stage.name for stage in stages if isinstance(stage, ReduceStage) or stage.name not in consumed]
    wanted = {stage.name for stage in pipeline.upstream(*results, stop=lambda name: artifacts[name] is not None)}
    plan = []
    for stage in stages:
        images = len(dataset.lists[stage.image_list]) if stage.image_list else 0
        artifact, needed = artifacts[stage.name], stage.name in wanted
        seconds, damage = costs.seconds(stage, images), damages.get(stage.name, "")
        plan.append(PlannedStage(stage, keys[stage.name], artifact, needed, images, seconds, damage))
    return Plan(tuple(plan))


def _cost_name(stage: Stage) -> str:
    # The configuration decides the cost of a stage; its name alone would mix the demo with the paper.
    return f"{stage.name}-{hashlib.sha256(repr(stage.config).encode()).hexdigest()[:12]}"
