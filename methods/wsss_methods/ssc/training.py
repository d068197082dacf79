"""Training of the classifier whose maps are the CAM, and of its reconstruction decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from wsss.data.augment.rescaled_crop import cam_training_sample
from wsss.nn.backbones import Normalization
from wsss.nn.checkpoint import load_imagenet_body
from wsss.pipeline import StageContext
from wsss.schedules import polynomial_decay
from wsss.train_task import Batch, OptimizerPlan, TrainTask
from wsss_methods.ssc.losses import (
    AlignmentSettings,
    Features,
    alignment_count,
    alignment_loss,
    build_perceptual_features,
    classification_loss,
    perceptual_loss,
)
from wsss_methods.ssc.networks import CamNetwork, ReconstructionDecoder, class_scores
from wsss_methods.ssc.recipe import CamSettings


def active_cam_settings(settings: CamSettings) -> CamSettings:
    """The settings with those reset that belong to a constraint that is off, so that they enter no key."""
    reset: set[str] = set()
    if not settings.loss_weight_alignment:
        reset |= {field.name for field in fields(settings) if field.name.startswith("alignment_")}
    if not settings.loss_weight_perceptual:
        reset |= {
            "perceptual_network",
            "perceptual_layer_weights",
            "rescale_reconstruction",
            "decoder_width",
            "rec_learning_rate",
            "rec_adam_beta1",
        }
    defaults = CamSettings()
    return replace(settings, **{name: getattr(defaults, name) for name in reset})


def plain_cam_settings(settings: CamSettings) -> CamSettings:
    """The baseline: the same classifier and schedule without suppression and without the two constraints."""
    return active_cam_settings(
        replace(
            settings,
            drs_delta=1.0,
            drs_after_stage2=False,
            loss_weight_perceptual=0.0,
            loss_weight_alignment=0.0,
        )
    )


class CamSamples:
    """Augmented training crops."""

    def __init__(self, context: StageContext) -> None:
        self.data = context.data
        self.superpixels = context.inputs.get("superpixels")
        self.config: CamSettings = context.config

    def __len__(self) -> int:
        return len(self.data.names)

    def sample(self, index: int, rng: np.random.Generator) -> Batch:
        """image float32 (3, S, S), label float32 (classes,), superpixels int32 (S, S) where they are used."""
        name = self.data.names[index]
        image = self.data.image(name)
        # The baseline without superpixels draws the same crops.
        ids = (
            np.zeros(image.shape[:2], dtype=np.int32)
            if self.superpixels is None
            else self.superpixels.arrays(name)["ids"]
        )
        crop = cam_training_sample(
            image,
            ids,
            rng,
            crop_size=self.config.crop_size,
            resize_long_min=self.config.resize_long_min,
            resize_long_max=self.config.resize_long_max,
        )
        batch = {
            "image": torch.from_numpy(crop.image),
            "label": torch.from_numpy(self.data.image_labels(name)),
        }
        if self.superpixels is not None:
            batch["superpixels"] = torch.from_numpy(crop.superpixels)
        return batch


class CamTraining(nn.Module):
    """The classifier, its decoder, and the losses of a step; a constraint with weight 0 is left out.

    `forward(batch, epoch, step)` returns sums: "classification", "perceptual", and, after the warm-up,
    "alignment". `features` are fixed and no part of the module.
    """

    def __init__(
        self, network: CamNetwork, decoder: ReconstructionDecoder | None, features: Features, config: CamSettings
    ) -> None:
        super().__init__()
        self.network = network
        self.decoder = decoder
        self.config = config
        # In a tuple, so that fixed weights are neither saved nor sent to other workers.
        self._features = (features,)

    def forward(self, batch: Batch, epoch: int, step: int) -> dict[str, Tensor]:
        maps = self.network(batch["image"])
        losses = {"classification": classification_loss(class_scores(maps), batch["label"])[0]}
        if self.decoder is not None:
            losses["perceptual"] = perceptual_loss(
                self._features[0],
                self.decoder(maps),
                batch["image"],
                self.config.perceptual_layer_weights,
                self.config.rescale_reconstruction,
            )[0]
        if self.config.loss_weight_alignment and epoch >= self.config.alignment_warmup_epochs:
            losses["alignment"] = alignment_loss(
                maps, batch["label"], batch["superpixels"], alignment_settings(self.config)
            )[0]
        return losses

    def denominators(self, batch: Batch) -> Mapping[str, Tensor]:
        """Counts of each loss, from the batch alone."""
        label = batch["label"]
        size = (batch["image"].shape[2], batch["image"].shape[3])
        counts = {"classification": torch.tensor(float(label.numel()))}
        if self.decoder is not None:
            counts["perceptual"] = torch.tensor(float(label.shape[0]))
        if self.config.loss_weight_alignment:
            counts["alignment"] = alignment_count(label, size, alignment_settings(self.config))
        return counts


def alignment_settings(config: CamSettings) -> AlignmentSettings:
    """The part of the recipe's section that the self-modulation constraint reads."""
    return AlignmentSettings(
        downscale=config.alignment_downscale,
        threshold=config.alignment_threshold,
        erosion_kernel=config.alignment_erosion_kernel,
    )


def build_cam_network(config: CamSettings, num_classes: int) -> CamNetwork:
    """The classifier with random weights; `num_classes` counts the background."""
    return CamNetwork(
        config.backbone,
        config.width,
        num_classes=num_classes - 1,
        normalization=cast(Normalization, config.normalization),
        drs_delta=config.drs_delta,
        drs_after_stage2=config.drs_after_stage2,
        gradient_stop=config.gradient_stop,
    )


def build_cam_training(context: StageContext) -> TrainTask:
    """The classifier by SGD and the decoder by Adam, both on the sum of the losses."""
    config: CamSettings = context.config
    network = build_cam_network(config, context.data.num_classes)
    if "backbone" in context.files:
        load_imagenet_body(cast(nn.Module, network.body), context.files["backbone"])
    schedule = partial(polynomial_decay, power=config.lr_power)
    plans = [
        OptimizerPlan(
            "classifier",
            cam_optimizer(
                network, config.learning_rate, config.classifier_lr_mult, config.momentum, config.weight_decay
            ),
            schedule,
        )
    ]
    decoder, features = None, cast(Features, None)
    if config.loss_weight_perceptual:
        decoder = ReconstructionDecoder(network.num_classes, config.decoder_width)
        features = build_perceptual_features(config.perceptual_network, context.files.get("perceptual"), context.device)
        optimizer = decoder_optimizer(decoder, config.rec_learning_rate, config.rec_adam_beta1)
        plans.append(OptimizerPlan("decoder", optimizer, schedule))
    module = CamTraining(network, decoder, features, config)

    def trained_weights() -> dict[str, dict[str, Tensor]]:
        weights = {"cam_network": network.state_dict()}
        return weights if decoder is None else {**weights, "decoder": decoder.state_dict()}

    return TrainTask(
        module=module,
        denominators=module.denominators,
        loss_weights={
            "classification": 1.0,
            "perceptual": config.loss_weight_perceptual,
            "alignment": config.loss_weight_alignment,
        },
        optimizers=tuple(plans),
        samples=CamSamples(context),
        epochs=config.num_epochs,
        global_batch=config.batch_size,
        trained_weights=trained_weights,
        precision=cast(Any, config.precision),
    )


def cam_optimizer(
    network: CamNetwork,
    learning_rate: float = 0.1,
    classifier_lr_mult: float = 10.0,
    momentum: float = 1e-4,
    weight_decay: float = 1e-4,
) -> torch.optim.SGD:
    """SGD with two groups: backbone at the base rate, classifier at `classifier_lr_mult` times it.

    The published momentum is 1e-4, not 0.9: `misc/torchutils.py` hands its optimizer the weight decay in its place.
    """
    return torch.optim.SGD(
        [
            {"params": network.backbone_parameters(), "lr": learning_rate},
            {"params": network.classifier_parameters(), "lr": learning_rate * classifier_lr_mult},
        ],
        lr=learning_rate,
        momentum=momentum,
        weight_decay=weight_decay,
    )


def decoder_optimizer(
    decoder: nn.Module, learning_rate: float = 5e-4, beta1: float = 0.5, beta2: float = 0.999
) -> torch.optim.Adam:
    """Adam of the reconstruction decoder, without weight decay."""
    return torch.optim.Adam(decoder.parameters(), lr=learning_rate, betas=(beta1, beta2))
