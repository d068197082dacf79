"""Several settings of one stage at once: the same artifacts as one by one, failures that stay with their setting."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from ray.exceptions import OutOfMemoryError, WorkerCrashedError

from wsss.data.view import DataView
from wsss.errors import WsssError
from wsss.execution import many
from wsss.execution.stage_job import StageJob
from wsss.pipeline import Arrays, MapStage, StageContext
from wsss.store import open_store

NAMES = ("a", "b", "c")


@dataclass(frozen=True)
class Config:
    factor: float


@pytest.fixture(autouse=True)
def fresh_worker() -> None:
    many._built.clear()


def build(context: StageContext) -> Callable[[str], Mapping[str, np.ndarray]]:
    if context.config.factor < 0:
        raise ValueError("a negative factor")
    return lambda name: {"value": np.array([ord(name) * context.config.factor])}


def build_many(contexts: Sequence[StageContext]) -> Callable[[str], Sequence[Arrays]]:
    functions = [build(context) for context in contexts]
    return lambda name: [function(name) for function in functions]


def jobs(folder: Path, factors: Sequence[float], shared: bool) -> list[StageJob]:
    view = DataView("toy", "train", NAMES, ("background",), frozenset())
    stage = MapStage(name="s", version=1, config=Config(0), build=build, build_many=build_many if shared else None)
    store = open_store(str(folder))
    return [
        StageJob(replace(stage, config=Config(factor)), f"k{number}", view, {}, store)
        for number, factor in enumerate(factors)
    ]


def values(job: StageJob) -> list[float]:
    artifact = job.writer().publish({}, shards=[0])
    return [float(artifact.arrays(name)["value"][0]) for name in NAMES]


def test_settings_that_share_work_give_what_each_gives_alone(tmp_path: Path) -> None:
    together, alone = jobs(tmp_path / "a", [1, 2, 3], True), jobs(tmp_path / "b", [1, 2, 3], False)
    seconds = many.shard_of_jobs(together, 0, NAMES, gpu=False)
    assert len(set(seconds)) == 1, "each is told its share"
    many.shard_of_jobs(alone, 0, NAMES, gpu=False)
    assert [values(job) for job in together] == [values(job) for job in alone]


@pytest.mark.parametrize("shared", [True, False])
def test_a_failing_setting_fails_alone(tmp_path: Path, shared: bool) -> None:
    found = jobs(tmp_path, [1, -1, 3], shared)
    told = many.shard_of_jobs(found, 0, NAMES, gpu=False)
    assert told[1] == "ValueError: a negative factor"
    assert values(found[0])[0] == ord("a") and values(found[2])[0] == 3 * ord("a")


def test_jobs_are_cut_so_that_every_worker_has_work() -> None:
    assert many.parts(list(range(8)), 8, workers=2) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert many.parts(list(range(8)), 8 * 32, workers=2) == [list(range(8))], "shards are enough"
    assert many.parts([0, 1], 2, workers=16) == [[0], [1]]
    assert many.parts([], 0, workers=2) == []


def test_reasons_are_in_words() -> None:
    assert many.describe(WsssError("what", "where", "remedy")).startswith("what")
    assert "out of memory" in many.describe(OutOfMemoryError("x"))
    assert "died" in many.describe(WorkerCrashedError())
    assert many.describe(KeyError("k")) == "KeyError: 'k'"
