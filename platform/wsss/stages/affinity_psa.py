"""Affinities from feature distances as in PSA: CRF scores, training of AffinityNet, affinities, random walk, labels.

Ahn and Kwak, 2018, sections 3.2 to 3.4; defaults as SEAM and its successors run it (YudeWang/SEAM).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from wsss.data.augment.color_jitter import PUBLISHED_JITTER, random_color_jitter
from wsss.data.augment.rescaled_crop import CanvasCrop, sample_canvas_crop
from wsss.data.transforms import channels_first, mirror, normalize
from wsss.nn.affinity_net import NEW_LAYERS, AffinityNet, parameter_groups
from wsss.nn.checkpoint import load_weights, read_checkpoint
from wsss.ops.affinity import affinity_targets, pair_loss_sums
from wsss.ops.affinity_psa import (
    STRIDE,
    UNSURE,
    affinity_label,
    feature_affinity,
    feature_pair_affinity,
    pair_index,
    pooled,
    power_background_scores,
    walk_with_background,
    walked_label,
)
from wsss.ops.crf import DenseCrfSettings, refine_probabilities
from wsss.ops.random_walk import DirectionAffinity
from wsss.pipeline import Arrays, MapStage, Reads, Stage, StageContext, TrainStage
from wsss.recipe import setting
from wsss.schedules import polynomial_decay
from wsss.stages.cam import read_high_res
from wsss.train_task import Batch, OptimizerPlan, TrainTask

WEIGHTS = "affinity_network"
LOSS_WEIGHTS = {"background_positive": 0.25, "foreground_positive": 0.25, "negative": 0.5}
IMAGES: frozenset[Reads] = frozenset({"images"})


@dataclass(frozen=True)
class FeatureAffinitySettings:
    """A recipe's section: the CRF scores that affinity labels come from, and the training of AffinityNet."""

    crf_alpha_low: float = setting(4.0, minimum=1, maximum=100, help="power of the background where classes are sure")
    crf_alpha_high: float = setting(24.0, minimum=1, maximum=100, help="power where the background is sure")
    crf_iterations: int = setting(10, minimum=1, maximum=50, help="mean field steps")
    width: float = setting(1.0, minimum=0.0625, maximum=2, help="width of Wide-ResNet-38; 1 takes published weights")
    radius: int = setting(5, minimum=2, maximum=10, help="pairs lie closer than this, in cells of 8 pixels")
    crop_size: int = setting(448, minimum=64, maximum=1024, multiple_of=8, help="side of a training crop")
    batch_size: int = setting(8, minimum=1, maximum=256, help="images in a step, over all workers")
    num_epochs: int = setting(8, minimum=1, maximum=500, help="passes over the training images")
    learning_rate: float = setting(0.01, above=0, maximum=1, help="SGD rate of the backbone")
    head_lr_mult: float = setting(10.0, minimum=1, maximum=100, help="factor for the new layers")
    # The official optimizer is handed the weight decay in the place of the momentum.
    momentum: float = setting(5e-4, minimum=0, maximum=0.999, help="SGD momentum")
    weight_decay: float = setting(5e-4, minimum=0, maximum=0.1, help="SGD weight decay")
    lr_power: float = setting(0.9, minimum=0.1, maximum=3, help="power of the polynomial schedule")
    color_jitter: float = setting(1.0, minimum=0, maximum=2, help="factor on the published color jitter; 0: none")
    precision: str = setting("float32", choices=("float32", "amp"), help="amp: mixed precision on a GPU")


@dataclass(frozen=True)
class FeatureWalkSettings:
    """A recipe's section: the random walk over the affinities."""

    alpha: float = setting(6.0, minimum=1, maximum=100, help="power of the background that walks along")
    beta: float = setting(8.0, minimum=1, maximum=32, help="power of the affinities")
    exp_times: int = setting(6, minimum=0, maximum=10, help="doublings of the number of steps")


@dataclass(frozen=True)
class PowerCrfConfig:
    """Power of the background, and the CRF."""

    alpha: float
    crf: DenseCrfSettings


@dataclass(frozen=True)
class AffinityConfig:
    """The trained network and the reach of its pairs."""

    width: float
    radius: int


@dataclass(frozen=True)
class LabelConfig:
    """Nothing to choose: the class with the largest score."""


def build_power_crf(context: StageContext) -> Callable[[str], Arrays]:
    """Class maps of role "cam" with a power background after a CRF: "crf" float16 (1 + K, H, W), "keys" (K,)."""
    config: PowerCrfConfig = context.config

    def refined(name: str) -> Arrays:
        arrays, image = context.inputs["cam"].arrays(name), context.data.image(name)
        scores = power_background_scores(read_high_res(arrays), config.alpha)
        if len(scores) > 1:  # one label leaves nothing to decide
            scores = refine_probabilities(image, scores, config.crf)
        return {"crf": scores.astype(np.float16), "keys": arrays["keys"]}

    return refined


def training_pair(
    image: np.ndarray, low: np.ndarray, high: np.ndarray, crop: CanvasCrop, mirrored: bool
) -> tuple[np.ndarray, np.ndarray]:
    """A crop and the labels of its cells: float32 (3, S, S), uint8 (S / 8, S / 8), positions among the classes or 255.

    image uint8 (H, W, 3), padded with black; low, high float32 (1 + K, H, W), see `affinity_label`, padded with 0.
    """
    pixels = normalize(crop.apply(image, 0))
    scores = [crop.apply(maps.transpose(1, 2, 0), 0) for maps in (low, high)]
    if mirrored:
        pixels, scores = mirror(pixels), [mirror(maps) for maps in scores]
    return channels_first(pixels), affinity_label(*(pooled(channels_first(maps)) for maps in scores))


class FeatureAffinitySamples:
    """Jittered crops with labels from the CRF scores of roles "low" and "high"."""

    def __init__(self, context: StageContext) -> None:
        self.data, self.inputs = context.data, context.inputs
        self.config: FeatureAffinitySettings = context.config
        self.jitter = PUBLISHED_JITTER.scaled(self.config.color_jitter)

    def __len__(self) -> int:
        return len(self.data.names)

    def sample(self, index: int, rng: np.random.Generator) -> Batch:
        """image float32 (3, S, S), label uint8 (S / 8, S / 8), pairs float32 (3,): number of each of LOSS_WEIGHTS."""
        name, size = self.data.names[index], self.config.crop_size
        image = random_color_jitter(self.data.image(name), self.jitter, rng)
        low, high = (self.inputs[role].arrays(name)["crf"].astype(np.float32) for role in ("low", "high"))
        crop = sample_canvas_crop(rng, image.shape[0], image.shape[1], size)
        pixels, labels = training_pair(image, low, high, crop, mirrored=bool(rng.random() < 0.5))
        label = torch.from_numpy(labels)
        targets = affinity_targets(label[None], pair_index(self.config.radius, labels.shape), UNSURE)
        return {"image": torch.from_numpy(pixels), "label": label, "pairs": targets.counts()}


class FeatureAffinityTraining(nn.Module):
    """AffinityNet and its losses as sums over pairs."""

    def __init__(self, network: AffinityNet, radius: int) -> None:
        super().__init__()
        self.network = network
        self.radius = radius

    def forward(self, batch: Batch, epoch: int, step: int) -> dict[str, Tensor]:
        label = batch["label"]
        index = pair_index(self.radius, (label.shape[1], label.shape[2]))
        features = self.network.features(batch["image"])
        with torch.autocast(features.device.type, enabled=False):
            precise = features.to(torch.promote_types(features.dtype, torch.float32))
            targets = affinity_targets(label, index, UNSURE)
            return pair_loss_sums(feature_pair_affinity(precise, index), targets)


def affinity_denominators(batch: Batch) -> dict[str, Tensor]:
    """Pairs of each kind, without the published 1e-5, which every worker would add."""
    return dict(zip(LOSS_WEIGHTS, batch["pairs"].double().sum(dim=0).unbind(), strict=True))


def build_affinity_training(context: StageContext) -> TrainTask:
    """AffinityNet on the labels of two CRFs; file "backbone": an ImageNet file."""
    config: FeatureAffinitySettings = context.config
    network = AffinityNet(config.width)
    if "backbone" in context.files:
        network.load_backbone(context.files["backbone"])
    groups = parameter_groups(network, NEW_LAYERS, config.learning_rate, config.weight_decay, config.head_lr_mult)
    optimizer = torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum)
    return TrainTask(
        module=FeatureAffinityTraining(network, config.radius),
        denominators=affinity_denominators,
        loss_weights=LOSS_WEIGHTS,
        optimizers=(OptimizerPlan("affinity", optimizer, partial(polynomial_decay, power=config.lr_power)),),
        samples=FeatureAffinitySamples(context),
        epochs=config.num_epochs,
        global_batch=config.batch_size,
        trained_weights=lambda: {WEIGHTS: network.state_dict()},
        precision=cast(Any, config.precision),
    )


def build_affinity(context: StageContext) -> Callable[[str], Arrays]:
    """ "affinity" float32 (directions, h, w) by source, "directions" int64 (directions, 2), of cells of 8 pixels."""
    config: AffinityConfig = context.config
    network = AffinityNet(config.width)
    path = context.inputs["weights"].path(f"{WEIGHTS}.pt")
    load_weights(network, read_checkpoint(path), where=str(path))
    network.to(context.device).eval()

    def affinity(name: str) -> Arrays:
        found = feature_affinity(image_features(network, context.data.image(name), context.device), config.radius)
        return {"affinity": found.values.numpy(), "directions": found.directions}

    return affinity


def image_features(network: AffinityNet, image: np.ndarray, device: str = "cpu") -> Tensor:
    """Features (448, h, w) of a picture uint8 (H, W, 3), padded to whole cells after normalization."""
    missing = [(0, -length % STRIDE) for length in image.shape[:2]]
    padded = channels_first(np.pad(normalize(image), [*missing, (0, 0)]))
    return network.features(torch.from_numpy(padded)[None].to(device))[0]


def build_walk(context: StageContext) -> Callable[[str], Arrays]:
    """Class maps of role "cam" over affinities of role "affinity": "walk" float16 (1 + K, h, w), "keys" int64 (K,)."""
    config: FeatureWalkSettings = context.config

    def walk(name: str) -> Arrays:
        arrays, pairs = context.inputs["cam"].arrays(name), context.inputs["affinity"].arrays(name)
        affinity = DirectionAffinity(0, pairs["directions"], torch.from_numpy(pairs["affinity"]))
        walked = walk_with_background(read_high_res(arrays), affinity, config.alpha, config.beta, config.exp_times)
        return {"walk": walked.astype(np.float16), "keys": arrays["keys"]}

    return walk


def build_walked_label(context: StageContext) -> Callable[[str], Arrays]:
    """ "label" uint8 (H, W): the best class of the walk of role "random_walk", the background one of them."""

    def label(name: str) -> Arrays:
        arrays, size = context.inputs["random_walk"].arrays(name), context.data.image_size(name)
        return {"label": walked_label(arrays["walk"].astype(np.float32), arrays["keys"], size)}

    return label


def feature_affinity_stages(
    settings: FeatureAffinitySettings,
    walk: FeatureWalkSettings,
    *,
    cam_stage: str,
    seed: int,
    image_list: str = "train_aug",
    files: Mapping[str, Path] | None = None,
) -> list[Stage]:
    """Stages crf_low, crf_high, affinity_train, affinity, random_walk, pseudo_label ("label") of one list.

    cam_stage: a stage as of `wsss.stages.cam`, its full-resolution maps in [0, 1]. files: "backbone": an ImageNet file.
    """
    crf = DenseCrfSettings(settings.crf_iterations, 3, 3, 80, 13, 10)

    def mapped(name: str, config: Any, inputs: Mapping[str, str], build: Any, gpu: bool = False) -> MapStage:
        return MapStage(
            name=name,
            version=1,
            config=config,
            inputs=inputs,
            reads=IMAGES,
            image_list=image_list,
            uses_gpu=gpu,
            build=build,
        )

    network = AffinityConfig(settings.width, settings.radius)
    alphas = {"low": settings.crf_alpha_low, "high": settings.crf_alpha_high}
    return [
        *(
            mapped(f"crf_{level}", PowerCrfConfig(alpha, crf), {"cam": cam_stage}, build_power_crf)
            for level, alpha in alphas.items()
        ),
        TrainStage(
            name="affinity_train",
            version=1,
            config=settings,
            inputs={"low": "crf_low", "high": "crf_high"},
            reads=IMAGES,
            image_list=image_list,
            files=files or {},
            uses_gpu=True,
            build=build_affinity_training,
            seed=seed,
            epochs=settings.num_epochs,
        ),
        mapped("affinity", network, {"weights": "affinity_train"}, build_affinity, gpu=True),
        mapped("random_walk", walk, {"cam": cam_stage, "affinity": "affinity"}, build_walk),
        mapped("pseudo_label", LabelConfig(), {"random_walk": "random_walk"}, build_walked_label),
    ]
