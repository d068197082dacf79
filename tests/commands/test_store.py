"""`wsss store ls`, `verify` and `gc`, in a folder and in a bucket; nothing is computed here."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.reporting import sweeps
from tests.store.conftest import moto, moto_environment  # noqa: F401  (fixtures)

from wsss.commands.main import main
from wsss.run_record import RunRecord
from wsss.store import CHECKPOINTS, Store, open_store

KEYS = {"train": "a" * 8, "score": "b" * 8}
LONG_AGO = time.time() - 1e6


@dataclass(frozen=True)
class Place:
    """A home with one run, one sweep, and a store that holds what they need and what nobody needs."""

    home: Path
    store: Store

    def wsss(self, *words: str) -> int:
        return main(["store", *words, "--home", str(self.home), "--store", self.store.url])

    def names(self) -> set[str]:
        return {f"{ref.stage}/{ref.key}" for ref in self.store.list(include_unfinished=True)}


def publish(store: Store, stage: str, key: str, **provenance: object) -> None:
    writer = store.writer(stage, key)
    writer.add_file("numbers.json", b"{}")
    writer.publish(provenance)


def age(home: Path) -> None:
    """All files are old."""
    for path in home.rglob("*"):
        os.utime(path, (LONG_AGO, LONG_AGO), follow_symlinks=False)


def filled(home: Path, store: Store) -> Place:
    record = RunRecord(
        run_id="r1", method="m", recipe_name="demo", recipe={}, seed=0, dataset="d", store_url=store.url, keys=KEYS,
        protocol={}, provenance={},
    )  # fmt: skip
    record.save(home / "runs" / "r1")
    folder = home / "sweeps" / "s1"
    folder.mkdir(parents=True)
    sweep = sweeps.example(folder)
    sweep.save(folder)
    publish(store, "masks", "f" * 8, inputs={})
    publish(store, "train", KEYS["train"], run_id="r1", inputs={"masks": f"masks/{'f' * 8}"})
    publish(store, "score", KEYS["score"], run_id="r1", inputs={"network": f"train/{KEYS['train']}"})
    publish(store, "cam", f"{3:032x}", run_id="elsewhere")  # of trial 3
    publish(store, "confirmed", "c" * 8, run_id=sweep.sweep_id)  # under another seed than the trials have
    publish(store, "taken", "d" * 8, imported=True)
    publish(store, "score", "0" * 8, run_id="r0")  # of a run whose folder was removed
    store.writer("train", "1" * 8).add_file("half.json", b"{}")  # and one that never ended
    return Place(home, store)


NEEDED = {"masks/ffffffff", "train/aaaaaaaa", "score/bbbbbbbb", f"cam/{3:032x}", "confirmed/cccccccc", "taken/dddddddd"}
NOT_NEEDED = {"score/00000000", "train/11111111"}


@pytest.fixture
def local(home: Path) -> Place:
    return filled(home, open_store(str(home / "store")))


@pytest.fixture
def remote(home: Path, moto: str) -> Place:  # noqa: F811
    return filled(home, open_store(f"{moto}/{home.parent.name}", home / "cache"))


def test_ls_says_who_needs_what(local: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert local.wsss("ls") == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert "unfinished" in lines["train"] or "run r1" in lines["train"]
    assert "score/bbbbbbbb" not in lines["score"]
    assert "train/aaaaaaaa" in lines["masks"] and "imported" in lines["taken"] and "sweep" in lines["cam"]
    assert "8 artifacts" in lines["8"]


def test_gc_shows_first_and_removes_only_what_nobody_needs(local: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert local.wsss("gc") == 0
    assert "would remove 0 things" in capsys.readouterr().out, "all of it is young"
    age(local.home)
    assert local.wsss("gc") == 0
    said = capsys.readouterr().out
    assert all(f"{name}: no run and no sweep needs it" in said for name in NOT_NEEDED)
    assert "would remove 2 things" in said and local.names() == NEEDED | NOT_NEEDED
    assert local.wsss("gc", "--remove") == 0
    assert local.names() == NEEDED
    shutil.rmtree(local.home / "runs")
    age(local.home)
    assert local.wsss("gc", "--remove") == 0
    assert local.names() == NEEDED - {"train/aaaaaaaa", "score/bbbbbbbb", "masks/ffffffff"}


def test_gc_removes_what_dead_processes_left(local: Place, capsys: pytest.CaptureFixture[str]) -> None:
    folder = local.home / "store"
    place = folder / "score" / KEYS["score"]
    assert local.store.find("score", KEYS["score"]) is not None
    (folder / "score" / ".removed-x" / "y").mkdir(parents=True)
    (folder / "score" / ".removed-x" / "y" / "z").write_bytes(b"x")
    (folder / ".probe-1").write_bytes(b"x")
    (place / "numbers.json").write_bytes(b"[]")
    local.store.set_aside("score", KEYS["score"], print)
    publish(local.store, "score", KEYS["score"], run_id="r1")
    local.store.delete("masks", "f" * 8)
    (place / ".writing-x-1-2").write_bytes(b"x" * 1000)
    for name in (f"train-{KEYS['train']}", "train-77777777", "score-abc"):
        (local.home / CHECKPOINTS / name / "checkpoint_1").mkdir(parents=True)
        (local.home / CHECKPOINTS / name / "checkpoint_1" / "state.pt").write_bytes(b"x")
    age(local.home)
    capsys.readouterr()
    before = {path for path in folder.rglob("*") if path.is_file()}
    assert local.wsss("gc") == 0
    said = capsys.readouterr().out
    for text in ("writer that died", "removal that was stopped", "check that was stopped", "set aside as damaged"):
        assert text in said
    assert said.count("of a training that is over") == 3
    assert {path for path in folder.rglob("*") if path.is_file()} == before
    assert local.wsss("gc", "--remove") == 0
    hidden = [path for path in local.store.backend.entries() if "/." in f"/{path}" and ".locks/" not in path]
    hidden = [path for path in hidden if not path.startswith(".verified/")]
    assert hidden == [] and list((local.home / CHECKPOINTS).iterdir()) == []
    assert local.store.find("score", KEYS["score"]) is not None


def test_gc_spares_checkpoints_of_a_training_under_way(local: Place) -> None:
    local.store.delete("train", KEYS["train"])
    state = local.home / CHECKPOINTS / f"train-{KEYS['train']}" / "state.pt"
    state.parent.mkdir(parents=True)
    state.write_bytes(b"x")
    age(local.home)
    assert local.wsss("gc", "--remove") == 0
    assert state.is_file(), "run r1 has not finished it"


def test_gc_does_not_judge_artifacts_that_other_homes_may_need(
    remote: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (f"{CHECKPOINTS}/train-{KEYS['train']}/state.pt", ".damaged/score/x/1/f.json", ".leases/score/x.json"):
        remote.store.backend.write(name, b"x")
    assert "checkpoints" not in {ref.stage for ref in remote.store.list(include_unfinished=True)}
    assert remote.wsss("gc", "--remove", "--older-than", "0") == 0
    said = capsys.readouterr().out
    assert "Artifacts stay" in said and "removed 3 things" in said
    assert remote.names() == NEEDED | NOT_NEEDED
    assert not [path for path in remote.store.backend.entries() if path.startswith((".", CHECKPOINTS))]
    assert remote.wsss("gc", "--homes", str(tmp_path / "absent")) == 2
    assert remote.wsss("gc", "--remove", "--older-than", "0", "--homes", str(remote.home)) == 0
    assert remote.names() == NEEDED


def test_gc_refuses_where_nobody_knows_what_is_needed(local: Place, capsys: pytest.CaptureFixture[str]) -> None:
    age(local.home)
    (local.home / "runs" / "r1" / "run.json").write_text("{")
    assert local.wsss("gc", "--remove") == 2
    assert "run.json" in capsys.readouterr().err and local.names() == NEEDED | NOT_NEEDED
    assert local.wsss("ls") == 0
    assert "what it needs is not shown" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["local", "remote"])
def test_verify_names_what_is_damaged(
    place: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    found: Place = request.getfixturevalue(place)
    assert found.wsss("verify") == 0
    assert "7 artifacts compared: 0 damaged, 0 superfluous files" in capsys.readouterr().out
    backend = found.store.backend
    backend.write(f"train/{KEYS['train']}/numbers.json", b"[]")
    backend.write(f"score/{KEYS['score']}/manifest.json", b"")
    backend.write(f"masks/{'f' * 8}/stray.bin", b"x")
    assert found.wsss("verify") == 1
    said = capsys.readouterr().out
    assert "damaged: train/aaaaaaaa: numbers.json (other content)" in said
    assert "damaged: score/bbbbbbbb: manifest.json cannot be read" in said
    assert "superfluous: masks/ffffffff: stray.bin" in said
    assert found.wsss("gc", "--older-than", "0") == 0
    assert "score/bbbbbbbb" not in capsys.readouterr().out, "the run needs it"
