"""SBNet's CAM training on a few generated pictures, with boundaries of half pictures, at the smallest size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from wsss.data.config import DatasetConfig
from wsss.data.dataset import Dataset, load_dataset
from wsss.data.shapes import ShapesConfig
from wsss.pipeline import Arrays, MapStage, Pipeline, Reads, StageContext, TrainStage
from wsss.train_task import TrainTask
from wsss_methods.sbnet.recipe import CamSettings
from wsss_methods.sbnet.training import build_cam_training

SMALL = CamSettings(
    width=0.0625,
    edge_width=0.25,
    normalization="batch",
    crop_size=48,
    resize_long_min=40,
    resize_long_max=56,
    batch_size=4,
    num_epochs=2,
    learning_rate=0.02,
    head_lr_mult=2.0,
    momentum=0.9,
    siamese_scale=0.5,
)


@dataclass(frozen=True)
class FrameConfig:
    """Nothing to choose."""


def dataset(home: Path, count: int = 8) -> Dataset:
    shapes = ShapesConfig(train=count, train_aug_extra=1, val=1, size=64, classes=3)
    return load_dataset(DatasetConfig(name="shapes", shapes=shapes), home)


def build_boundary(context: StageContext) -> Callable[[str], Arrays]:
    """The frame of the left half of the picture, for the background and each present class."""

    def boundary(name: str) -> Arrays:
        height, width = context.data.image_size(name)
        frame = np.full((height, width), 255, dtype=np.uint8)
        frame[1:-1, 1 : width // 2] = 0
        frame[:, width // 2 + 1 :] = 0
        keys = np.flatnonzero(context.data.image_labels(name)) + 1
        return {"boundary": np.stack([frame] * (len(keys) + 1)), "keys": keys}

    return boundary


def build_without_dropout(context: StageContext) -> TrainTask:
    """The training with nothing random inside the network: what dropout draws depends on the worker."""
    task = build_cam_training(context)
    for module in task.module.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0
    return task


def pipeline(settings: CamSettings, build: Callable[[StageContext], TrainTask] = build_cam_training) -> Pipeline:
    """Boundaries and the training that reads them."""
    reads: frozenset[Reads] = frozenset({"images", "image_labels"})
    return Pipeline(
        (
            MapStage(
                name="boundary",
                version=1,
                config=FrameConfig(),
                reads=reads,
                image_list="train",
                build=build_boundary,
            ),
            TrainStage(
                name="cam_train",
                version=1,
                config=settings,
                inputs={"boundary": "boundary"} if settings.boundaries else {},
                reads=reads,
                image_list="train",
                build=build,
                seed=0,
                epochs=settings.num_epochs,
            ),
        )
    )
