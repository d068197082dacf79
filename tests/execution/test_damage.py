"""A run sets aside what is damaged in the store and computes it again. Stages are computed here, without Ray."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.store.conformance import flipped

from wsss.data.config import DatasetConfig
from wsss.data.dataset import Dataset
from wsss.execution import run as run_module
from wsss.execution.prepare import PreparedRun, RunRequest, prepare_run
from wsss.execution.run import RunResult, execute_run
from wsss.execution.stage_job import bind_job, publish_stage
from wsss.method import ExecutionSettings, Method
from wsss.pipeline import MapStage, Pipeline, Reads, ReduceStage, StageContext
from wsss.plan import PlannedStage
from wsss.recipe import load_recipe, setting
from wsss.store import Artifact, DamagedArtifact

SMALL = ("dataset.name=shapes", "dataset.shapes.train=24", "dataset.shapes.val=2", "dataset.shapes.size=48")


@dataclass(frozen=True)
class Power:
    power: float = setting(1.0, above=0)


@dataclass(frozen=True)
class PlainRecipe:
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    execution: ExecutionSettings = field(default_factory=ExecutionSettings)
    seed: int = setting(0, minimum=0, in_key=False)
    value: Power = Power()


def never(context: StageContext) -> Any:
    raise AssertionError("computed by `Plain`")


def pipeline(recipe: PlainRecipe, dataset: Dataset) -> Pipeline:
    reads = frozenset[Reads]({"images"})
    value = MapStage(name="value", version=1, config=recipe.value, reads=reads, image_list="train", build=never)
    mean = ReduceStage(
        name="mean",
        version=1,
        config=Power(),
        inputs={"value": "value"},
        reads=reads,
        image_list="train",
        compute=never,
        metrics=("plain/miou_train",),
    )
    return Pipeline((value, mean), headline=("plain/miou_train",))


METHOD = Method(
    name="plain",
    title="Plain",
    citation="none",
    recipe_type=PlainRecipe,
    pipeline=pipeline,
    folder=Path(__file__).parent,
    exporters={},
)


class Plain:
    """Runs in a home, with what they told and computed. `before_mean` is called before the mean is computed."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.told: list[str] = []
        self.computed: list[str | int] = []
        self.before_mean: Callable[[], None] = lambda: None

    def run(self) -> RunResult:
        self.told.clear()
        self.computed.clear()
        recipe = load_recipe(PlainRecipe, None, SMALL)
        request = RunRequest(METHOD, recipe, "plain", self.home, str(self.home / "store"), "http://127.0.0.1:9")
        observer: Any = SimpleNamespace(message=self.told.append)
        return execute_run(prepare_run(request), observer)

    def compute_stage(
        self,
        prepared: PreparedRun,
        planned: PlannedStage,
        artifacts: dict[str, Artifact],
        observer: Any,
        tracked: Any,
        run_id: str,
        code: Any,
    ) -> Artifact:
        self.computed.append(planned.stage.name)
        job = bind_job(planned.stage, planned.key, prepared.dataset, prepared.store, artifacts, "fast")
        writer, names = job.writer(), job.view.names
        facts: dict[str, Any] = {}
        if planned.stage.name == "value":
            shards = [names[start : start + 8] for start in range(0, len(names), 8)]
            finished = writer.finished_images()
            facts["shards"] = len(shards)
            for index in set(range(len(shards))) - set(finished):
                self.computed.append(index)
                writer.add_shard(index, {name: {"value": np.full(2, index)} for name in shards[index]})
        else:
            self.before_mean()
            value = float(np.mean([job.inputs["value"].arrays(name)["value"] for name in names]))
            writer.add_file("metrics.json", json.dumps({"plain/miou_train": value}).encode())
        return publish_stage(job, 0.1, 1, False, facts, run_id, code)

    def place(self, result: RunResult, stage: str) -> Path:
        return self.home / "store" / stage / result.record.keys[stage]


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plain:
    found = Plain(tmp_path)
    compute, cluster = ModuleType("compute"), ModuleType("cluster")
    vars(compute)["compute_stage"] = found.compute_stage
    vars(cluster)["connect"] = lambda: None
    monkeypatch.setattr(run_module, "check_schedulable", lambda *_: None)
    monkeypatch.setattr(run_module, "growth_in_words", lambda *_: [])
    monkeypatch.setitem(sys.modules, "wsss.execution.compute", compute)
    monkeypatch.setitem(sys.modules, "wsss.execution.cluster", cluster)
    log = SimpleNamespace(metrics=lambda *_: None, series=lambda *_: None, finish=lambda *_: None)
    tracker = SimpleNamespace(run=lambda **_: log, close=lambda **_: SimpleNamespace(message=""))
    monkeypatch.setattr(run_module, "open_tracker", lambda *_, **__: tracker)
    return found


def flip(path: Path) -> None:
    path.write_bytes(flipped(path.read_bytes()))


def statuses(result: RunResult) -> list[str]:
    return [stage.status for stage in result.record.stages]


SHARD = "shard-00001.zip"
SET_ASIDE = "(other content); set aside, to be computed again"


def test_what_is_damaged_is_set_aside_named_once_and_computed_again(plain: Plain) -> None:
    first = plain.run()
    assert plain.computed == ["value", 0, 1, 2, "mean"] and plain.told == []
    flip(plain.place(first, "mean") / "metrics.json")
    again = plain.run()
    assert plain.told == [f"mean: metrics.json {SET_ASIDE}"] and plain.computed == ["mean"]
    assert again.record.metrics == first.record.metrics and statuses(again) == ["cached", "executed"]
    flip(plain.place(first, "value") / SHARD)
    again = plain.run()
    assert plain.told == [f"value: {SHARD} {SET_ASIDE}"] and plain.computed == [], "nobody needs it now"
    assert statuses(again) == ["not_needed", "cached"]
    for path in plain.place(first, "mean").iterdir():
        if path.is_file():
            path.unlink()
    again = plain.run()
    assert plain.told == [] and plain.computed == ["value", 1, "mean"], "of a map stage, what is whole stays"
    assert again.record.metrics == first.record.metrics


def test_an_input_that_is_damaged_under_way_is_computed_again(plain: Plain) -> None:
    first = plain.run()
    (plain.place(first, "mean") / "manifest.json").unlink()

    def once() -> None:
        plain.before_mean = lambda: None
        flip(plain.place(first, "value") / SHARD)

    plain.before_mean = once
    again = plain.run()
    assert plain.told == [f"value: {SHARD} {SET_ASIDE}"]
    assert plain.computed == ["mean", "value", 1, "mean"]
    assert statuses(again) == ["executed", "executed"] and again.record.metrics == first.record.metrics


def test_a_disk_that_damages_whatever_is_written_ends_the_run(plain: Plain) -> None:
    first = plain.run()
    (plain.place(first, "mean") / "manifest.json").unlink()
    plain.before_mean = lambda: flip(plain.place(first, "value") / SHARD)
    with pytest.raises(DamagedArtifact, match=SHARD):
        plain.run()
    assert len(plain.told) == 6
