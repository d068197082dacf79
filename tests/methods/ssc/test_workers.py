"""One and two workers give the same losses in every trained stage of SSC, with batch statistics and mixing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.gloo import run_on_gloo
from tests.methods.in_process import InProcessRun, run_pipeline

from wsss.data.dataset import Dataset, load_dataset
from wsss.execution.stage_job import StageJob
from wsss.execution.train_loop import LoopEvents, LoopSettings, run_training
from wsss.nn.norms import synchronize_batch_norm
from wsss.pipeline import Pipeline, TrainStage
from wsss.recipe import load_recipe
from wsss.store import Store, open_store
from wsss.train_task import Batch, SampleSource
from wsss_methods.ssc import METHOD

SMALL = [
    "dataset.shapes.train=16",
    "dataset.shapes.train_aug_extra=8",
    "dataset.shapes.val=2",
    "dataset.shapes.size=64",
    "cam.crop_size=64",
    "cam.resize_long_min=56",
    "cam.resize_long_max=80",
    "cam.batch_size=8",
    "cam.num_epochs=3",
    "cam.alignment_warmup_epochs=1",
    "superpixels.segments=20",
    "affinity.crop_size=64",
    "affinity.batch_size=8",
    "affinity.num_epochs=2",
    "random_walk.input_size=64",
    "segmentation.crop_size=64",
    "segmentation.batch_size=8",
    "segmentation.num_epochs=3",
    "segmentation.warmup_epochs=1",
]
TRAINED = ("cam_train", "affinity_train", "segmentation_train")


@pytest.fixture(scope="module")
def one_worker(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pipeline, Dataset, Store, InProcessRun]:
    home = tmp_path_factory.mktemp("home")
    recipe = load_recipe(METHOD.recipe_type, METHOD.recipe_path("demo"), SMALL)
    dataset = load_dataset(recipe.dataset, home)
    pipeline = METHOD.pipeline(recipe, dataset)
    store = open_store(str(home / "store"))
    return pipeline, dataset, store, run_pipeline(pipeline, dataset, store, ["segmentation_train"])


class DoubleSamples:
    """Samples whose pictures and labels are float64, so that what remains of a difference is no rounding."""

    def __init__(self, samples: SampleSource) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def sample(self, index: int, rng: np.random.Generator) -> Batch:
        batch = self.samples.sample(index, rng)
        return {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}


def train(rank: int, world_size: int, job: StageJob) -> dict[str, list[float]]:
    """History of one worker of a training stage on gloo, in float64."""
    stage = job.stage
    assert isinstance(stage, TrainStage)
    torch.manual_seed(stage.seed)
    task = stage.build(job.context("cpu", rank, world_size))
    task.module.double()
    for network in task.module.children():  # what a step augments on the way comes as float32
        network.register_forward_pre_hook(lambda _, inputs: tuple(value.double() for value in inputs))
    task.samples = DoubleSamples(task.samples)
    if world_size > 1:
        synchronize_batch_norm(task.module)
    silent = LoopEvents(save=lambda state, step: None, step=lambda *told: None, candidate=lambda epoch, weights: None)
    return run_training(task, stage.seed, LoopSettings(rank=rank, world_size=world_size), silent, None)


@pytest.mark.parametrize("name", TRAINED)
def test_two_workers_give_the_losses_of_one(
    name: str, one_worker: tuple[Pipeline, Dataset, Store, InProcessRun]
) -> None:
    pipeline, dataset, store, run = one_worker
    stage = pipeline.stage(name)
    job = StageJob(
        stage=stage,
        key="0" * 32,
        view=dataset.view(stage.reads, stage.image_list),
        inputs={role: run.artifacts[upstream] for role, upstream in stage.inputs.items()},
        store=store,
    )
    one, two = (run_on_gloo(train, workers, job)[0] for workers in (1, 2))
    assert one.keys() == two.keys()
    assert len(one["loss"]) >= 6 and np.ptp(one["loss"]) > 0
    for series in one:
        np.testing.assert_allclose(two[series], one[series], rtol=1e-5, err_msg=series)
