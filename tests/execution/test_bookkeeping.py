"""Which record a run writes: its own, whoever else runs at the same time and in whatever store."""

import multiprocessing
import time
from pathlib import Path
from typing import Any

import pytest
from tests.execution import toy_method

from wsss.execution import bookkeeping
from wsss.execution.bookkeeping import open_record
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
