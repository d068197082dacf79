"""CRF scores to walked labels in this process, on generated shapes, with a blob in the middle of each object as CAM."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt
from tests.methods.in_process import InProcessRun, run_pipeline
from tests.methods.two_workers import in_two_workers, trained

from wsss.data.augment.rescaled_crop import CanvasCrop
from wsss.data.config import DatasetConfig
from wsss.data.dataset import Dataset, load_dataset
from wsss.data.shapes import ShapesConfig
from wsss.execution.stage_job import StageJob
from wsss.execution.train_loop import LoopEvents, LoopSettings, run_training
from wsss.ops.affinity_psa import power_background_scores
from wsss.ops.crf import refine_probabilities
from wsss.pipeline import MapStage, Pipeline, StageContext, TrainStage, stage_keys
from wsss.stages.affinity_psa import (
    FeatureAffinitySettings,
    FeatureWalkSettings,
    affinity_crf_stage,
    crf_label,
    crf_score_stages,
    feature_affinity_stages,
    power_crf_stage,
    training_pair,
    walked_label_stages,
)
from wsss.stages.cam import read_high_res
from wsss.store import open_store

SMALL = FeatureAffinitySettings(
    width=0.0625, radius=3, crop_size=64, batch_size=4, num_epochs=6, learning_rate=0.02, momentum=0.9, crf_iterations=2
)
# From scratch, without anything random inside the network.
SCRATCH = replace(SMALL, backbone="mobilenet_v2", normalization="batch", width=0.125, num_epochs=2, learning_rate=0.002)


@dataclass(frozen=True)
class NoConfig:
    """Nothing to set."""


def build_blob(context: StageContext) -> Any:
    """Stands for a CAM: highest in the middle of an object, present classes alone."""

    def cam(name: str) -> dict[str, np.ndarray]:
        mask, keys = context.data.mask(name), np.array(context.data.present_classes(name))
        depth = np.stack([np.asarray(distance_transform_edt(mask == key)) for key in keys])
        return {"high_res": (depth / depth.max(axis=(1, 2), keepdims=True).clip(1)).astype(np.float16), "keys": keys}

    return cam


def cam_stage(image_list: str) -> MapStage:
    return MapStage(
        name="cam" if image_list == "train" else f"cam_{image_list}",
        version=1,
        config=NoConfig(),
        reads=frozenset({"masks", "image_labels"}),
        image_list=image_list,
        build=build_blob,
    )


# The grid has 9 by 9 cells: two steps reach far enough, four blur what the blob knew.
WALK = FeatureWalkSettings(alpha=16, exp_times=1)


class Case:
    def __init__(self, home: Path) -> None:
        shapes = ShapesConfig(train=12, train_aug_extra=0, val=2, size=72, classes=2)
        self.dataset: Dataset = load_dataset(DatasetConfig(name="shapes", shapes=shapes), home)
        self.pipeline = Pipeline(
            (
                cam_stage("train"),
                cam_stage("val"),
                *feature_affinity_stages(SMALL, WALK, cam_stage="cam", seed=0, image_list="train"),
                *crf_score_stages("train"),
                power_crf_stage("boundary_crf", SMALL.crf, {"crf": 4.0}, cam_stage="cam_val", image_list="val"),
                affinity_crf_stage(SMALL, cam_stage="cam_val", image_list="val", suffix="_val"),
                *crf_score_stages("val", "_val"),
                *walked_label_stages(
                    SMALL,
                    replace(WALK, crf=True),
                    cam_stage="cam_val",
                    image_list="val",
                    split="val",
                    suffix="_val",
                ),
            )
        )
        self.store = open_store(str(home / "store"))
        self.run: InProcessRun = run_pipeline(self.pipeline, self.dataset, self.store)

    def job(self, settings: FeatureAffinitySettings) -> StageJob:
        """The training with other settings."""
        stage = replace(self.pipeline.stage("affinity_train"), config=settings)
        view = self.dataset.view(stage.reads, stage.image_list)
        return StageJob(
            stage=stage, key="unused", view=view, inputs={"crf": self.run.artifacts["crf"]}, store=self.store
        )


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    torch.set_num_threads(1)
    return Case(tmp_path_factory.mktemp("home"))


def test_losses_fall(case: Case) -> None:
    losses = case.run.histories["affinity_train"]["loss"]
    assert len(losses) == 18 and np.mean(losses[-6:]) < np.mean(losses[:3])


def test_scores_of_both_powers_are_those_of_a_crf_of_their_own(case: Case) -> None:
    name = case.dataset.lists["train"][0]
    image = case.dataset.view({"images"}, "train").image(name)
    cam, both = (case.run.artifacts[stage].arrays(name) for stage in ("cam", "crf"))
    assert np.array_equal(both["keys"], cam["keys"])
    for array, alpha in (("crf_low", SMALL.crf_alpha_low), ("crf_high", SMALL.crf_alpha_high)):
        alone = refine_probabilities(image, power_background_scores(read_high_res(cam), alpha), SMALL.crf)
        assert np.array_equal(both[array], alone.astype(np.float16))
    assert both["crf_low"][0].mean() > both["crf_high"][0].mean()
    name = case.dataset.lists["val"][0]
    one, both = (case.run.artifacts[stage].arrays(name) for stage in ("boundary_crf", "crf_val"))
    assert set(one) == {"crf", "keys"} and np.array_equal(one["crf"], both["crf_low"])


def test_labels_of_the_crf_are_scored_for_each_power(case: Case) -> None:
    """With 72 by 72 pixels and two classes the blob's CRF is far from all background."""
    metrics = case.run.metrics
    for array in ("crf_low", "crf_high"):
        for split in ("train", "val"):
            assert metrics[f"{array}/miou_{split}"] > metrics[f"{array}/miou_{split}_all_background"] + 0.2
    assert metrics["crf_low/miou_train"] != metrics["crf_high/miou_train"]
    arrays = {"keys": np.array([4, 9]), "crf": np.eye(3, dtype=np.float16)[:, None]}
    assert crf_label(arrays, "crf").tolist() == [[0, 4, 9]]


def test_walked_labels_hold_present_classes_and_beat_all_background(case: Case) -> None:
    view = case.dataset.view({"masks", "image_labels", "images"}, None)
    for split, suffix in (("train", ""), ("val", "_val")):
        for name in case.dataset.lists[split]:
            label = case.run.artifacts[f"pseudo_label{suffix}"].arrays(name)["label"]
            assert set(np.unique(label)) <= {0, *view.present_classes(name)} and label.shape == view.mask(name).shape
    metrics = case.run.metrics
    assert metrics["pseudo_label/miou_train"] > metrics["pseudo_label/miou_train_all_background"] + 0.2
    assert "pseudo_label/miou_val" in metrics


def test_settings_of_the_crf_and_of_the_walk_change_their_own_stages(case: Case) -> None:
    def changed(walk: FeatureWalkSettings = WALK, **settings: Any) -> set[str]:
        affinity = replace(SMALL, **settings)
        stages = feature_affinity_stages(affinity, walk, cam_stage="cam", seed=0, image_list="train")
        found = stage_keys(Pipeline((cam_stage("train"), *stages)), case.dataset, str)
        known = stage_keys(case.pipeline, case.dataset, str)
        return {name for name in found if found[name] != known[name]}

    after = {"pseudo_label", "pseudo_label_score", "pseudo_label_evaluation"}
    training = {"affinity_train", "affinity", "random_walk", *after}
    assert changed() == set()
    assert changed(crf_bilateral_srgb=5.0) == changed(crf_alpha_low=2.0) == {"crf", *training}
    assert changed(normalization="batch") == changed(learning_rate=0.1) == training
    assert changed(replace(WALK, beta=2)) == {"random_walk", *after}
    assert changed(replace(WALK, crf=True)) == after


def test_one_and_two_workers_agree_from_scratch(case: Case) -> None:
    job = case.job(SCRATCH)
    together, alone = in_two_workers({0: job})[0], trained(job)
    assert len(alone["history"]["loss"]) == 6 and np.ptp(alone["history"]["loss"]) > 0
    for name, values in alone["history"].items():
        np.testing.assert_allclose(together["history"][name], values, rtol=1e-9, err_msg=name)
    for name, values in alone["weights"].items():
        torch.testing.assert_close(together["weights"][name], values, rtol=1e-7, atol=1e-10, msg=name)


def test_an_interrupted_training_continues_to_the_same_weights(case: Case) -> None:
    """With the dropout of the published network, whose masks depend on the step alone."""
    states: list[Any] = []

    def train(state: Any, epochs: int | None) -> dict[str, torch.Tensor]:
        job = case.job(replace(SMALL, num_epochs=2))
        assert isinstance(job.stage, TrainStage)
        torch.manual_seed(job.stage.seed)
        task = job.stage.build(job.context("cpu"))
        events = LoopEvents(
            save=lambda state, step: states.append(copy.deepcopy(state)),
            step=lambda *told: None,
            candidate=lambda *told: None,
        )
        run_training(task, job.stage.seed, LoopSettings(checkpoint_steps=2), events, state, epochs)
        return task.trained_weights()["affinity_network"]

    whole = train(None, None)
    middle = states[1]
    assert [state["step"] for state in states] == [2, 3, 4] and middle["step"] == 3
    continued = train(middle, None)
    assert all(torch.equal(continued[name], value) for name, value in whole.items())
    assert not torch.equal(middle["module"]["network.f9.weight"], whole["f9.weight"])


def test_a_crop_and_its_cells_are_mirrored_and_padded_together() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (24, 40, 3), dtype=np.uint8)
    low = np.zeros((3, 24, 40), dtype=np.float32)
    low[0], low[1, :8, :8], low[2, 16:, 32:] = 0.1, 0.9, 0.9
    box = CanvasCrop(32, 40, 0, 0)
    pixels, label = training_pair(image, low, low, box, mirrored=False)
    mirrored = training_pair(image, low, low, box, mirrored=True)
    assert label.tolist() == [[1, 0, 0, 0, 0], [0] * 5, [0, 0, 0, 0, 2], [255] * 5]
    assert np.array_equal(mirrored[0], pixels[..., ::-1]) and np.array_equal(mirrored[1], label[:, ::-1])
    # Padded with black before the normalization, not with the mean color.
    assert pixels[:, 30, 0] == pytest.approx([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225], rel=1e-6)
