"""SBNet's CAM training: what is trained at which rate, what stays, and what a sample is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.methods.in_process import InProcessRun, run_pipeline
from tests.methods.sbnet.small_training import SMALL, dataset, pipeline

from wsss.data.augment.rescaled_crop import CanvasCrop
from wsss.data.dataset import Dataset
from wsss.pipeline import StageContext
from wsss.recipe import key_values
from wsss.store import open_store
from wsss_methods.sbnet.networks import build_cam_network
from wsss_methods.sbnet.recipe import CamSettings, active_cam_settings, plain_settings, seam_settings
from wsss_methods.sbnet.training import boundary_crop, build_cam_training, parameter_groups

# As published: norms and first layers are fixed, so the running mean of a first layer cannot move either.
FROZEN = replace(SMALL, normalization="frozen", num_epochs=1)


class FixedBoundaries:
    """An artifact with one map for every picture."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.found = arrays

    def arrays(self, name: str) -> Mapping[str, np.ndarray]:
        return self.found


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    torch.set_num_threads(1)
    return dataset(tmp_path_factory.mktemp("home"))


def trained(shapes: Dataset, home: Path, settings: CamSettings) -> InProcessRun:
    return run_pipeline(pipeline(settings), shapes, open_store(str(home / "store")))


def test_frozen_parts_do_not_move_and_the_rest_does(shapes: Dataset, tmp_path: Path) -> None:
    run = trained(shapes, tmp_path, FROZEN)
    end = torch.load(run.artifacts["cam_train"].path("cam_network.pt"), weights_only=True)
    torch.manual_seed(0)
    start = build_cam_network(FROZEN, shapes.num_classes).published_state_dict()
    moved = {name for name in start if not torch.equal(start[name], end[name])}
    frozen = ("conv1a.", "b2.", "b2_1.", "b2_2.")
    assert moved == {name for name in start if ".bn_" not in name and not name.startswith(("bn7", *frozen))}


def test_every_loss_is_reported_and_the_total_falls(shapes: Dataset, tmp_path: Path) -> None:
    history = trained(shapes, tmp_path, replace(SMALL, num_epochs=6)).histories["cam_train"]
    names = {name.removeprefix("loss/") for name in history if name.startswith("loss/")}
    parts = {"classification", "min_pooling", "equivariance", "cross_equivariance", "boundary", "smoothness"}
    assert names == parts
    assert np.mean(history["loss"][-4:]) < np.mean(history["loss"][:4])
    assert history["learning_rate/cam"][0] == SMALL.learning_rate > history["learning_rate/cam"][-1] > 0


def test_the_baselines_need_no_boundaries(shapes: Dataset, tmp_path: Path) -> None:
    for settings, losses in (
        (seam_settings(SMALL, 1), {"classification", "min_pooling", "equivariance", "cross_equivariance"}),
        (plain_settings(SMALL, 1), {"classification"}),
    ):
        history = trained(shapes, tmp_path, settings).histories["cam_train"]
        assert {name.removeprefix("loss/") for name in history if name.startswith("loss/")} == losses


@pytest.mark.parametrize("backbone", ["resnet38", "mobilenet_v2"])
def test_groups_hold_everything_that_is_trained_at_the_published_rates(backbone: str) -> None:
    settings = replace(CamSettings(), backbone=backbone, width=0.125, edge_width=0.25, edge_lr_mult=3.0)
    network = build_cam_network(settings, 5)
    groups = {group["name"]: group for group in parameter_groups(network, settings)}
    rates = {"backbone": 0.01, "edge_weights": 0.03, "edge_biases": 0.06, "new": 0.1}
    assert {name: pytest.approx(group["lr"]) for name, group in groups.items()} == rates
    assert [group["weight_decay"] for group in groups.values()] == [5e-4, 5e-4, 0.0, 5e-4]
    held = [id(parameter) for group in groups.values() for parameter in group["params"]]
    assert sorted(held) == sorted(id(p) for p in network.parameters() if p.requires_grad)
    every = {group["name"] for group in parameter_groups(build_cam_network(SMALL, 5), SMALL)}
    assert every == {*rates, "norms"}


def test_settings_of_a_loss_that_is_off_enter_no_key() -> None:
    other = replace(
        SMALL,
        smoothness_alpha=3.0,
        canny_low=20,
        edge_width=0.5,
        ecr_topk_ratio=0.3,
        rvmin_ratio=0.5,
        siamese_scale=0.4,
    )
    assert key_values(plain_settings(other, 5)) == key_values(plain_settings(SMALL, 5))
    assert seam_settings(other, 5) == replace(
        seam_settings(SMALL, 5), siamese_scale=0.4, rvmin_ratio=0.5, ecr_topk_ratio=0.3
    )
    assert active_cam_settings(other) == other
    assert not plain_settings(SMALL, 5).siamese and not seam_settings(SMALL, 5).boundaries
    without_edges = {"canny_input": "none", "canny_low": 20}
    assert active_cam_settings(replace(SMALL, **without_edges)) == replace(SMALL, canny_input="none")


def test_a_boundary_map_follows_its_image() -> None:
    columns = np.zeros((3, 20, 30), dtype=np.uint8)
    columns[0, :, :10], columns[1, :, 20:], columns[2, :10] = 255, 255, 255
    crop = CanvasCrop(32, 32, 4, -5)
    arrays = {"boundary": columns, "keys": np.array([2, 4])}
    found = boundary_crop(arrays, 6, (20, 30), False, crop)
    assert found.shape == (6, 32, 32) and found.dtype == np.float32
    for channel, row in ((0, 0), (2, 1), (4, 2)):
        np.testing.assert_array_equal(found[channel, 4:24, :25], columns[row, :, 5:] / 255)
    assert not found[[1, 3, 5]].any() and not found[:, :4].any() and not found[:, :, 25:].any()
    mirrored = boundary_crop(arrays, 6, (20, 30), True, crop)
    np.testing.assert_array_equal(mirrored[2, 4:24, :25], columns[1, :, ::-1][:, 5:] / 255)


def test_a_sample_is_the_published_crop(shapes: Dataset) -> None:
    settings = replace(SMALL, crop_size=96, resize_long_min=80, resize_long_max=80, color_jitter=0.0)
    name = shapes.lists["train"][0]
    view = shapes.view({"images", "image_labels"}, "train")
    keys = np.array(view.present_classes(name))
    full = np.full((len(keys) + 1, *view.image_size(name)), 255, dtype=np.uint8)
    inputs: Any = {"boundary": FixedBoundaries({"boundary": full, "keys": keys})}
    task = build_cam_training(StageContext("cam_train", settings, view, inputs, {}))
    for seed in range(4):
        sample = task.samples.sample(0, np.random.default_rng(seed))
        assert sample["image"].shape == (3, 96, 96) and sample["boundary"].shape == (shapes.num_classes, 96, 96)
        inside = sample["boundary"][0] > 0.5
        assert max(inside.any(0).sum(), inside.any(1).sum()) == 80
        # Padding is the mean color in the image and no boundary.
        assert (sample["image"][:, ~inside] == 0).all() and (sample["image"][:, inside] != 0).any(dim=0).all()
        held = sample["boundary"].flatten(1).any(dim=1)
        assert held.tolist() == [True, *(sample["label"] > 0).tolist()]
