"""Map and reduce jobs without Ray: shared work, failures that stay with their job, numeric modes, repeated tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ray.exceptions import OutOfMemoryError, RaySystemError, WorkerCrashedError

from wsss.data.view import DataView
from wsss.errors import WsssError
from wsss.execution import map_stage, tasks
from wsss.execution.cluster import ClusterError
from wsss.execution.numeric_mode import numeric_mode
from wsss.execution.stage_job import StageJob
from wsss.pipeline import Arrays, MapStage, ReduceStage, Reduction, StageContext
from wsss.store import open_store

NAMES = ("a", "b", "c")


@dataclass(frozen=True)
class Config:
    factor: float


@pytest.fixture(autouse=True)
def fresh_worker() -> None:
    map_stage._built.clear()


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
    seconds = map_stage.shard_of_jobs(together, 0, NAMES, use_gpu=False)
    assert len(set(seconds)) == 1, "each is told its share"
    map_stage.shard_of_jobs(alone, 0, NAMES, use_gpu=False)
    assert [values(job) for job in together] == [values(job) for job in alone]


@pytest.mark.parametrize("shared", [True, False])
def test_a_failing_setting_fails_alone(tmp_path: Path, shared: bool) -> None:
    found = jobs(tmp_path, [1, -1, 3], shared)
    told = map_stage.shard_of_jobs(found, 0, NAMES, use_gpu=False)
    assert isinstance(told[1], ValueError) and str(told[1]) == "a negative factor", "raised as it was"
    assert "build(" in told[1].__notes__[0], "with the worker's traceback"
    assert values(found[0])[0] == ord("a") and values(found[2])[0] == 3 * ord("a")


def test_jobs_are_cut_so_that_every_worker_has_work() -> None:
    assert tasks.parts(list(range(8)), 8, workers=2) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert tasks.parts(list(range(8)), 8 * 32, workers=2) == [list(range(8))], "shards are enough"
    assert tasks.parts([0, 1], 2, workers=16) == [[0], [1]]
    assert tasks.parts([], 0, workers=2) == []


def test_reasons_are_in_words() -> None:
    assert tasks.describe(WsssError("what", "where", "remedy")).startswith("what")
    assert tasks.describe(KeyError("k")) == "KeyError: 'k'"


class Unpicklable(Exception):
    def __init__(self, one: int, other: int) -> None:
        super().__init__("the reason")


def test_an_error_that_cannot_travel_is_told_in_words() -> None:
    assert str(tasks.portable(Unpicklable(1, 2))) == "Unpicklable: the reason"


class FakeRay:
    """Stands for Ray: what is started ends at once, as `ends` says of its piece and attempt."""

    def __init__(self, ends: Callable[[tuple[int, ...], int, int], Any]) -> None:
        self.ends, self.started, self.attempts = ends, [], {}
        self.options: list[dict[str, Any]] = []

    def start(self, items: Sequence[int], shard: int, options: dict[str, Any]) -> Any:
        piece = (*items, shard)
        self.attempts[piece] = self.attempts.get(piece, 0) + 1
        self.started.append((tuple(items), shard))
        self.options.append(options)
        return (tuple(items), shard, self.attempts[piece])

    def wait(self, references: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        return references[:1], references[1:]

    def get(self, reference: Any) -> Any:
        answer = self.ends(*reference)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def cancel(self, reference: Any) -> None: ...


class AllThere:
    """Stands for the watch of nodes that never end and hold as many tasks as there are workers."""

    def spare(self, tasks: int) -> int:
        return 1


def run_faked(
    monkeypatch: pytest.MonkeyPatch, pieces: Sequence[tasks.Piece], ends: Callable[..., Any], **options: Any
) -> tuple[list[Any], FakeRay]:
    fake = FakeRay(ends)
    monkeypatch.setattr(tasks, "ray", fake)
    options = {"watch": AllThere(), "tell": lambda text: None, **options}
    return list(tasks.run_tasks(pieces, fake.start, 1, **options)), fake


def half_imported() -> Exception:
    return RaySystemError("ImportError: cannot import name 'x' from partially initialized module 'y'")


def test_a_task_that_could_not_be_imported_starts_in_a_fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def ends(items: tuple[int, ...], shard: int, attempt: int) -> Any:
        return half_imported() if (shard, attempt) == (1, 1) else [1.0] * len(items)

    told, fake = run_faked(monkeypatch, [([0, 1], 0), ([0, 1], 1)], ends, tell=said.append)
    assert sorted(told) == [(([0, 1], 0), [1.0, 1.0]), (([0, 1], 1), [1.0, 1.0])]
    assert len(fake.started) == 3 and len(said) == 1 and "partially initialized" in said[0]
    assert not any("runtime_env" in options for options in fake.options[:2])
    assert fake.options[2]["runtime_env"]["env_vars"], "another process"


def test_a_worker_that_can_never_import_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    told, fake = run_faked(monkeypatch, [([0], 0)], lambda *piece: half_imported())
    assert isinstance(told[0][1][0], RaySystemError) and len(fake.started) == 1 + tasks.RETRIES


def test_a_task_whose_worker_died_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    def ends(items: tuple[int, ...], shard: int, attempt: int) -> Any:
        return WorkerCrashedError() if 1 in items else [1.0] * len(items)

    told, _ = run_faked(monkeypatch, [([0, 1, 2], 4)], ends)
    answers = {items[0]: answer for (items, _), answer in told}
    assert answers[0] == answers[2] == [1.0]
    assert isinstance(answers[1][0], ClusterError) and "died 4 times" in str(answers[1][0])


def test_an_item_that_kills_its_workers_is_found_soon_and_left_out_of_the_other_shards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failed: set[int] = set()

    def ends(items: tuple[int, ...], shard: int, attempt: int) -> Any:
        return WorkerCrashedError() if 1 in items else [1.0] * len(items)

    fake = FakeRay(ends)
    monkeypatch.setattr(tasks, "ray", fake)
    pieces: list[tasks.Piece] = [([0, 1, 2], shard) for shard in range(6)]
    watch: Any = AllThere()
    done: list[tuple[int, int]] = []
    for (items, shard), answer in tasks.run_tasks(
        pieces, fake.start, 1, watch, lambda text: None, lambda item: item not in failed
    ):
        failed.update(item for item, told in zip(items, answer, strict=True) if isinstance(told, Exception))
        done += [(item, shard) for item, told in zip(items, answer, strict=True) if told == 1.0]
    assert failed == {1}
    assert sorted(done) == [(item, shard) for item in (0, 2) for shard in range(6)]
    assert sum(1 in items for items, _ in fake.started) <= 4, "two groups under way, and each alone"
    deaths = [
        options["max_retries"] + 1 for options, (items, _) in zip(fake.options, fake.started, strict=True) if 1 in items
    ]
    assert sum(deaths[:1] + deaths[-1:]) == tasks.RETRIES + 1, "once together and once alone, each repeated once by Ray"


def test_no_task_starts_after_a_no(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(lambda items, shard, attempt: [ValueError("x")])
    monkeypatch.setattr(tasks, "ray", fake)
    failed: list[Any] = []
    pieces: list[tasks.Piece] = [([0], shard) for shard in range(9)]
    watch: Any = AllThere()
    for told in tasks.run_tasks(pieces, fake.start, 1, watch, lambda text: None, lambda item: not failed):
        failed.append(told)
    assert len(fake.started) == len(failed) == 2, "what was under way is finished"


@pytest.mark.parametrize("spare", [0, 1])
def test_no_more_tasks_than_workers_run_at_a_time(monkeypatch: pytest.MonkeyPatch, spare: int) -> None:
    """A person lowers execution.map_workers where memory is short: one more would take what the last one needs."""
    at_once: list[int] = []
    fake = FakeRay(lambda items, shard, attempt: [1.0])
    monkeypatch.setattr(
        fake, "wait", lambda running, **_: (at_once.append(len(running)), (running[:1], running[1:]))[1]
    )
    monkeypatch.setattr(tasks, "ray", fake)
    watch: Any = SimpleNamespace(spare=lambda workers: spare)
    told = list(tasks.run_tasks([([0], shard) for shard in range(6)], fake.start, 2, watch, lambda text: None))
    assert len(told) == 6 and max(at_once) == 2 + spare


def test_memory_that_ran_out_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    told, _ = run_faked(monkeypatch, [([0], 0)], lambda *piece: OutOfMemoryError("x"))
    assert "out of memory" in str(told[0][1][0])


def modes_of(context: StageContext) -> Callable[[str], Mapping[str, np.ndarray]]:
    return lambda name: {"value": np.array([float(torch.are_deterministic_algorithms_enabled())])}


def test_parity_holds_where_images_are_mapped_and_ends_with_the_stage(tmp_path: Path) -> None:
    (job,) = jobs(tmp_path, [1], False)
    for mode, deterministic in (("parity", 1.0), ("fast", 0.0)):
        asked = replace(job, stage=replace(job.stage, build=modes_of), key=mode, mode=mode)
        map_stage.shard_of_jobs([asked], 0, NAMES, use_gpu=False)
        assert values(asked) == [deterministic] * len(NAMES)
        assert not torch.are_deterministic_algorithms_enabled()


def test_parity_holds_in_a_reduce_stage(tmp_path: Path) -> None:
    found: list[bool] = []

    def compute(context: StageContext) -> Reduction:
        found.append(torch.are_deterministic_algorithms_enabled())
        return Reduction(metrics={})

    view = DataView("toy", "train", NAMES, ("background",), frozenset())
    stage = ReduceStage(name="s", version=1, config=Config(0), compute=compute)
    for mode in ("parity", "fast"):
        map_stage.compute_reduction(StageJob(stage, mode, view, {}, open_store(str(tmp_path)), mode))
    assert found == [True, False]


def test_every_numeric_mode_is_set_and_put_back() -> None:
    def now() -> tuple[bool, str, bool, bool]:
        cudnn = torch.backends.cudnn
        precision = torch.get_float32_matmul_precision()
        return torch.are_deterministic_algorithms_enabled(), precision, cudnn.allow_tf32, cudnn.benchmark

    before = now()
    with numeric_mode("fast", training_on_gpu=True):
        assert now() == (False, "high", True, True)
        with numeric_mode("parity"):
            assert now() == (True, "highest", False, False)
        with numeric_mode("fast"):
            assert now() == (False, "highest", True, False), "images have many shapes"
        assert now() == (False, "high", True, True)
    assert now() == before
    with pytest.raises(ValueError, match="fast or parity"), numeric_mode("exact"):
        pass
