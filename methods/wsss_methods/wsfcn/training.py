"""The network, its losses and its optimizer as a training task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from wsss.data.augment.color_jitter import PUBLISHED_JITTER
from wsss.data.augment.resized_crop import jittered_crop
from wsss.nn.checkpoint import load_imagenet_body
from wsss.optimizers import build_optimizer
from wsss.pipeline import StageContext
from wsss.schedules import polynomial_decay
from wsss.stages.references import given_label
from wsss.train_task import Batch, OptimizerPlan, TrainTask
from wsss_methods.wsfcn.losses import (
    UNLABELED,
    FocalPenalty,
    balanced_entropy,
    class_counts,
    class_scores,
    classification_loss,
    denormalized,
    foreground_share,
    mask_loss,
    presence_gate,
    pseudo_label,
)
from wsss_methods.wsfcn.networks import Structure, WsFcn, official_state_dict, parameter_groups
from wsss_methods.wsfcn.recipe import NetworkSettings, PseudoLabelSettings, TrainSettings

WEIGHTS = "network"
GIVEN = "given_label"  # of a batch: label maps in the place of the pseudo labels
STATISTICS = ("mask_loss", "presence_gate", "classes_in_pseudo_label", "labeled_pixels", "foreground_share")


@dataclass(frozen=True)
class TrainConfig:
    """What the training depends on. `candidate_every`: epochs between stored candidates, 0 for none."""

    network: NetworkSettings
    train: TrainSettings
    pseudo_label: PseudoLabelSettings
    candidate_every: int


class ImageSamples:
    """Augmented crops with the labels of their images; in a reference also with label maps."""

    def __init__(self, context: StageContext, settings: TrainSettings) -> None:
        self.data, self.context = context.data, context
        self.settings = settings
        self.jitter = PUBLISHED_JITTER.scaled(settings.color_jitter)

    def __len__(self) -> int:
        return len(self.data.names)

    def sample(self, index: int, rng: np.random.Generator) -> Batch:
        """image float32 (3, S, S) normalized, label float32 (classes without background,); `GIVEN`: uint8 (S, S)."""
        name, settings = self.data.names[index], self.settings
        image, given = jittered_crop(
            self.data.image(name),
            given_label(self.context, name),
            rng,
            settings.crop_size,
            settings.crop_scale_min,
            self.jitter,
        )
        batch = {"image": torch.from_numpy(image), "label": torch.from_numpy(self.data.image_labels(name))}
        return batch if given is None else {**batch, GIVEN: torch.from_numpy(given)}


class WsFcnTraining(nn.Module):
    """Both losses of a step; `forward` returns sums over the batch, as the training loop wants them.

    "classification" always, "mask" from epoch `pretrain_epochs` on. Before that the mask loss is computed but only
    watched. Statistics: "mask_loss"; "presence_gate", 1 for images that contribute to it;
    "classes_in_pseudo_label", the share of an image's labels that its pseudo label holds; "labeled_pixels";
    "foreground_share", the mean mask of an image's classes.
    """

    def __init__(self, network: WsFcn, focal: FocalPenalty, rule: PseudoLabelSettings, pretrain_epochs: int) -> None:
        super().__init__()
        self.network = network
        self.focal = focal
        self.rule = rule
        self.pretrain_epochs = pretrain_epochs

    def forward(self, batch: Batch, epoch: int, step: int) -> dict[str, Tensor]:
        logits = self.network(batch["image"])
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            per_image = self.losses(logits, batch, train_masks=epoch >= self.pretrain_epochs)
        return {name: values.sum() for name, values in per_image.items()}

    def losses(self, logits: Tensor, batch: Batch, train_masks: bool) -> dict[str, Tensor]:
        """Losses and statistics of each image, (N,): logits (N, C, h, w), background included."""
        labels = batch["label"]
        masks = logits.softmax(dim=1)
        given = batch.get(GIVEN)
        label = pseudo_label(denormalized(batch["image"]), masks, labels, self.rule).label if given is None else given
        with torch.set_grad_enabled(train_masks and torch.is_grad_enabled()):
            # The gate asks whether the network's own label is to be believed.
            mask = mask_loss(logits, label, labels) if given is None else balanced_entropy(logits, given)
        counts = class_counts(label, logits.shape[1])
        found = ((counts[:, 1:] > 0) & (labels > 0)).sum(dim=1)
        values = {
            "classification": classification_loss(class_scores(logits, masks, self.focal), labels),
            "mask_loss": mask.detach(),
            "presence_gate": presence_gate(counts, labels),
            "classes_in_pseudo_label": found.to(labels.dtype) / labels.sum(dim=1).clamp(min=1),
            "labeled_pixels": (label != UNLABELED).to(labels.dtype).mean(dim=(1, 2)),
            "foreground_share": foreground_share(masks, labels).detach(),
        }
        return {**values, "mask": mask} if train_masks else values

    def denominators(self, batch: Batch) -> Mapping[str, Tensor]:
        """Every loss is a mean over images; one whose gate is closed counts as 0."""
        images = torch.tensor(float(len(batch["label"])))
        return dict.fromkeys(("classification", "mask", *STATISTICS), images)


def structure_of(network: NetworkSettings, num_classes: int, train: TrainSettings | None = None) -> Structure:
    """Shape of the network; dropout and norm groups matter in training only. `num_classes` counts the background."""
    shape = Structure(
        num_classes=num_classes,
        backbone=network.backbone,
        backbone_width=network.backbone_width,
        head_width=network.head_width,
        normalization=cast(Any, network.normalization),
        gate_psi=network.gate_psi,
    )
    if train is None:
        return shape
    return replace(
        shape,
        norm_group=train.norm_group,
        fca_dropout=train.fca_dropout,
        decoder_dropout1=train.dec_dropout1,
        decoder_dropout2=train.dec_dropout2,
    )


def focal_of(network: NetworkSettings) -> FocalPenalty:
    """The class score's penalty."""
    return FocalPenalty(network.focal_p, network.focal_lambda)


def build_training(context: StageContext) -> TrainTask:
    """One network, four groups of rates, classification alone at first, then with the mask loss."""
    config: TrainConfig = context.config
    train = config.train
    network = WsFcn(structure_of(config.network, context.data.num_classes, train))
    if "backbone" in context.files:
        load_imagenet_body(network.backbone.body, context.files["backbone"])
    module = WsFcnTraining(network, focal_of(config.network), config.pseudo_label, train.pretrain_epochs)
    multipliers = train.multipliers(config.network.backbone)
    groups = parameter_groups(network, learning_rate=train.lr, weight_decay=train.weight_decay, multipliers=multipliers)
    # Power 0 is a constant rate, as the official program runs.
    schedule = partial(polynomial_decay, power=train.lr_power if train.lr_schedule == "poly" else 0.0)
    optimizer = build_optimizer(train.optimizer, groups, train.lr, train.momentum)
    return TrainTask(
        module=module,
        denominators=module.denominators,
        loss_weights={"classification": 1.0, "mask": train.mask_loss_weight},
        statistics=STATISTICS,
        optimizers=(OptimizerPlan("network", optimizer, schedule),),
        samples=ImageSamples(context, train),
        epochs=train.num_epochs,
        global_batch=train.batch_size,
        group_size=train.norm_group or 1,
        trained_weights=lambda: {WEIGHTS: official_state_dict(network)},
        candidate_every=config.candidate_every,
        candidates_after=train.pretrain_epochs - 1,
        precision=cast(Any, train.precision),
        # The norms inside FCA's branches are in the optimizer, as published, but nothing calls them.
        find_unused_parameters=True,
    )
