"""Trainings that are looked at on the way: what is seen, and that they go on as if nobody had looked."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.execution import toy_method
from tests.execution.toy_method import METHOD, ToyRecipe

from wsss.pipeline import TrainStage
from wsss.recipe import load_recipe
from wsss.search.evaluate.batch import BatchEvaluator
from wsss.search.records import Rung, load_trials
from wsss.search.request import PreparedSweep, SweepRequest, prepare_sweep
from wsss.search.sweep import SweepObserver, run_sweep, sweep_context
from wsss.store import open_store

ROOT = Path(__file__).parents[3]
METRIC = "toy/miou_train"
RUNGS = (Rung(METRIC, "toy_train", 0.25), Rung(METRIC, "toy_train", 0.5))
SPACE = "method: toy\nkeys:\n  train.learning_rate: {float: [0.0001, 0.5], log: true}\n"


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    from wsss.execution.cluster import connect, disconnect

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(str(ROOT / folder) for folder in ("platform", "methods", "")))
        connect(cpus=2)
    yield
    disconnect()


def prepared(home: Path, *overrides: str, **options: Any) -> PreparedSweep:
    home.mkdir(parents=True, exist_ok=True)
    space = home / "toy.yaml"
    space.write_text(SPACE)
    small = ["dataset.name=shapes", "dataset.shapes.train=24", "dataset.shapes.train_aug_extra=2"]
    recipe = load_recipe(ToyRecipe, None, [*small, "dataset.shapes.size=48", *overrides])
    values: dict[str, Any] = {
        "method": METHOD,
        "recipe": recipe,
        "recipe_name": "toy",
        "home": home,
        "store_url": str(home / "store"),
        "space_path": space,
        "metric": METRIC,
        "trials": 6,
        "early_stop": True,
        **options,
    }
    return prepare_sweep(SweepRequest(**values))


def test_trainings_are_looked_at_after_a_quarter_and_a_half(tmp_path: Path) -> None:
    assert prepared(tmp_path).rungs == RUNGS
    assert "after 25 % of toy_train" in RUNGS[0].text


def test_a_preview_has_a_key_of_its_own_and_leaves_that_of_the_whole_alone(tmp_path: Path) -> None:
    plan = prepared(tmp_path)
    evaluator = BatchEvaluator(sweep_context(plan, "x", {}))
    setting = evaluator.open(0, {})
    keyed = setting.pipeline
    early = evaluator._pipelines.preview(keyed, "toy_train", 0.25)
    later = evaluator._pipelines.preview(keyed, "toy_train", 0.5)
    assert early is not None and later is not None
    for name in keyed.keys:
        assert len({keyed.keys[name], early.keys[name], later.keys[name]}) == 3, name
    stage = early.pipeline.stage("toy_train")
    assert isinstance(stage, TrainStage) and stage.preview is not None
    assert (stage.preview.epoch, stage.preview.whole_key) == (1, keyed.keys["toy_train"])
    one_epoch = evaluator.open(1, {"train.epochs": 1}).pipeline
    assert evaluator._pipelines.preview(one_epoch, "toy_train", 0.5) is None, "that is the whole training"


@pytest.mark.slow
def test_a_training_that_was_looked_at_equals_one_that_was_not(cluster: None, tmp_path: Path) -> None:
    undisturbed = toy_method.run(
        tmp_path / "plain",
        ["dataset.shapes.train=24", "dataset.shapes.train_aug_extra=2", "dataset.shapes.size=48"],
    )
    plan = prepared(tmp_path / "looked")
    told: list[str] = []
    evaluator = BatchEvaluator(sweep_context(plan, "x", {}), told.append)
    setting = evaluator.open(0, {})
    seen = [evaluator.preview(setting, rung) for rung in RUNGS]
    checkpoints = list((tmp_path / "looked" / "checkpoints").iterdir())
    assert [path.name for path in checkpoints] == [f"toy_train-{setting.pipeline.keys['toy_train']}"]
    evaluator.advance([setting], METRIC)
    (outcome,) = evaluator.outcomes([setting])
    assert outcome.error == "" and outcome.metrics == pytest.approx(undisturbed.record.metrics, abs=1e-12)
    assert [(each.epoch, each.epochs, each.value) for each in outcome.previews] == [(1, 4, seen[0]), (2, 4, seen[1])]
    assert None not in seen and len({*seen, outcome.metrics[METRIC]}) == 3, "it learned on the way"
    assert not list((tmp_path / "looked" / "checkpoints").iterdir()), "nothing is left of a training that ended"
    key = setting.pipeline.keys["toy_train"]
    histories = []
    for name in ("plain", "looked"):
        artifact = open_store(str(tmp_path / name / "store")).find("toy_train", key)
        assert artifact is not None
        histories.append(artifact.json("history.json"))
    assert histories[0] == histories[1]
    trained = artifact.provenance["facts"]
    assert trained["resumed_steps"] == trained["steps"] / 2, "the second half alone was left to train"
    names = Counter(use.name for use in outcome.stages)
    assert names["toy_train, epoch 1"] == names["toy_train, epoch 2"] == names["toy_train"] == 1
    costs = json.loads((tmp_path / "looked" / "costs.json").read_text())
    assert not any(name.startswith("toy_train") for name in costs), "parts of a training say nothing of its cost"


@pytest.mark.slow
def test_trainings_that_fall_behind_stop_on_the_way(cluster: None, tmp_path: Path) -> None:
    # At this rate the recipe is better than settings after it, whatever the rounding of a machine.
    plan = prepared(tmp_path, "train.learning_rate=0.0001", trials=8, sampler="random")
    record = run_sweep(plan, SweepObserver())
    trials = load_trials(tmp_path / "sweeps" / record.sweep_id)
    pruned = [trial for trial in trials if trial.status == "pruned"]
    assert pruned and all("of toy_train = " in trial.reason for trial in pruned)
    assert Counter(trial.status for trial in trials) == {"finished": 8 - len(pruned), "pruned": len(pruned)}
    for trial in pruned:
        assert trial.stopped_at is not None and trial.previews[-1].value == pytest.approx(trial.stopped_at[1])
        assert not any(use.name == "toy_train" for use in trial.stages), "it was not trained to its end"
    assert not list((tmp_path / "checkpoints").iterdir()), "stopped trainings leave no checkpoints"
