"""Records of sweeps and trials survive the way to disk and back, and broken ones are told apart."""

from dataclasses import replace
from pathlib import Path

import pytest

from wsss.search.records import (
    TRIALS_FOLDER,
    Best,
    ConfirmedTrial,
    CurvePoint,
    SearchedKey,
    StageUse,
    SweepRecord,
    SweepRecordError,
    TrialRecord,
    find_sweeps,
    load_sweep,
    load_trial,
    load_trials,
    sweep_folder,
)

TRIAL = TrialRecord(
    number=3,
    outer={"train.learning_rate": 0.1},
    inner={"score.power": 2.0, "score.kind": "sharp"},
    outer_key="abc",
    batch=1,
    status="finished",
    stopped_at=(1, 0.25),
    values={"toy/miou_train": 0.5},
    metrics={"toy/miou_train": 0.5},
    threshold=0.25,
    oracle=0.6,
    curve=(CurvePoint(0.25, 0.5, 0.5, 0.4),),
    stages=(StageUse("toy_score", "map", "k", True, 1.5),),
    run_ids=("a", "b"),
    artifacts={"toy_mean": "k"},
)
SWEEP = SweepRecord(
    sweep_id="s",
    method="toy",
    recipe_name="toy",
    recipe={"train": {"epochs": 4}},
    dataset="shapes",
    store_url="/x",
    space_name="toy",
    space=(
        SearchedKey("score.power", "float", 0.1, 3.0, True, default=1.0, stage="toy_score"),
        SearchedKey("score.kind", "categorical", choices=("a", None, 1), conditions={"score.power": [1.0]}),
    ),
    metric="toy/miou_train",
    metric_stage="toy_mean",
    select="oracle",
    objectives={"toy/miou_train": "max"},
    sampler="tpe",
    seed=0,
    trials=10,
    inner_trials=5,
    batch=4,
    concurrency=1,
    seeds=(0,),
    best=Best(3, {"score.power": 2.0}, 0.6, 0.5, 0.4, 0.4),
    confirmations=(ConfirmedTrial(3, (0, 1), (0.5, 0.6), 0.55, 0.07, 0.5, 0.6),),
    provenance={"git_commit": "f00", "git_dirty": True},
)


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    folder = sweep_folder(tmp_path, "s")
    SWEEP.save(folder)
    TRIAL.save(folder)
    replace(TRIAL, number=1, status="running").save(folder)
    assert load_sweep(folder) == SWEEP
    assert [trial.number for trial in load_trials(folder)] == [1, 3]
    assert load_trials(folder)[1] == TRIAL
    assert find_sweeps(tmp_path) == [SWEEP]
    assert SWEEP.git_commit == "f00-dirty"


def test_a_new_state_replaces_the_old_one_and_leaves_nothing_behind(tmp_path: Path) -> None:
    replace(TRIAL, status="running").save(tmp_path)
    TRIAL.save(tmp_path)
    assert load_trials(tmp_path) == [TRIAL]
    assert [path.name for path in (tmp_path / TRIALS_FOLDER).iterdir()] == ["00003.json"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"number": 1, "what": 2, "curve": []}'])
def test_what_is_no_record_is_refused_with_its_path(tmp_path: Path, content: str) -> None:
    path = tmp_path / "00001.json"
    path.write_text(content)
    with pytest.raises(SweepRecordError, match="00001"):
        load_trial(path)
    with pytest.raises(SweepRecordError, match="no such"):
        load_sweep(tmp_path / "nothing")
