"""Trained stages of published configurations on random images, ready to take optimizer steps.

The stages are built by the same functions as in a run; only the data set and the upstream artifacts are
replaced by noise, and no ImageNet files are read.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import default_collate

from wsss.pipeline import StageContext
from wsss.stages import affinity_irn, affinity_psa
from wsss.stages.affinity_psa import FeatureAffinitySettings
from wsss.stages.segmentation import SegmentationSettings, build_segmentation_training
from wsss.train_task import Batch, TrainTask
from wsss_methods.i2crc import recipe as i2crc_recipe
from wsss_methods.i2crc import training as i2crc_training
from wsss_methods.msa import recipe as msa_recipe
from wsss_methods.msa import training as msa
from wsss_methods.msa.superpixel_network import SuperpixelNetwork, build_superpixel_training
from wsss_methods.sbnet import deeplabv1
from wsss_methods.sbnet import training as sbnet
from wsss_methods.sbnet.deeplabv1 import DeepLabV1Settings
from wsss_methods.sbnet.recipe import CamSettings, seam_settings
from wsss_methods.ssc import training as ssc
from wsss_methods.ssc.recipe import SscRecipe

_CLASSES = 21


@dataclass(frozen=True)
class PublishedStage:
    """A trained stage as published.

    Attributes:
        title: for tables.
        build: makes its training.
        config: its settings.
        inputs: roles of the artifacts that it reads.
        smallest_batch: fewest images that a step can have.
        side: the setting of the side of a training image, dotted where it is of a section.
        classes_of_an_image: how many classes an image must have.
    """

    title: str
    build: Callable[[StageContext], TrainTask]
    config: Any
    inputs: tuple[str, ...]
    smallest_batch: int = 1
    side: str = "crop_size"
    classes_of_an_image: int = 2


def _msa_training(target: str) -> msa.TrainConfig:
    contrast = replace(msa_recipe.ContrastSettings(), target=target)
    return msa.TrainConfig(msa_recipe.NetworkSettings(), msa_recipe.TrainSettings(), contrast)


_SSC = SscRecipe()
STAGES = {
    "cam": PublishedStage("CAM: ResNet-50, decoder, VGG-19", ssc.build_cam_training, _SSC.cam, ("superpixels",)),
    "affinity": PublishedStage(
        "affinity: IRN ResNet-50", affinity_irn.build_affinity_training, _SSC.affinity, ("ir_label",)
    ),
    "segmentation": PublishedStage(
        "co-training: two DeepLabV2 ResNet-101",
        ssc.build_segmentation_training,
        _SSC.segmentation,
        ("pseudo_label", "confidence_mask"),
        smallest_batch=2,
    ),
    "i2crc_cam": PublishedStage(
        "classifier: VGG-16 and relation losses",
        i2crc_training.build_cam_training,
        i2crc_recipe.CamSettings(),
        ("saliency",),
        smallest_batch=5,
        side="input_size",
        classes_of_an_image=1,  # the relation losses take images of one class
    ),
    "sbnet_cam": PublishedStage(
        "SBNet CAM: Wide-ResNet-38, two sizes, boundary branch", sbnet.build_cam_training, CamSettings(), ("boundary",)
    ),
    "seam_cam": PublishedStage(
        "SEAM CAM: Wide-ResNet-38, two sizes", sbnet.build_cam_training, seam_settings(CamSettings(), 8), ()
    ),
    "affinitynet": PublishedStage(
        "AffinityNet: Wide-ResNet-38", affinity_psa.build_affinity_training, FeatureAffinitySettings(), ("crf",)
    ),
    "msa_superpixels": PublishedStage(
        "MSA's superpixel network", build_superpixel_training, msa_recipe.SuperpixelSettings(), ()
    ),
    "msa_cam": PublishedStage(
        "MSA CAM: ResNet-50, DCR, AP, IPC with patches of the image",
        msa.build_training,
        _msa_training("image"),
        ("superpixel_network",),
        side="train.crop_size",
    ),
    "msa_cam_saliency": PublishedStage(
        "MSA CAM: ResNet-50, DCR, IPC with saliency",
        msa.build_training,
        _msa_training("saliency"),
        ("superpixel_network", "saliency"),
        side="train.crop_size",
    ),
    "deeplabv2": PublishedStage(
        "segmentation: DeepLabV2 ResNet-101, three sizes",
        build_segmentation_training,
        replace(SegmentationSettings(), loss_group=1),
        ("label",),
    ),
    "deeplabv1": PublishedStage(
        "segmentation: DeepLabV1 Wide-ResNet-38", deeplabv1.build_training, DeepLabV1Settings(), ("label",)
    ),
}
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
    """An upstream artifact: blocks of random values of every array that a stage reads, for any image."""

    data: NoiseData

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """ids int32, label, mask and saliency uint8, all (H, W); keys int64 (K,), present classes; for these and the
        background boundary uint8, crf_low and crf_high float16, all (1 + K, H, W)."""
        rng, height, width = _generator(name), self.data.height, self.data.width

        def blocks(values: np.ndarray) -> np.ndarray:
            return values.repeat(25, axis=-2).repeat(25, axis=-1)[..., :height, :width]

        rows, columns = -(-height // 25), -(-width // 25)
        keys = np.flatnonzero(self.data.image_labels(name)) + 1
        each = (len(keys) + 1, rows, columns)
        return {
            "keys": keys,
            "boundary": blocks(rng.integers(0, 2, each).astype(np.uint8)),
            "crf_low": blocks(rng.random(each).astype(np.float16)),
            "crf_high": blocks(rng.random(each).astype(np.float16)),
            "ids": blocks(np.arange(rows * columns, dtype=np.int32).reshape(rows, columns)),
            "label": blocks(rng.integers(0, _CLASSES, (rows, columns)).astype(np.uint8)),
            "mask": blocks(rng.integers(0, 2, (rows, columns)).astype(np.uint8)),
            "saliency": blocks(rng.integers(0, 256, (rows, columns)).astype(np.uint8)),
        }


@dataclass(frozen=True)
class RandomWeights:
    """The artifact of a trained superpixel network that has learned nothing."""

    folder: Path

    def path(self, file: str) -> Path:
        """A file of its weights, written now."""
        torch.save(SuperpixelNetwork().state_dict(), self.folder / file)
        return self.folder / file


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
        weights = self.task.loss_weights  # a statistic has none
        terms = [losses[name] / counts[name].clamp(min=1) * weight for name, weight in weights.items()]
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
    published = STAGES[stage]
    count = batch or published.smallest_batch
    data = NoiseData(count=count, classes_of_an_image=published.classes_of_an_image)
    artifact = NoiseArtifact(data)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        network = RandomWeights(Path(folder))
        inputs = {role: network if role.endswith("_network") else artifact for role in published.inputs}
        context = StageContext(
            stage=stage,
            config=_with(published.config, published.side, size) if size else published.config,
            data=cast(Any, data),
            inputs=cast(Any, inputs),
            files={},
            device=device,
        )
        task = published.build(context)
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


def _with(config: Any, setting: str, value: Any) -> Any:
    section, _, rest = setting.partition(".")
    return replace(config, **{section: _with(getattr(config, section), rest, value) if rest else value})


def _generator(name: str) -> np.random.Generator:
    return np.random.default_rng(list(name.encode()))
