"""The classification network and its losses as a training task, in both variants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from wsss.nn.backbones import Normalization
from wsss.nn.checkpoint import load_imagenet_body
from wsss.nn.norms import sum_over_workers
from wsss.ops.feature_affinity import propagated
from wsss.optimizers import build_optimizer
from wsss.pipeline import StageContext
from wsss.schedules import polynomial_decay
from wsss.stages.candidates import read_weights
from wsss.train_task import Batch, OptimizerPlan, TrainTask
from wsss_methods.msa.losses import classification_loss, contrast_loss, contrast_target, foreground_cam, tiled
from wsss_methods.msa.networks import CamNetwork, Structure, build_network, parameter_groups, published_state_dict
from wsss_methods.msa.recipe import CELL, STATISTICS, ContrastSettings, NetworkSettings, TrainSettings
from wsss_methods.msa.superpixel_network import WEIGHTS as SUPERPIXEL_WEIGHTS
from wsss_methods.msa.superpixel_network import SuperpixelNetwork, load_superpixel_network, training_pair

WEIGHTS = "cam_network"
PATCHES = "contrast_patches"


@dataclass(frozen=True)
class TrainConfig:
    """What the training depends on. `candidate_every`: epochs between stored candidates, 0 for none."""

    network: NetworkSettings
    train: TrainSettings
    contrast: ContrastSettings
    candidate_every: int = 0


class CamSamples:
    """Augmented crops with the labels of their images, and the saliency of role "saliency" where there is one."""

    def __init__(self, context: StageContext) -> None:
        self.data = context.data
        self.context = context
        self.config: TrainConfig = context.config

    def __len__(self) -> int:
        return len(self.data.names)

    def sample(self, index: int, rng: np.random.Generator) -> Batch:
        """image float32 (3, S, S) normalized, label float32 (classes without background,), saliency uint8 (S, S)."""
        name = self.data.names[index]
        picture = self.data.image(name)
        # The variant without saliency draws the same crops.
        guided = "saliency" in self.context.inputs
        second = self.context.arrays("saliency", name)["saliency"] if guided else picture[..., 0]
        statistics = STATISTICS[self.config.network.norm_stats]
        image, cut = training_pair(picture, second, rng, self.config.train, *statistics)
        batch = {"image": torch.from_numpy(image), "label": torch.from_numpy(self.data.image_labels(name))}
        return {**batch, "saliency": torch.from_numpy(cut)} if guided else batch


class CamTraining(nn.Module):
    """The network and its losses: "classification", and "contrast" unless its weight is 0.

    Statistic "contrast_patches": how many patches have both background and class. The superpixel network is fixed and
    no part of the module.
    """

    def __init__(self, network: CamNetwork, superpixels: SuperpixelNetwork | None, contrast: ContrastSettings) -> None:
        super().__init__()
        self.network = network
        self.contrast = contrast
        # In a tuple, so that fixed weights are neither saved nor sent to other workers.
        self._superpixels = (superpixels,)

    def forward(self, batch: Batch, epoch: int, step: int) -> dict[str, Tensor]:
        image = batch["image"]
        association = association_of(self.superpixels, image)
        found = self.network(image, cast(Tensor, association))
        losses = {"classification": classification_loss(found.pooled, batch["label"]).sum()}
        if self.contrast.weight:
            target = contrast_target(image, batch.get("saliency"), association, CELL)
            scores = propagated(found.scores, found.features, self.contrast.ap_iterations, self.contrast.ap_threshold)
            foreground = foreground_cam(scores, batch["label"])
            foreground, target = (tiled(maps, self.contrast.patches) for maps in (foreground, target))
            share, patches = contrast_loss(foreground, target, self.contrast.ignore_threshold)
            # The share is of a mean over the batch of all workers, and the loop divides by its images.
            losses["contrast"] = share * sum_over_workers(image.new_tensor(float(len(image))))
            losses[PATCHES] = patches
        return losses

    @property
    def superpixels(self) -> SuperpixelNetwork | None:
        """The fixed network that says which superpixels pixels belong to."""
        return self._superpixels[0]

    def denominators(self, batch: Batch) -> Mapping[str, Tensor]:
        """Images, for each of them."""
        return dict.fromkeys(("classification", "contrast", PATCHES), torch.tensor(float(len(batch["label"]))))


@torch.no_grad()
def association_of(superpixels: SuperpixelNetwork | None, image: Tensor) -> Tensor | None:
    """Which superpixels the pixels of (N, 3, H, W) belong to, (N, 9, H, W); None without a superpixel network."""
    return None if superpixels is None else superpixels(image.float()).to(image.dtype)


def structure_of(network: NetworkSettings, num_classes: int) -> Structure:
    """Shape of the network; `num_classes` counts the background."""
    return Structure(
        num_classes=num_classes,
        backbone=network.backbone,
        width=network.width,
        normalization=cast(Normalization, network.normalization),
        head_width=network.head_width,
        dcr=network.dcr,
        dcr_inputs=network.dcr_inputs,
        gradient_stop=network.gradient_stop,
    )


def superpixels_of(context: StageContext) -> SuperpixelNetwork | None:
    """The trained network of role "superpixel_network", or None without that role."""
    if "superpixel_network" not in context.inputs:
        return None
    weights = read_weights(context.inputs["superpixel_network"], SUPERPIXEL_WEIGHTS, 0)
    return load_superpixel_network(weights, context.device)


def build_training(context: StageContext) -> TrainTask:
    """One network, four groups of rates, the gradient clipped; roles "superpixel_network" and "saliency" if used."""
    config: TrainConfig = context.config
    train = config.train
    network = build_network(structure_of(config.network, context.data.num_classes))
    if "backbone" in context.files:
        load_imagenet_body(network.model, context.files["backbone"])
    module = CamTraining(network, superpixels_of(context), config.contrast)
    groups = parameter_groups(
        network,
        learning_rate=train.learning_rate,
        head_lr_mult=train.head_lr_mult,
        weight_decay=train.weight_decay,
    )
    optimizer = build_optimizer(train.optimizer, groups, train.learning_rate, train.momentum, nesterov=True)
    return TrainTask(
        module=module,
        denominators=module.denominators,
        loss_weights={"classification": 1.0, "contrast": config.contrast.weight},
        statistics=(PATCHES,),
        optimizers=(OptimizerPlan("network", optimizer, partial(polynomial_decay, power=train.lr_power)),),
        samples=CamSamples(context),
        epochs=train.num_epochs,
        global_batch=train.batch_size,
        trained_weights=lambda: {WEIGHTS: published_state_dict(network)},
        candidate_every=config.candidate_every,
        clip_norm=train.clip_norm,
        # Without the contrast loss nothing sees the scores that DCR rebuilds; the plain classifier stops its gradient.
        find_unused_parameters=not (config.network.dcr and config.contrast.weight),
    )
