"""What is trained: the classifier whose maps are the CAM with its decoder, and two segmentation networks together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from wsss.data.augment.photometric import PhotometricSettings
from wsss.data.augment.rescaled_crop import cam_training_sample
from wsss.data.augment.resized_crop import draw_training_sample
from wsss.nn.backbones import Normalization
from wsss.nn.checkpoint import load_imagenet_body
from wsss.optimizers import build_optimizer
from wsss.pipeline import StageContext
from wsss.schedules import polynomial_decay
from wsss.stages.references import given_label
from wsss.train_task import Batch, OptimizerPlan, TrainTask
from wsss_methods.ssc.cotraining import LOSS_WEIGHTS, CoTraining, CoTrainingSettings, cotraining_denominators
from wsss_methods.ssc.losses import (
    AlignmentSettings,
    Features,
    alignment_count,
    alignment_loss,
    build_perceptual_features,
    classification_loss,
    perceptual_loss,
)
from wsss_methods.ssc.networks import (
    NETWORKS,
    CamNetwork,
    ReconstructionDecoder,
    build_segmentation_network,
    class_scores,
)
from wsss_methods.ssc.recipe import CamSettings, SegmentationSettings


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
    off = {"drs_delta": 1.0, "drs_after_stage2": False, "loss_weight_perceptual": 0.0, "loss_weight_alignment": 0.0}
    return active_cam_settings(replace(settings, **off))


class CamSamples:
    """Augmented training crops."""

    def __init__(self, context: StageContext) -> None:
        self.data = context.data
        self.context, self.superpixels = context, "superpixels" in context.inputs
        self.config: CamSettings = context.config

    def __len__(self) -> int:
        return len(self.data.names)

    def sample(self, index: int, rng: np.random.Generator) -> Batch:
        """image float32 (3, S, S), label float32 (classes,), superpixels int32 (S, S) where they are used."""
        name, config = self.data.names[index], self.config
        image = self.data.image(name)
        # The baseline without superpixels draws the same crops.
        ids = np.zeros(image.shape[:2], np.int32)
        if self.superpixels:
            ids = self.context.arrays("superpixels", name)["ids"]
        sizes = {key: getattr(config, key) for key in ("crop_size", "resize_long_min", "resize_long_max")}
        crop = cam_training_sample(image, ids, rng, **sizes)
        batch = {"image": torch.from_numpy(crop.image), "label": torch.from_numpy(self.data.image_labels(name))}
        if self.superpixels:
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
    sgd = cam_optimizer(network, config.learning_rate, config.classifier_lr_mult, config.momentum, config.weight_decay)
    plans = [OptimizerPlan("classifier", sgd, schedule)]
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


class SegmentationSamples:
    """Pseudo-labeled training samples; consecutive ones are mixed with each other."""

    def __init__(self, context: StageContext) -> None:
        self.data = context.data
        self.context = context
        self.config: SegmentationSettings = context.config

    def __len__(self) -> int:
        return len(self.data.names)

    def sample(self, index: int, rng: np.random.Generator) -> Batch:
        """image float32 (3, H, W), label uint8 (H, W), mask uint8 (H, W), two seeds int64 ()."""
        name = self.data.names[index]
        label, trusted = self._labels(name)
        crop = draw_training_sample(
            self.data.image(name),
            label,
            trusted,
            rng,
            size=(self.config.crop_size, self.config.crop_size),
            area=(self.config.crop_area_min, self.config.crop_area_max),
        )
        return {
            "image": torch.from_numpy(crop.image),
            "label": torch.from_numpy(crop.label),
            "mask": torch.from_numpy(crop.mask),
            "pair_seed": torch.tensor(int(rng.integers(2**31))),
            "photometric_seed": torch.tensor(int(rng.integers(2**31))),
        }

    def _labels(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Label map and where it is trusted, uint8 (H, W); everywhere in a reference."""
        if (given := given_label(self.context, name)) is not None:
            return given, np.ones_like(given)
        return self.context.arrays("pseudo_label", name)["label"], self.context.arrays("confidence_mask", name)["mask"]


def build_segmentation_training(context: StageContext) -> TrainTask:
    """Two networks of one architecture and one ImageNet start that teach each other."""
    config: SegmentationSettings = context.config
    networks = [build_segmentation_network(config, context.data.num_classes) for _ in NETWORKS]
    if "backbone" in context.files:
        for network in networks:
            load_imagenet_body(network.get_submodule("backbone"), context.files["backbone"])
    module = CoTraining(networks[0], networks[1], cotraining_settings(config))
    groups = [
        {"params": list(_parameters(networks, head=head)), "lr": rate, "weight_decay": config.weight_decay}
        for head, rate in ((False, config.learning_rate), (True, config.learning_rate * config.head_lr_mult))
    ]
    optimizer = build_optimizer(config.optimizer, groups, config.learning_rate, config.momentum)
    schedule = partial(polynomial_decay, power=config.lr_power, floor=config.min_lr / config.learning_rate)
    return TrainTask(
        module=module,
        denominators=cotraining_denominators,
        loss_weights=LOSS_WEIGHTS,
        optimizers=(OptimizerPlan("segmentation", optimizer, schedule),),
        samples=SegmentationSamples(context),
        epochs=config.num_epochs,
        global_batch=config.batch_size,
        group_size=2,
        trained_weights=lambda: {name: network.state_dict() for name, network in zip(NETWORKS, networks, strict=True)},
        candidate_every=config.candidate_every if config.selection == "best_val" else 0,
        precision=cast(Any, config.precision),
    )


def cotraining_settings(config: SegmentationSettings) -> CoTrainingSettings:
    """The part of the recipe's section that the training step reads."""
    probabilities = (config.photometric_prob, config.grey_prob, config.blur_prob)
    return CoTrainingSettings(
        warmup_epochs=config.warmup_epochs,
        mix_probability=config.mix_prob,
        mix_ignore_background=config.mix_ignore_bg,
        online_confidence=config.online_conf_thres,
        boundary_size=config.bdry_size,
        boundary_weight_supervised=cast(tuple[float, float], config.bdry_weight_sup),
        boundary_weight_cotrain=cast(tuple[float, float], config.bdry_weight_cotrain),
        photometric=PhotometricSettings(*probabilities) if any(probabilities) else None,
    )


def _parameters(networks: list[nn.Module], head: bool) -> list[nn.Parameter]:
    """Parameters in the backbones, or in what stands on them."""
    return [
        parameter
        for network in networks
        for name, parameter in network.named_parameters()
        if name.startswith("backbone.") != head
    ]
