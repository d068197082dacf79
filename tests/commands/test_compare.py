"""References among the rows of a comparison: where their numbers stand, and one row for what methods share."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace

import pytest

from wsss.commands import compare
from wsss.reporting.comparison import Cost, Scored
from wsss.reporting.tables import Table
from wsss.run_record import RunRecord, StageResult
from wsss.store import open_store


def record(method: str, seed: int = 0, key: str = "k", wanted: bool = True) -> RunRecord:
    stages = [StageResult("segmentation_evaluation", "reduce", f"own-{method}", "cached", 60.0)]
    if wanted:
        stages += [StageResult(f"upper_bound{part}", "map", f"{key}{part}", "cached", 5.0) for part in ("", "_train")]
    return RunRecord(
        run_id=f"{method}-{seed}",
        method=method,
        recipe_name="mini",
        recipe={"seed": seed, "references": {"upper_bound": wanted}},
        seed=seed,
        dataset="voc2012",
        store_url="/nowhere/there",
        keys={},
        protocol={},
        provenance={},
        status="finished",
        stages=stages,
    )


@pytest.fixture(autouse=True)
def numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    def scored(of: RunRecord, home: Path) -> dict[str, Scored]:
        found = {"segmentation/miou_val_crf": Scored((0.3,)), "cam/miou_train": Scored((0.2,))}
        if of.recipe["references"]["upper_bound"]:
            found["upper_bound/miou_val_crf"] = Scored((0.5 + of.seed / 10,))
        return found

    monkeypatch.setattr(compare, "_scored", scored)
    monkeypatch.setattr(compare, "_changed", lambda record: {})


def test_the_number_of_a_reference_stands_where_that_of_the_segmentation_stands(tmp_path: Path) -> None:
    records = [record("one"), record("one", seed=1), record("two", wanted=False)]
    (row,) = compare.gather_references(records, tmp_path)
    assert row.title == "trained on masks (one mini)" and row.seeds == (0, 1) and row.cost == Cost(10.0)
    assert {name: number.values for name, number in row.numbers.items()} == {"segmentation/miou_val_crf": (0.5, 0.6)}
    first, second = compare.gather_contenders(records, tmp_path)
    assert set(first.numbers) == set(second.numbers) == {"segmentation/miou_val_crf", "cam/miou_train"}
    assert first.cost == second.cost == Cost(60.0), "references are no cost of the method"


def test_a_plain_cam_stands_beside_the_cam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = {"cam/miou_train": Scored((0.2,)), "plain_cam/miou_train": Scored((0.3,))}
    more = {"plain_cam_selection/miou_train": Scored((0.4,))}
    monkeypatch.setattr(compare, "_scored", lambda record, home: {**numbers, **more})
    own = record("one", wanted=False)
    own.stages.append(StageResult("plain_cam_train", "train", "p", "cached", 7.0))
    (row,) = compare.gather_references([own], tmp_path)
    assert (row.title, row.cost) == ("plain CAM (one mini)", Cost(7.0))
    assert set(row.numbers) == {"cam/miou_train", "cam_selection/miou_train"}
    (first,) = compare.gather_contenders([own], tmp_path)
    assert set(first.numbers) == {"cam/miou_train"} and first.cost == Cost(60.0)


def test_methods_with_the_same_artifacts_share_a_row(tmp_path: Path) -> None:
    rows = compare.gather_references([record("one"), record("two"), record("three", key="other")], tmp_path)
    assert [row.title for row in rows] == ["trained on masks (one mini, two mini)", "trained on masks (three mini)"]
    assert rows[0].runs == ("one-0",)


def test_runs_with_and_without_references_are_one_recipe(tmp_path: Path) -> None:
    (row,) = compare.gather_contenders([record("one"), record("one", seed=1, wanted=False)], tmp_path)
    assert row.seeds == (0, 1)


def test_costs_count_gpus_and_what_the_store_still_holds(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    writer = store.writer("cam_train", "k")
    writer.add_file("weights.bin", bytes(1000))
    writer.publish({})
    on_gpus = StageResult("cam_train", "train", "k", "cached", 50.0, workers=4, device="cuda")
    on_cpus = StageResult("cam", "map", "gone", "cached", 30.0, workers=8)
    first, second = record("one", wanted=False), record("one", seed=1, wanted=False)
    first.stages, second.stages = [on_gpus, on_cpus], [on_cpus]
    first.store_url = second.store_url = str(tmp_path / "store")
    (row,) = compare.gather_contenders([first, second], tmp_path)
    assert row.cost == Cost(seconds=(50 + 30 + 30) / 2, gpu_seconds=50 * 4 / 2, size=1000 / 2)


def test_the_picture_of_the_numbers_is_put_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = tmp_path / "numbers.png"
    drawn.write_bytes(b"drawn")
    table = Table("Comparison", ("recipe",), (("one mini",),))
    monkeypatch.setattr(compare, "show_comparison", lambda *given: (table, drawn))
    monkeypatch.setattr(compare, "_chosen_runs", lambda *given: [])
    options = argparse.ArgumentParser()
    compare.add_options(options)
    asked = options.parse_args(["run", "--picture", str(tmp_path / "docs" / "mini.png")])
    monkeypatch.setattr(compare, "locations", lambda arguments: SimpleNamespace(home=tmp_path))
    assert compare.run(asked) == 0
    assert (tmp_path / "docs" / "mini.png").read_bytes() == b"drawn"
