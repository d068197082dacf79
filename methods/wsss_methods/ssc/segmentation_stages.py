"""Co-training of two segmentation networks on pseudo labels, and what the shared stages behind it need of SSC."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from wsss.data.augment.photometric import PhotometricSettings
from wsss.data.augment.resized_crop import draw_training_sample, resized_image, resized_label
from wsss.ops.crf import DenseCrfSettings
from wsss.pipeline import Arrays, StageContext
from wsss.schedules import polynomial_decay
from wsss.stages import refine
from wsss.stages.candidates import CandidateConfig, candidate_epochs, count_candidates, read_weights
from wsss.stages.refine import PredictionConfig
from wsss.train_task import Batch, OptimizerPlan, TrainTask
from wsss_methods.ssc.cotraining import (
    LOSS_WEIGHTS,
    CoTraining,
    CoTrainingSettings,
    cotraining_denominators,
)
from wsss_methods.ssc.networks import build_segmentation_network, load_imagenet_weights
from wsss_methods.ssc.recipe import CrfSettings, SegmentationSettings
from wsss_methods.ssc.seg_checkpoint import NETWORKS

# Mean colour (R, G, B) on the 8-bit scale that the official program subtracts before the CRF.
CRF_IMAGE_MEAN = (122.675, 116.669, 104.008)


class SegmentationSamples:
    """Pseudo-labeled training samples of S7 (SSC, section 3.3); consecutive ones are mixed with each other."""

    def __init__(self, context: StageContext) -> None:
        self.data = context.data
        self.labels = context.inputs["pseudo_label"]
        self.masks = context.inputs["confidence_mask"]
        self.config: SegmentationSettings = context.config

    def __len__(self) -> int:
        return len(self.data.names)

    def sample(self, index: int, rng: np.random.Generator) -> Batch:
        """image float32 (3, H, W), label uint8 (H, W), mask uint8 (H, W), two seeds int64 ()."""
        name = self.data.names[index]
        crop = draw_training_sample(
            self.data.image(name),
            self.labels.arrays(name)["label"],
            self.masks.arrays(name)["mask"],
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


def build_segmentation_training(context: StageContext) -> TrainTask:
    """S7: two networks of one architecture and one ImageNet start that teach each other."""
    config: SegmentationSettings = context.config
    networks = [build_segmentation_network(config, context.data.num_classes) for _ in NETWORKS]
    if "backbone" in context.files:
        for network in networks:
            load_imagenet_weights(network, config.architecture, context.files["backbone"])
    module = CoTraining(networks[0], networks[1], cotraining_settings(config))
    groups = [
        {"params": list(_parameters(networks, head=False)), "lr": config.learning_rate},
        {"params": list(_parameters(networks, head=True)), "lr": config.learning_rate * config.head_lr_mult},
    ]
    optimizer = torch.optim.SGD(
        groups, lr=config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
    )
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
        boundary_weight_supervised=_pair(config.bdry_weight_sup),
        boundary_weight_cotrain=_pair(config.bdry_weight_cotrain),
        photometric=PhotometricSettings(*probabilities) if any(probabilities) else None,
    )


def build_candidate_scorer(context: StageContext) -> Callable[[str], Arrays]:
    """Confusion matrix of every stored epoch at the training size, no CRF, one scale.

    All candidates are held in memory at once. Returns what `count_candidates` says.
    """
    config: CandidateConfig = context.config
    epochs = candidate_epochs(context.inputs["weights"])
    candidates = [load_networks(context, epoch) for epoch in epochs]
    size = (config.network.crop_size, config.network.crop_size)

    def predict(name: str) -> tuple[np.ndarray, list[np.ndarray]]:
        image = torch.from_numpy(resized_image(context.data.image(name), size))[None].to(context.device)
        logits = [networks[0](image)[1] + networks[1](image)[1] for networks in candidates]
        labels = [each[0].argmax(dim=0).cpu().numpy().astype(np.uint8) for each in logits]
        return resized_label(context.data.mask(name), size), labels

    return count_candidates(context, epochs, predict)


def build_scores(context: StageContext) -> Callable[[str], Arrays]:
    """Multi-scale scores of both networks before softmax, "scores" float32 (C, h, w)."""

    def load(context: StageContext, epoch: int) -> refine.Network:
        return partial(base_scores, load_networks(context, epoch))

    return refine.build_scores(context, load, resized_image)


def build_predictions(context: StageContext) -> Callable[[str], Arrays]:
    """Label maps of `refine.build_predictions`; the CRF of variant "crf" runs on the image as published."""
    return refine.build_predictions(context, {"crf": mean_subtracted})


def load_networks(context: StageContext, epoch: int) -> list[nn.Module]:
    """Both networks of an epoch (0: the last one) in evaluation mode on the stage's device."""
    networks = []
    for name in NETWORKS:
        network = build_segmentation_network(context.config.network, context.data.num_classes)
        network.load_state_dict(read_weights(context.inputs["weights"], name, epoch))
        networks.append(network.to(context.device).eval())
    return networks


@torch.no_grad()
def base_scores(networks: Sequence[nn.Module], images: Tensor) -> Tensor:
    """Mean of the networks' `pre_logits`: images (N, 3, H, W) to float32 (N, C, H/s, W/s).

    The networks must be in evaluation mode; each returns (pre_logits, logits).
    """
    total = networks[0](images)[0].float()
    for network in networks[1:]:
        total = total + network(images)[0].float()
    return total / len(networks)


def mean_subtracted(image: np.ndarray) -> np.ndarray:
    """The uint8 (H, W, 3) image that the published CRF compares colours in, of the RGB image.

    The mean colour is subtracted and negative values wrap around modulo 256, an accident of the official program that
    the published number has gone through. The cast is spelled out, because casting a negative float to uint8 is not
    defined.
    """
    shifted = np.trunc(image.astype(np.float64) - np.array(CRF_IMAGE_MEAN))
    return np.mod(shifted.astype(np.int64), 256).astype(np.uint8)


def prediction_config(settings: CrfSettings) -> PredictionConfig:
    """From the recipe's section; one run of the CRF scores every number of steps up to the larger of its two."""
    if not settings.enabled:
        return PredictionConfig(None, ())
    crf = DenseCrfSettings(
        iterations=max(settings.iterations, settings.scored_iterations),
        gaussian_sxy=settings.pos_xy_std,
        gaussian_compat=settings.pos_w,
        bilateral_sxy=settings.bi_xy_std,
        bilateral_srgb=settings.bi_rgb_std,
        bilateral_compat=settings.bi_w,
    )
    return PredictionConfig(crf, crf_variants(settings))


def crf_variants(settings: CrfSettings) -> tuple[str, ...]:
    """Endings of the CRF's metric names: "crf" (image as published) and "crf_raw" (the picture itself)."""
    if not settings.enabled:
        return ()
    return {"wrapped": ("crf",), "raw": ("crf_raw",), "both": ("crf", "crf_raw")}[settings.image]


def _parameters(networks: list[nn.Module], head: bool) -> list[nn.Parameter]:
    """Parameters in the backbones, or in what stands on them."""
    return [
        parameter
        for network in networks
        for name, parameter in network.named_parameters()
        if name.startswith("backbone.") != head
    ]


def _pair(values: tuple[float, ...]) -> tuple[float, float]:
    return values[0], values[1]
