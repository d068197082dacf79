"""The classifier's training and its class maps, as the stages `cam_train` and `cam` run them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from wsss.data.augment.color_jitter import PUBLISHED_JITTER, random_color_jitter
from wsss.data.transforms import channels_first, normalize, resize
from wsss.nn.checkpoint import load_imagenet_body
from wsss.ops.cam import normalized_by_maximum
from wsss.optimizers import build_optimizer
from wsss.pipeline import Arrays, StageContext
from wsss.stages import cam
from wsss.train_task import Batch, OptimizerPlan, TrainTask
from wsss_methods.i2crc.losses import classification_loss, of_one_class, relation_losses
from wsss_methods.i2crc.networks import Classifier, parameter_groups
from wsss_methods.i2crc.recipe import CamSettings

WEIGHTS = "network"
RELATIONS = ("intra_object", "intra_background", "inter")


def active_cam_settings(settings: CamSettings) -> CamSettings:
    """The settings with those reset that belong to relation losses that are off, so that they enter no key."""
    if settings.relation_losses:
        return settings
    names = ("saliency_size", *(f"loss_weight_{name}" for name in RELATIONS))
    defaults = CamSettings()
    return replace(settings, **{name: getattr(defaults, name) for name in names})


class ClassifierSamples:
    """Squeezed pictures with other colors; saliency only where the relation losses read it."""

    def __init__(self, context: StageContext) -> None:
        self.data, self.context = context.data, context
        self.config: CamSettings = context.config
        self.jitter = PUBLISHED_JITTER.scaled(self.config.color_jitter)

    def __len__(self) -> int:
        return len(self.data.names)

    def sample(self, index: int, rng: np.random.Generator) -> Batch:
        """image float32 (3, S, S), label float32 (classes,), saliency uint8 (T, T)."""
        name, config = self.data.names[index], self.config
        image = resize(self.data.image(name), (config.input_size, config.input_size), "bilinear")
        image = random_color_jitter(image, self.jitter, rng)
        batch = {
            "image": torch.from_numpy(channels_first(normalize(image))),
            "label": torch.from_numpy(self.data.image_labels(name)),
        }
        if config.relation_losses:
            saliency = resized_saliency(self.context.arrays("saliency", name)["saliency"], config.saliency_size)
            batch["saliency"] = torch.from_numpy(saliency)
        return batch


def resized_saliency(saliency: np.ndarray, size: int) -> np.ndarray:
    """(H, W) -> (size, size) by OpenCV's nearest: source pixel floor(i * length / size)."""
    return cv2.resize(saliency, (size, size), interpolation=cv2.INTER_NEAREST)


class ClassifierTraining(nn.Module):
    """The classifier and its losses; `forward(batch, epoch, step)` returns sums.

    "classification" over all images and classes; `RELATIONS` over the images of one class and all classes.
    """

    def __init__(self, network: Classifier, relations: bool) -> None:
        super().__init__()
        self.network = network
        self.relations = relations

    def forward(self, batch: Batch, epoch: int, step: int) -> dict[str, Tensor]:
        maps, labels = self.network(batch["image"]), batch["label"]
        with torch.autocast(maps.device.type, enabled=False):
            maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
            losses = {"classification": classification_loss(maps, labels)}
            if self.relations:
                sums = relation_losses(maps, batch["saliency"].to(maps.dtype) / 255, labels)
                losses.update({name: getattr(sums, name) for name in RELATIONS})
        return losses

    def denominators(self, batch: Batch) -> Mapping[str, Tensor]:
        """Images times classes: all, and those with one class."""
        labels = batch["label"]
        counts = {"classification": torch.tensor(float(labels.numel()))}
        if self.relations:
            counts.update(dict.fromkeys(RELATIONS, of_one_class(labels).sum().float() * labels.shape[1]))
        return counts


def step_decay(step: int, total_steps: int, epochs: int, decay_epochs: Sequence[int], factor: float) -> float:
    """`factor` to the power of the number of `decay_epochs` that are over at `step`, from 0."""
    epoch = step * epochs // total_steps
    return factor ** sum(end <= epoch for end in decay_epochs)


def build_classifier(config: CamSettings, num_classes: int) -> Classifier:
    """The network with random weights; `num_classes` counts the background."""
    return Classifier(
        config.backbone, config.width, config.head_width, cast(Any, config.normalization), num_classes - 1
    )


def build_cam_training(context: StageContext) -> TrainTask:
    """The classifier (config CamSettings, role "saliency"); file "backbone": ImageNet weights to start from."""
    config: CamSettings = context.config
    network = build_classifier(config, context.data.num_classes)
    if "backbone" in context.files:
        # torchvision's VGG has its prefix in the file, other bodies have it in themselves.
        body = nn.ModuleDict({"features": network.features}) if config.backbone == "vgg16" else network.features
        load_imagenet_body(body, context.files["backbone"])
    module = ClassifierTraining(network, config.relation_losses)
    groups = parameter_groups(network, config.learning_rate, config.weight_decay, config.head_lr_mult)
    optimizer = build_optimizer(config.optimizer, groups, config.learning_rate, config.momentum, nesterov=True)
    schedule = partial(
        step_decay, epochs=config.num_epochs, decay_epochs=config.lr_decay_epochs, factor=config.lr_decay_factor
    )
    return TrainTask(
        module=module,
        denominators=module.denominators,
        loss_weights={"classification": 1.0, **{name: getattr(config, f"loss_weight_{name}") for name in RELATIONS}},
        optimizers=(OptimizerPlan("classifier", optimizer, schedule),),
        samples=ClassifierSamples(context),
        epochs=config.num_epochs,
        global_batch=config.batch_size,
        keep_last=True,
        trained_weights=lambda: {WEIGHTS: network.state_dict()},
        precision=cast(Any, config.precision),
    )


def classifier_input(image: np.ndarray, size: int) -> np.ndarray:
    """What the network sees of a picture: uint8 (H, W, 3) -> float32 (3, size, size), normalized."""
    return channels_first(normalize(resize(image, (size, size), "bilinear")))


def quantized_maps(outputs: Sequence[Tensor], present: np.ndarray, size: tuple[int, int]) -> Arrays:
    """ "high_res" uint8 (K, H, W), what the official `scripts/test.py` writes as pictures.

    The positive part of each map over its maximum is cut to 8 bits first and resized by OpenCV's bicubic then.
    """
    small = normalized_by_maximum(outputs[0][present].clamp_min(0), epsilon=1e-8)
    levels = (small * 255).to(torch.uint8).numpy()
    large = np.empty((len(present), *size), dtype=np.uint8)
    for index, level in enumerate(levels):
        cv2.resize(level, size[::-1], large[index], interpolation=cv2.INTER_CUBIC)
    return {"high_res": large}


def build_cam(context: StageContext) -> Callable[[str], Arrays]:
    """Map function (config CamConfig, role "weights"): "keys" int64 (K,) and "high_res" uint8 (K, H, W)."""
    size = context.config.network.input_size
    return cam.build_cam(
        context,
        build_network=build_classifier,
        inputs=lambda image, scales: [classifier_input(image, size)[None]],
        keep=quantized_maps,
        weights=f"{WEIGHTS}.pt",
    )
