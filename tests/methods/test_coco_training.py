"""A training on COCO under the firewall, in this process: labels are made before, and nothing of masks is in reach."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.data.coco_set import write_coco
from tests.execution import toy_method
from tests.methods.in_process import run_pipeline

from wsss.data.dataset import Dataset, load_dataset
from wsss.data.errors import LabelFirewallError
from wsss.pipeline import Pipeline, StageContext, TrainStage
from wsss.recipe import load_recipe
from wsss.store import open_store


class ReadsFirst:
    """Builds the training after reading a file."""

    def __init__(self, path: Path, build: Callable[[StageContext], Any]) -> None:
        self.path, self.build = path, build

    def __call__(self, context: StageContext) -> Any:
        self.path.read_bytes()
        return self.build(context)


@pytest.fixture
def coco(tmp_path: Path) -> Dataset:
    root = write_coco(tmp_path / "coco")
    recipe = load_recipe(toy_method.ToyRecipe, None, ["dataset.name=coco2014", f"dataset.root={root}"])
    dataset = load_dataset(recipe.dataset, tmp_path / "home")
    dataset.prepare_masks("train")
    return dataset


def build_pipeline(dataset: Dataset, read: Path | None = None) -> Pipeline:
    recipe = load_recipe(toy_method.ToyRecipe, None, ["dataset.name=coco2014", "train.batch_size=2"])
    pipeline = toy_method.pipeline(recipe, dataset)
    training, *others = pipeline.stages
    assert isinstance(training, TrainStage)
    if read is not None:
        training = replace(training, build=ReadsFirst(read, training.build))
    return replace(pipeline, stages=(training, *others))


def test_a_training_has_labels_and_no_masks(coco: Dataset, tmp_path: Path) -> None:
    run = run_pipeline(build_pipeline(coco), coco, open_store(str(tmp_path / "store")))
    assert run.executed == ["toy_train", "toy_score", "toy_mean"]
    made = coco.mask_path(coco.names("train")[0], "train")
    assert made.is_file()
    for number, path in enumerate((made, coco.root / "annotations" / "instances_train2014.json")):
        with pytest.raises(LabelFirewallError):
            run_pipeline(build_pipeline(coco, path), coco, open_store(str(tmp_path / f"store{number}")))
