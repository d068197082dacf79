"""Trained stages of published configurations on random images, ready to take optimizer steps.

The stages are built by the same functions as in a run; only the data set and the upstream artifacts are
replaced by noise, and no ImageNet files are read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import default_collate

from wsss.pipeline import StageContext
from wsss.stages.affinity_irn import build_affinity_training
from wsss.train_task import Batch, TrainTask
from wsss_methods.i2crc import recipe as i2crc_recipe
from wsss_methods.i2crc import training as i2crc_training
from wsss_methods.ssc.recipe import SscRecipe
from wsss_methods.ssc.training import build_cam_training, build_segmentation_training

STAGES = {
    "cam": "CAM: ResNet-50, decoder, VGG-19",
    "affinity": "affinity: IRN ResNet-50",
    "segmentation": "co-training: two DeepLabV2 ResNet-101",
    "i2crc_cam": "classifier: VGG-16 and relation losses",
}
_SMALLEST_BATCH = {"cam": 1, "affinity": 1, "segmentation": 2, "i2crc_cam": 5}
# The setting of the side of a training image.
_SIDE = {"i2crc_cam": "input_size"}
# The relation losses take images of one class.
_CLASSES_OF_AN_IMAGE = {"i2crc_cam": 1}
_CLASSES = 21
# Past every warm-up, so that all losses are on.
_LATE_EPOCH = 10


@dataclass(frozen=True)
class NoiseData:
    """A data set of random images with random classes; has what a training stage reads."""

    height: int = 375
    width: int = 500
    count: int = 16
    classes_of_an_image: int = 2
    ignore_index: int = 255
    classes: tuple[str, ...] = tuple(f"class{i}" for i in range(_CLASSES))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"noise_{i}" for i in range(self.count))

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def image(self, name: str) -> np.ndarray:
        """uint8 (H, W, 3)."""
        return _generator(name).integers(0, 256, (self.height, self.width, 3), dtype=np.uint8)

    def image_size(self, name: str) -> tuple[int, int]:
        """(H, W)."""
        return self.height, self.width

    def image_labels(self, name: str) -> np.ndarray:
        """float32 (classes without background,)."""
        labels = np.zeros(self.num_classes - 1, dtype=np.float32)
        labels[_generator(name).choice(self.num_classes - 1, self.classes_of_an_image, replace=False)] = 1
        return labels


@dataclass(frozen=True)
class NoiseArtifact:
    """An upstream artifact: blocks of random ids, class labels, trust masks and saliency for any image."""

    data: NoiseData = field(default_factory=NoiseData)

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """ids int32, label, mask and saliency uint8; all (H, W)."""
        rng, height, width = _generator(name), self.data.height, self.data.width

        def blocks(values: np.ndarray) -> np.ndarray:
            return values.repeat(25, axis=0).repeat(25, axis=1)[:height, :width]

        rows, columns = -(-height // 25), -(-width // 25)
        return {
            "ids": blocks(np.arange(rows * columns, dtype=np.int32).reshape(rows, columns)),
            "label": blocks(rng.integers(0, _CLASSES, (rows, columns)).astype(np.uint8)),
            "mask": blocks(rng.integers(0, 2, (rows, columns)).astype(np.uint8)),
            "saliency": blocks(rng.integers(0, 256, (rows, columns)).astype(np.uint8)),
        }


@dataclass
class StageStep:
    """A stage and one batch of it on a device."""

    task: TrainTask
    data: Batch
    batch: int
    device: torch.device
    scaler: torch.amp.GradScaler
    amp: bool

    @property
    def parameters(self) -> int:
        """Number of parameters of everything in the stage's module."""
        return sum(parameter.numel() for parameter in self.task.module.parameters())

    def run(self) -> float:
        """One optimizer step: forward, losses, backward, all optimizers.  Returns the total loss."""
        for plan in self.task.optimizers:
            plan.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.float16, enabled=self.amp):
            losses = self.task.module(self.data, _LATE_EPOCH, 0)
        counts = self.task.denominators(self.data)
        terms = [losses[name] / counts[name].clamp(min=1) * self.task.loss_weights[name] for name in losses]
        total = torch.stack([term.float() for term in terms]).sum()
        self.scaler.scale(total).backward()
        for plan in self.task.optimizers:
            self.scaler.step(plan.optimizer)
        self.scaler.update()
        return float(total.detach())


def build_stage(
    stage: str, size: int | None, device: str, batch: int | None = None, amp: bool = False, channels_last: bool = False
) -> StageStep:
    """A stage of a published configuration with images of `size` (default: as published) and one batch (default: the
    smallest)."""
    count = batch or _SMALLEST_BATCH[stage]
    data = NoiseData(count=count, classes_of_an_image=_CLASSES_OF_AN_IMAGE.get(stage, 2))
    artifact = NoiseArtifact(data)
    recipe = SscRecipe()
    builders: dict[str, tuple[Callable[[StageContext], TrainTask], Any, tuple[str, ...]]] = {
        "cam": (build_cam_training, recipe.cam, ("superpixels",)),
        "affinity": (build_affinity_training, recipe.affinity, ("ir_label",)),
        "segmentation": (build_segmentation_training, recipe.segmentation, ("pseudo_label", "confidence_mask")),
        "i2crc_cam": (i2crc_training.build_cam_training, i2crc_recipe.CamSettings(), ("saliency",)),
    }
    build, config, inputs = builders[stage]
    context = StageContext(
        stage=stage,
        config=replace(config, **{_SIDE.get(stage, "crop_size"): size}) if size else config,
        data=cast(Any, data),
        inputs=cast(Any, dict.fromkeys(inputs, artifact)),
        files={},
        device=device,
    )
    torch.manual_seed(0)
    task = build(context)
    target = torch.device(device)
    task.module.to(target).train()
    samples = default_collate([task.samples.sample(i, np.random.default_rng(i)) for i in range(count)])
    moved = {name: value.to(target) for name, value in samples.items()}
    if channels_last:
        task.module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        moved = {
            name: value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value
            for name, value in moved.items()
        }
    scaler = torch.amp.GradScaler(target.type, enabled=amp)
    return StageStep(task, moved, count, target, scaler, amp)


def _generator(name: str) -> np.random.Generator:
    return np.random.default_rng(list(name.encode()))
