"""All stages of SSC on Ray, at the smallest size: what a second run and a changed setting execute, and the report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.execution.toy_method import Silent
from tests.methods.ssc.test_workers import SMALL

from wsss.execution.prepare import RunRequest, prepare_run
from wsss.execution.run import RunResult, execute_run
from wsss.recipe import load_recipe
from wsss_methods.ssc import METHOD

SIZES = [
    *SMALL,
    "cam.num_epochs=2",
    "segmentation.num_epochs=2",
    "segmentation.candidate_every=1",
    "dataset.shapes.val=8",
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    from wsss.execution.cluster import connect, disconnect

    connect(cpus=2)
    yield tmp_path_factory.mktemp("home")
    disconnect()


def run(home: Path, *overrides: str) -> RunResult:
    recipe = load_recipe(METHOD.recipe_type, METHOD.recipe_path("demo"), [*SIZES, *overrides])
    return execute_run(prepare_run(RunRequest(METHOD, recipe, "demo", home, str(home / "store"))), Silent())


@pytest.fixture(scope="module")
def first(home: Path) -> RunResult:
    return run(home)


def executed(result: RunResult) -> set[str]:
    return {stage.name for stage in result.record.stages if stage.status == "executed"}


def test_every_stage_runs_and_every_number_is_there(first: RunResult) -> None:
    assert executed(first) == {stage.name for stage in first.record.stages}
    metrics = first.record.metrics
    for name in (
        "cam/miou_train",
        "cam/miou_train_oracle",
        "pseudo_label/miou_train",
        "segmentation/miou_val",
        "segmentation/miou_val_crf",
        "segmentation/miou_val_all_background",
    ):
        assert 0 < metrics[name] < 1, name
    assert metrics["cam/miou_train_oracle"] >= metrics["cam/miou_train"]
    selected = {stage.name: stage.rests_on_masks for stage in first.record.stages}
    assert selected["segmentation_evaluation"], "its epoch was chosen by masks"
    assert not selected["pseudo_label_evaluation"]


def test_a_second_run_executes_nothing(first: RunResult, home: Path) -> None:
    again = run(home)
    assert executed(again) == set()
    assert again.record.metrics == first.record.metrics


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("crf.bi_w=5.0", {"segmentation_predictions", "segmentation", "segmentation_evaluation"}),
        ("crf.iterations=3", {"segmentation", "segmentation_evaluation"}),
        ("cam_inference.cam_eval_thres=0.25", {"cam_evaluation"}),
        ("execution.threads=2", set()),
    ],
)
def test_a_change_executes_the_stages_behind_it_alone(
    first: RunResult, home: Path, override: str, expected: set[str]
) -> None:
    assert executed(run(home, override)) == expected


def test_the_plan_of_a_changed_walk(first: RunResult, home: Path) -> None:
    recipe: Any = load_recipe(METHOD.recipe_type, METHOD.recipe_path("demo"), [*SIZES, "random_walk.beta=6"])
    plan = prepare_run(RunRequest(METHOD, recipe, "demo", home, str(home / "store"))).plan
    needed = {planned.stage.name for planned in plan.needed}
    assert "random_walk" in needed and "segmentation_train" in needed
    assert not needed & {"superpixels", "cam_train", "cam", "cam_evaluation", "ir_label", "affinity_train"}
