"""A plan whose results do not fit on the disk is refused with numbers."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from wsss.data.view import DataView
from wsss.execution import map_stage, space
from wsss.execution.space import SpaceError, check_space
from wsss.execution.stage_job import StageJob
from wsss.pipeline import MapStage
from wsss.store import open_store


def plan(*names: str) -> Any:
    return SimpleNamespace(needed=[SimpleNamespace(stage=SimpleNamespace(name=name)) for name in names])


def free(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(space.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**12, 0, size))


def test_what_earlier_artifacts_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path / "store"))
    listed = [SimpleNamespace(stage="cam", size=60_000_000), SimpleNamespace(stage="cam", size=400_000_000)]
    monkeypatch.setattr(type(store), "list", lambda self: iter(listed))
    free(monkeypatch, 300_000_000)
    with pytest.raises(SpaceError, match=r"about 400\.0 MB \(cam 400\.0 MB, never_ran 0 B\), 300\.0 MB are free"):
        check_space(plan("cam", "never_ran"), store, tmp_path)
    check_space(plan("never_ran"), store, tmp_path)
    check_space(plan(), store, tmp_path)
    free(monkeypatch, 400_000_000)
    check_space(plan("cam"), store, tmp_path)


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 1_000_000)
    with pytest.raises(SpaceError, match=r"1\.0 MB are free on the disk of the store; a run needs 50\.0 MB"):
        check_space(plan("cam"), open_store(str(tmp_path / "no" / "store")), tmp_path)
    with pytest.raises(SpaceError, match="disk of the home"):
        check_space(plan("cam"), open_store("s3://bucket/prefix", tmp_path), tmp_path)


def test_a_stage_that_will_not_fit_ends_after_its_first_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_here(pieces: Any, start: Any, *_: Any, wanted: Any) -> Any:
        for numbers, index in pieces:
            if all(wanted(number) for number in numbers):
                yield (numbers, index), map_stage.shard_of_jobs([job], index, names[index : index + 1], False)

    names = tuple(f"image_{number}" for number in range(5))
    maps = np.zeros(50_000, np.uint8)
    stage = MapStage(name="cam", version=1, config=None, build=lambda context: lambda name: {"cam": maps})
    view = DataView("toy", "train", names, ("background",), frozenset())
    job = StageJob(stage, "k", view, {}, open_store(str(tmp_path)))
    monkeypatch.setattr(map_stage, "shard_size", lambda images: 1)
    monkeypatch.setattr(map_stage, "run_tasks", run_here)
    monkeypatch.setattr(map_stage.ray, "put", lambda value: value)
    monkeypatch.setattr(map_stage, "NodeWatch", lambda *_: None)
    free(monkeypatch, 1)
    with pytest.raises(SpaceError, match=r"the other 4 images of stage cam will take about .*1 B are free"):
        map_stage.run_map_stage(job, 1, False, lambda done, total: None, lambda text: None)
    assert list(job.writer().finished_images()) == [0], "what is stored stays, and nothing else was computed"
    free(monkeypatch, 10**9)
    facts = map_stage.run_map_stage(job, 1, False, lambda done, total: None, lambda text: None)
    assert facts["resumed_images"] == 1 and len(job.writer().finished_images()) == 5
