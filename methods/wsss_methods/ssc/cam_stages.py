"""Stages S0 to S2: superpixels, CAM training, CAM inference and its score (SSC, section 2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from wsss.data.superpixels import rgb_to_ids, slic_superpixels
from wsss.data.transforms import resize, resize_long
from wsss.nn.checkpoint import load_imagenet_body, load_weights, read_checkpoint
from wsss.ops.cam import merged_cam, merged_high_res
from wsss.pipeline import Arrays, StageContext
from wsss.recipe import setting
from wsss.stages.score import curve_scorer
from wsss.train_task import Batch, OptimizerPlan, TrainTask
from wsss_methods.ssc.cam_transforms import cam_inputs, cam_training_sample
from wsss_methods.ssc.losses import (
    AlignmentSettings,
    Features,
    alignment_count,
    alignment_loss,
    classification_loss,
    perceptual_loss,
)
from wsss_methods.ssc.networks import CamNetwork, Normalization, ReconstructionDecoder, class_scores
from wsss_methods.ssc.optimizers import cam_optimizer, decoder_optimizer, polynomial_schedule
from wsss_methods.ssc.perceptual import build_perceptual_features
from wsss_methods.ssc.recipe import CamSettings, SuperpixelSettings

_SCALE = "scale_"


@dataclass(frozen=True)
class SuperpixelFolderConfig:
    """Superpixels that are read: `content` is the folder's digest and enters the key, its place does not."""

    folder: Path = setting(Path(), in_key=False)
    content: str = setting("")


@dataclass(frozen=True)
class CamConfig:
    """The network that was trained, and the input scales."""

    network: CamSettings
    scales: tuple[float, ...]


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


def build_superpixels(context: StageContext) -> Callable[[str], Arrays]:
    """S0 by SLIC: "ids" int32 (H, W) (SSC, section 3, the default where the official archive is absent)."""
    config: SuperpixelSettings = context.config

    def superpixels(name: str) -> Arrays:
        image = context.data.image(name)
        height, width = image.shape[:2]
        reduced = image
        if config.max_side and max(height, width) > config.max_side:
            reduced = resize_long(image, config.max_side, "bicubic")
        ids = slic_superpixels(reduced, config.segments, config.compactness)
        return {"ids": resize(ids, (height, width), "nearest")}

    return superpixels


def build_superpixel_reader(context: StageContext) -> Callable[[str], Arrays]:
    """S0 from the official PNG files: "ids" int32 (H, W)."""
    config: SuperpixelFolderConfig = context.config

    def superpixels(name: str) -> Arrays:
        with Image.open(config.folder / f"{name}.png") as picture:
            ids = rgb_to_ids(np.array(picture.convert("RGB")))
        return {"ids": resize(ids, context.data.image_size(name), "nearest")}

    return superpixels


class CamSamples:
    """Augmented training crops of S1 (SSC, section 3.1)."""

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
    """S1: the classifier by SGD and the decoder by Adam, both on the sum of the losses (SSC, section 7)."""
    config: CamSettings = context.config
    network = build_cam_network(config, context.data.num_classes)
    if "backbone" in context.files:
        load_imagenet_body(cast(nn.Module, network.body), context.files["backbone"])
    plans = [
        OptimizerPlan(
            "classifier",
            cam_optimizer(
                network, config.learning_rate, config.classifier_lr_mult, config.momentum, config.weight_decay
            ),
            polynomial_schedule(config.lr_power),
        )
    ]
    decoder, features = None, cast(Features, None)
    if config.loss_weight_perceptual:
        decoder = ReconstructionDecoder(network.num_classes, config.decoder_width)
        features = build_perceptual_features(config.perceptual_network, context.files.get("perceptual"), context.device)
        optimizer = decoder_optimizer(decoder, config.rec_learning_rate, config.rec_adam_beta1)
        plans.append(OptimizerPlan("decoder", optimizer, polynomial_schedule(config.lr_power)))
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


def build_cam(context: StageContext) -> Callable[[str], Arrays]:
    """S2: maps of the present classes at every scale (SSC, section 6.1).

    Returns "keys" int64 (K,) class ids, 1-based; "cam" float16 (K, ceil(H/4), ceil(W/4)) in [0, 1); "size" int64
    (H, W); and "scale_<i>" float16 (K, h_i, w_i), the raw maps of scale i, from which `read_high_res` rebuilds
    the full-resolution maps.
    """
    config: CamConfig = context.config
    network = build_cam_network(config.network, context.data.num_classes)
    path = context.inputs["weights"].path("cam_network.pt")
    load_weights(network, read_checkpoint(path), aliases=network.aliases(), where=str(path))
    network.to(context.device).eval()

    def cam(name: str) -> Arrays:
        image = context.data.image(name)
        size = (image.shape[0], image.shape[1])
        outputs = [
            network.infer(torch.from_numpy(pair).to(context.device)).float().cpu()
            for pair in cam_inputs(image, config.scales)
        ]
        present = np.flatnonzero(context.data.image_labels(name))
        arrays = {f"{_SCALE}{i}": maps[present].numpy().astype(np.float16) for i, maps in enumerate(outputs)}
        return {
            **arrays,
            "keys": (present + 1).astype(np.int64),
            "cam": merged_cam(outputs, present, size).astype(np.float16),
            "size": np.array(size, dtype=np.int64),
        }

    return cam


def read_high_res(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Full-resolution maps float32 (K, H, W) in [0, 1) of one image of the `cam` artifact.

    Rebuilt from the raw maps of every scale, or as they are where an imported CAM folder holds them.
    """
    if "high_res" in arrays:
        return arrays["high_res"].astype(np.float32)
    scales = [
        torch.from_numpy(arrays[name].astype(np.float32))
        for name in sorted(arrays, key=lambda name: (len(name), name))
        if name.startswith(_SCALE)
    ]
    height, width = (int(length) for length in arrays["size"])
    return merged_high_res(scales, np.arange(len(arrays["keys"])), (height, width))


def build_cam_score(context: StageContext) -> Callable[[str], Arrays]:
    """S2e: confusion matrices of the full-resolution CAM at every threshold (SSC, section 8)."""
    artifact = context.inputs["cam"]

    def read(name: str) -> tuple[np.ndarray, np.ndarray]:
        arrays = artifact.arrays(name)
        return read_high_res(arrays), arrays["keys"]

    return curve_scorer(context, read)
