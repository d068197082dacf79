"""CRF scores to walked labels in this process, on generated shapes, with a blob in the middle of each object as CAM."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt
from tests.methods.in_process import InProcessRun, run_pipeline

from wsss.data.augment.rescaled_crop import CanvasCrop
from wsss.data.config import DatasetConfig
from wsss.data.dataset import Dataset, load_dataset
from wsss.data.shapes import ShapesConfig
from wsss.evaluation.confusion import confusion_matrix, miou
from wsss.pipeline import MapStage, Pipeline, StageContext
from wsss.stages.affinity_psa import (
    FeatureAffinitySettings,
    FeatureWalkSettings,
    feature_affinity_stages,
    training_pair,
)
from wsss.store import open_store

SMALL = FeatureAffinitySettings(
    width=0.0625, radius=3, crop_size=64, batch_size=4, num_epochs=6, learning_rate=0.02, momentum=0.9, crf_iterations=2
)


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


class Case:
    def __init__(self, home: Path) -> None:
        shapes = ShapesConfig(train=12, train_aug_extra=0, val=1, size=72, classes=2)
        self.dataset: Dataset = load_dataset(DatasetConfig(name="shapes", shapes=shapes), home)
        cam = MapStage(
            name="cam",
            version=1,
            config=NoConfig(),
            reads=frozenset({"masks", "image_labels"}),
            image_list="train",
            build=build_blob,
        )
        # The grid has 9 by 9 cells: a few steps reach everywhere.
        walk = FeatureWalkSettings(alpha=16, exp_times=2)
        stages = feature_affinity_stages(SMALL, walk, cam_stage="cam", seed=0, image_list="train")
        self.pipeline = Pipeline((cam, *stages))
        self.run: InProcessRun = run_pipeline(self.pipeline, self.dataset, open_store(str(home / "store")))


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    torch.set_num_threads(1)
    return Case(tmp_path_factory.mktemp("home"))


def test_losses_fall(case: Case) -> None:
    losses = case.run.histories["affinity_train"]["loss"]
    assert len(losses) == 18 and np.mean(losses[-6:]) < np.mean(losses[:3])


def test_scores_of_the_two_crfs_are_probabilities_and_differ_in_their_background(case: Case) -> None:
    name = case.dataset.lists["train"][0]
    low, high = (case.run.artifacts[f"crf_{level}"].arrays(name) for level in ("low", "high"))
    size = case.dataset.view({"images"}, "train").image_size(name)
    assert low["crf"].shape == (len(low["keys"]) + 1, *size)
    np.testing.assert_allclose(low["crf"].astype(np.float64).sum(axis=0), 1, atol=2e-3)
    assert low["crf"][0].mean() > high["crf"][0].mean()


def test_walked_labels_hold_present_classes_and_beat_all_background(case: Case) -> None:
    view = case.dataset.view({"masks", "image_labels", "images"}, "train")
    total = np.zeros((view.num_classes, view.num_classes), dtype=np.int64)
    for name in view.names:
        label = case.run.artifacts["pseudo_label"].arrays(name)["label"]
        assert set(np.unique(label)) <= {0, *view.present_classes(name)} and label.shape == view.mask(name).shape
        total += confusion_matrix(view.mask(name), label, view.num_classes, view.ignore_index)
    background = np.zeros_like(total)
    background[:, 0] = total.sum(axis=1)
    assert miou(total) > miou(background) + 0.2


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
