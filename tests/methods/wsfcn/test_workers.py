"""One and two workers give the same losses and weights, with statistics over the batch and over fixed groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.methods.two_workers import in_two_workers, trained

from wsss.data.dataset import load_dataset
from wsss.execution.stage_job import StageJob
from wsss.recipe import load_recipe
from wsss.store import open_store
from wsss_methods.wsfcn import METHOD

# Nothing random inside the network: what it draws depends on the worker.
SMALL = [
    "dataset.shapes.train=12",
    "dataset.shapes.train_aug_extra=4",
    "dataset.shapes.val=1",
    "dataset.shapes.size=64",
    "network.head_width=16",
    "network.gate_psi=0",
    "train.crop_size=49",
    "train.batch_size=8",
    "train.num_epochs=4",
    "train.pretrain_epochs=1",
    "train.fca_dropout=0",
    "train.dec_dropout1=0",
    "train.dec_dropout2=0",
]


def job_of(folder: Path, norm_group: int) -> StageJob:
    recipe = load_recipe(METHOD.recipe_type, METHOD.recipe_path("demo"), [*SMALL, f"train.norm_group={norm_group}"])
    dataset = load_dataset(recipe.dataset, folder)
    stage = METHOD.pipeline(recipe, dataset).stage("segmentation_train")
    view = dataset.view(stage.reads, stage.image_list)
    return StageJob(stage=stage, key="0" * 32, view=view, inputs={}, store=open_store(str(folder / "store")))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], Any]:
    """(norm_group, workers) -> history and weights."""
    folder = tmp_path_factory.mktemp("home")
    jobs = {group: job_of(folder, group) for group in (0, 4)}
    two = in_two_workers(jobs)
    return {
        **{(group, 1): trained(job) for group, job in jobs.items()},
        **{(group, 2): two[group] for group in jobs},
    }


@pytest.mark.parametrize("group", [0, 4])
def test_two_workers_give_the_losses_and_weights_of_one(results: dict[tuple[int, int], Any], group: int) -> None:
    one, two = results[group, 1], results[group, 2]
    assert one["history"].keys() == two["history"].keys()
    assert len(one["history"]["loss"]) == 8 and np.ptp(one["history"]["loss"]) > 0
    for series, values in one["history"].items():
        np.testing.assert_allclose(two["history"][series], values, rtol=1e-5, atol=1e-9, err_msg=series)
    for name, value in one["weights"].items():
        np.testing.assert_allclose(two["weights"][name].numpy(), value.numpy(), rtol=1e-4, atol=1e-7, err_msg=name)


def test_groups_are_another_normalization(results: dict[tuple[int, int], Any]) -> None:
    assert not np.allclose(results[0, 1]["history"]["loss"], results[4, 1]["history"]["loss"], rtol=1e-4)


def test_parameters_that_nothing_calls_stay_as_they_are(results: dict[tuple[int, int], Any]) -> None:
    """The norms inside FCA's branches are in the optimizer; without a gradient not even weight decay moves them."""
    for result in results.values():
        weights = result["weights"]
        for number in range(1, 5):
            assert (weights[f"fca.fca{number}.bn.weight"] == 1).all()
            assert (weights[f"fca.fca{number}.bn.bias"] == 0).all()
        assert (weights["fca.bn1.running_var"] == 1).all() and not (weights["fca.bn1.weight"] == 1).all()
