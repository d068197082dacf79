"""A plan whose results do not fit on the disk is refused with numbers."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wsss.execution import space
from wsss.execution.space import SpaceError, check_space
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
