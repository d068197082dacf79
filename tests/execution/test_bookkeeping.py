"""Which record a run writes: its own, whoever else runs at the same time and in whatever store."""

import math
import multiprocessing
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.execution import toy_method

from wsss.execution import bookkeeping
from wsss.execution.bookkeeping import curves_of, open_record, stage_params
from wsss.execution.prepare import PreparedRun, RunRequest, prepare_run
from wsss.recipe import load_recipe
from wsss.run_record import find_runs

SMALL = ["dataset.shapes.train=4", "dataset.shapes.train_aug_extra=2", "dataset.shapes.val=2", "dataset.shapes.size=48"]


def prepared(home: Path, store: str = "store", name: str = "toy", *overrides: str) -> PreparedRun:
    recipe = load_recipe(toy_method.ToyRecipe, None, [*SMALL, *overrides])
    return prepare_run(RunRequest(toy_method.METHOD, recipe, name, home, str(home / store)))


def fail(run: PreparedRun) -> str:
    record, folder = open_record(run)
    record.status = "failed"
    record.save(folder)
    return record.run_id


def test_a_failed_run_is_continued_in_its_own_store_only(tmp_path: Path) -> None:
    failed = fail(prepared(tmp_path))
    record, _ = open_record(prepared(tmp_path, "other"))
    assert record.run_id != failed and record.store_url == str(tmp_path / "other")
    record, _ = open_record(prepared(tmp_path, "store", "another_name"))
    assert record.run_id != failed and record.recipe_name == "another_name"
    record, _ = open_record(prepared(tmp_path, "store", "toy", "execution.threads=1"))
    assert record.run_id == failed and record.store_url == str(tmp_path / "store")
    assert record.recipe["execution"]["threads"] == 1, "the record says how it runs now"


def open_in_child(run: PreparedRun, begin: Any, ids: Any, end: Any) -> None:
    bookkeeping._claims.clear()  # those of the parent
    begin.wait()
    ids.put(open_record(run)[0].run_id)
    end.wait(60)


@pytest.mark.parametrize("continued", [False, True])
def test_runs_that_begin_at_once_have_records_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, continued: bool
) -> None:
    run = prepared(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda form: "20260101-000000")
    if continued:
        fail(run)
        for stack in bookkeeping._claims.values():
            stack.close()
    context = multiprocessing.get_context("fork")
    begin, end, ids = context.Event(), context.Event(), context.Queue()
    children = [context.Process(target=open_in_child, args=(run, begin, ids, end)) for _ in range(8)]
    for child in children:
        child.start()
    begin.set()
    found = sorted(ids.get(timeout=60) for _ in children)
    end.set()
    for child in children:
        child.join(60)
    stem = "20260101-000000-toy-toy-s0"
    assert found == sorted([stem, *(f"{stem}-{number}" for number in range(2, 9))])
    assert [child.exitcode for child in children] == [0] * 8
    assert len(find_runs(tmp_path)) == 8


def test_a_run_has_the_curves_of_its_trainings_thinned_with_their_last_step(tmp_path: Path) -> None:
    pipeline = prepared(tmp_path).pipeline
    history = {"loss": [float(step) for step in range(1, 1202)], "late": [math.nan, math.nan, 7.0]}
    artifact = cast(Any, SimpleNamespace(files={"history.json": None}, json=lambda file: history))
    curves = curves_of(pipeline.stage("toy_train"), artifact)
    assert set(curves) == {"toy_train/loss", "toy_train/late"} and curves["toy_train/late"] == [(3, 7.0)]
    assert len(curves["toy_train/loss"]) <= 501 and curves["toy_train/loss"][-1] == (1201, 1201.0)
    assert all(step == value for step, value in curves["toy_train/loss"])
    assert curves_of(pipeline.stage("toy_score"), artifact) == {}


def test_a_stage_is_tracked_with_its_own_settings(tmp_path: Path) -> None:
    changed = prepared(tmp_path, "store", "toy", "train.learning_rate=0.25", "seed=7").pipeline
    params = stage_params(changed.stage("toy_train"))
    assert params["settings"]["learning_rate"] == 0.25 and params["seed"] == 7
    params = stage_params(changed.stage("toy_score"))
    assert "learning_rate" not in params["settings"] and "seed" not in params
