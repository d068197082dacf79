"""One and two workers give the same losses and weights, however the images of one class are spread over them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.methods.two_workers import in_two_workers, trained

from wsss.data.config import DatasetConfig
from wsss.data.dataset import load_dataset
from wsss.data.shapes import ShapesConfig
from wsss.execution.stage_job import StageJob
from wsss.pipeline import TrainStage
from wsss.store import open_store
from wsss_methods.i2crc.recipe import CamSettings
from wsss_methods.i2crc.training import RELATIONS, build_cam_training

DATA = DatasetConfig(name="shapes", shapes=ShapesConfig(train=11, train_aug_extra=0, val=1, size=64))
SMALL = {"width": 0.125, "head_width": 16, "input_size": 48, "saliency_size": 24, "batch_size": 4, "num_epochs": 2}
# VGG-16 without norms, and statistics over the batches of all workers.
CONFIGS = {
    "vgg16": CamSettings(**SMALL, learning_rate=0.01),
    "resnet18": CamSettings(**SMALL, backbone="resnet18", normalization="batch", learning_rate=0.01),
}


class Gradient:
    """Saliency of every image: brighter to the right and, by name, to the top or the bottom."""

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        levels = np.linspace(0, 127, 64)
        rows = levels if int(name[-1]) % 2 else levels[::-1]
        return {"saliency": (rows[:, None] + levels[None]).astype(np.uint8)}


def job_of(folder: Path, config: CamSettings) -> StageJob:
    dataset = load_dataset(DATA, folder)
    stage = TrainStage(
        name="cam_train",
        version=1,
        config=config,
        inputs={"saliency": "saliency"},
        reads=frozenset({"images", "image_labels"}),
        image_list="train",
        build=build_cam_training,
        seed=3,
    )
    inputs: Any = {"saliency": Gradient()}
    view = dataset.view(stage.reads, stage.image_list)
    return StageJob(stage=stage, key="0" * 32, view=view, inputs=inputs, store=open_store(str(folder / "store")))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Any]:
    """(backbone, workers) -> history and weights."""
    folder = tmp_path_factory.mktemp("home")
    jobs = {name: job_of(folder, config) for name, config in CONFIGS.items()}
    two = in_two_workers(jobs)
    return {**{(name, 1): trained(job) for name, job in jobs.items()}, **{(name, 2): two[name] for name in jobs}}


@pytest.mark.parametrize("backbone", list(CONFIGS))
def test_two_workers_give_the_losses_and_weights_of_one(results: dict[tuple[str, int], Any], backbone: str) -> None:
    one, two = results[backbone, 1], results[backbone, 2]
    assert one["history"].keys() == two["history"].keys() >= {f"loss/{name}" for name in RELATIONS}
    assert len(one["history"]["loss"]) == 6, "the three images that are left are a step of their own"
    for series, values in one["history"].items():
        np.testing.assert_allclose(two["history"][series], values, rtol=1e-5, atol=1e-9, err_msg=series)
    for name, value in one["weights"].items():
        np.testing.assert_allclose(two["weights"][name].numpy(), value.numpy(), rtol=1e-4, atol=1e-7, err_msg=name)


def test_every_loss_changes_from_step_to_step(results: dict[tuple[str, int], Any]) -> None:
    for name in ("classification", *RELATIONS):
        assert np.ptp(results["vgg16", 1]["history"][f"loss/{name}"]) > 0, name
