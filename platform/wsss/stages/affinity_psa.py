"""Affinities from feature distances as in PSA: CRF scores, training of AffinityNet, affinities, random walk, labels.

Ahn and Kwak, 2018, sections 3.2 to 3.4; defaults as SEAM and its successors run it (YudeWang/SEAM).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from wsss.data.augment.color_jitter import PUBLISHED_JITTER, random_color_jitter
from wsss.data.augment.rescaled_crop import CanvasCrop, sample_canvas_crop
from wsss.data.transforms import channels_first, mirror, normalize
from wsss.evaluation.confusion import confusion_matrix
from wsss.evaluation.counts import Counts
from wsss.nn.affinity_net import (
    AFFINITY_BACKBONES,
    NEW_LAYERS,
    AffinityNet,
    MobileAffinityNet,
    build_affinity_net,
    parameter_groups,
)
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
    walked_label_by_crf,
)
from wsss.ops.cam import class_ids
from wsss.ops.crf import DenseCrf, DenseCrfSettings, unary_from_probabilities
from wsss.ops.random_walk import DirectionAffinity
from wsss.pipeline import Arrays, MapStage, Reads, ReduceStage, Reduction, Stage, StageContext, TrainStage
from wsss.recipe import setting
from wsss.schedules import polynomial_decay
from wsss.stages.cam import read_high_res
from wsss.stages.score import (
    LabelScoreConfig,
    SummaryConfig,
    build_label_scorer,
    label_scores,
    scored_images,
    summarize_labels,
)
from wsss.train_task import Batch, OptimizerPlan, TrainTask

WEIGHTS = "affinity_network"
LOSS_WEIGHTS = {"background_positive": 0.25, "foreground_positive": 0.25, "negative": 0.5}
IMAGES: frozenset[Reads] = frozenset({"images"})
# What the official option does with the walked scores: one step.
WALK_CRF = DenseCrfSettings(1, 3, 3, 80, 13, 10)


@dataclass(frozen=True)
class FeatureAffinitySettings:
    """A recipe's section: the CRF scores that affinity labels come from, and the training of AffinityNet."""

    # The published powers, above 1, make the background small beside narrow maps. Wide maps ask for less than 1.
    crf_alpha_low: float = setting(4.0, minimum=0.05, maximum=100, help="power of background where classes are sure")
    crf_alpha_high: float = setting(24.0, minimum=0.05, maximum=100, help="power where the background is sure")
    crf_iterations: int = setting(10, minimum=1, maximum=50, help="mean field steps")
    crf_gaussian_sxy: float = setting(3.0, minimum=0.01, maximum=50, help="smoothness kernel: pixels")
    crf_gaussian_compat: float = setting(3.0, minimum=0, maximum=50, help="smoothness kernel: weight; 0: none")
    crf_bilateral_sxy: float = setting(80.0, minimum=0.01, maximum=500, help="appearance kernel: pixels")
    crf_bilateral_srgb: float = setting(13.0, minimum=0.01, maximum=100, help="appearance kernel: gray levels")
    crf_bilateral_compat: float = setting(10.0, minimum=0, maximum=50, help="appearance kernel: weight; 0: none")
    backbone: str = setting("resnet38", choices=AFFINITY_BACKBONES, help="ImageNet classifier that AffinityNet extends")
    width: float = setting(1.0, minimum=0.0625, maximum=2, help="width of the network; 1 takes published weights")
    normalization: str = setting(
        "frozen",
        choices=("frozen", "batch"),
        help="frozen: ImageNet statistics and first layers, never updated; batch: all trained, for random weights",
    )
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

    @property
    def crf(self) -> DenseCrfSettings:
        """Of the scores that the labels come from."""
        return DenseCrfSettings(
            iterations=self.crf_iterations,
            gaussian_sxy=self.crf_gaussian_sxy,
            gaussian_compat=self.crf_gaussian_compat,
            bilateral_sxy=self.crf_bilateral_sxy,
            bilateral_srgb=self.crf_bilateral_srgb,
            bilateral_compat=self.crf_bilateral_compat,
        )


@dataclass(frozen=True)
class FeatureWalkSettings:
    """A recipe's section: the random walk over the affinities."""

    alpha: float = setting(6.0, minimum=0.05, maximum=100, help="power of the background that walks along")
    beta: float = setting(8.0, minimum=1, maximum=32, help="power of the affinities")
    exp_times: int = setting(6, minimum=0, maximum=10, help="doublings of the number of steps")
    crf: bool = setting(False, help="one step of a dense CRF on the walked scores")


@dataclass(frozen=True)
class PowerCrfConfig:
    """The arrays that are made, the power of the background of each, and the CRF of all."""

    arrays: tuple[str, ...]
    alphas: tuple[float, ...]
    crf: DenseCrfSettings


@dataclass(frozen=True)
class CrfScoreConfig:
    """Arrays of scores whose labels are counted."""

    arrays: tuple[str, ...]


@dataclass(frozen=True)
class AffinityConfig:
    """The trained network and the reach of its pairs."""

    backbone: str
    width: float
    radius: int


@dataclass(frozen=True)
class WalkConfig:
    """Powers and length of the walk."""

    alpha: float
    beta: float
    exp_times: int


@dataclass(frozen=True)
class LabelConfig:
    """The CRF between the walk and its labels, if any."""

    crf: DenseCrfSettings | None


def build_power_crf(context: StageContext) -> Callable[[str], Arrays]:
    """Class maps of role "cam" with a power background after a CRF: float16 (1 + K, H, W) each, "keys" int64 (K,).

    The kernels of a picture are built once for all powers.
    """
    config: PowerCrfConfig = context.config

    def refined(name: str) -> Arrays:
        arrays = context.arrays("cam", name)
        cam = read_high_res(arrays)
        # One label leaves nothing to decide.
        crf = DenseCrf(context.data.image(name), 1 + len(cam), config.crf) if len(cam) else None
        found: dict[str, np.ndarray] = {"keys": arrays["keys"]}
        for array, alpha in zip(config.arrays, config.alphas, strict=True):
            scores = power_background_scores(cam, alpha)
            if crf is not None:
                scores = crf.marginals(unary_from_probabilities(scores))
            found[array] = scores.astype(np.float16)
        return found

    return refined


def crf_label(arrays: Arrays, array: str) -> np.ndarray:
    """The class of the largest score of an image of `build_power_crf`: uint8 (H, W), class ids."""
    return class_ids(arrays["keys"])[arrays[array].argmax(axis=0)]


def build_crf_scorer(context: StageContext) -> Callable[[str], Arrays]:
    """Map function (config CrfScoreConfig, scores in role "crf"): counts "confusion_<array>" of the labels of each."""
    config: CrfScoreConfig = context.config

    def score(name: str) -> Arrays:
        arrays, truth = context.arrays("crf", name), context.data.mask(name)
        found: dict[str, np.ndarray] = {}
        for array in config.arrays:
            label = crf_label(arrays, array)
            counts = Counts.of(confusion_matrix(truth, label, context.data.num_classes, context.data.ignore_index))
            found.update(counts.arrays(f"confusion_{array}"))
        return found

    return score


def summarize_crf(context: StageContext) -> Reduction:
    """Numbers of the labels of one array (config SummaryConfig, whose prefix is the array), as `label_scores`."""
    config: SummaryConfig = context.config
    artifact = context.inputs["confusions"]
    names = scored_images(artifact, context.stage)
    counts = {name: Counts.read(artifact.arrays(name), f"confusion_{config.prefix}") for name in names}
    return label_scores(config, counts, context)


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
    """Jittered crops with labels from the CRF scores "crf_low" and "crf_high" of role "crf"."""

    def __init__(self, context: StageContext) -> None:
        self.data, self.context = context.data, context
        self.config: FeatureAffinitySettings = context.config
        self.jitter = PUBLISHED_JITTER.scaled(self.config.color_jitter)

    def __len__(self) -> int:
        return len(self.data.names)

    def sample(self, index: int, rng: np.random.Generator) -> Batch:
        """image float32 (3, S, S), label uint8 (S / 8, S / 8), pairs float32 (3,): number of each of LOSS_WEIGHTS."""
        name, size = self.data.names[index], self.config.crop_size
        image = random_color_jitter(self.data.image(name), self.jitter, rng)
        scores = self.context.arrays("crf", name)
        low, high = (scores[f"crf_{level}"].astype(np.float32) for level in ("low", "high"))
        crop = sample_canvas_crop(rng, image.shape[0], image.shape[1], size)
        pixels, labels = training_pair(image, low, high, crop, mirrored=bool(rng.random() < 0.5))
        label = torch.from_numpy(labels)
        targets = affinity_targets(label[None], pair_index(self.config.radius, labels.shape), UNSURE)
        return {"image": torch.from_numpy(pixels), "label": label, "pairs": targets.counts()}


class FeatureAffinityTraining(nn.Module):
    """AffinityNet and its losses as sums over pairs."""

    def __init__(self, network: AffinityNet | MobileAffinityNet, radius: int) -> None:
        super().__init__()
        self.network = network
        self.radius = radius

    def forward(self, batch: Batch, epoch: int, step: int) -> dict[str, Tensor]:
        label = batch["label"]
        index = pair_index(self.radius, (label.shape[1], label.shape[2]))
        features = self.network.feature_map(batch["image"])
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
    network = build_affinity_net(config.backbone, config.width, cast(Any, config.normalization))
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
    network = build_affinity_net(config.backbone, config.width)
    path = context.inputs["weights"].path(f"{WEIGHTS}.pt")
    load_weights(network, read_checkpoint(path), where=str(path))
    network.to(context.device).eval()

    def affinity(name: str) -> Arrays:
        found = feature_affinity(image_features(network, context.data.image(name), context.device), config.radius)
        return {"affinity": found.values.numpy(), "directions": found.directions}

    return affinity


def image_features(network: AffinityNet | MobileAffinityNet, image: np.ndarray, device: str = "cpu") -> Tensor:
    """Features (448, h, w) of a picture uint8 (H, W, 3), padded to whole cells after normalization."""
    missing = [(0, -length % STRIDE) for length in image.shape[:2]]
    padded = channels_first(np.pad(normalize(image), [*missing, (0, 0)]))
    return network.feature_map(torch.from_numpy(padded)[None].to(device))[0]


def build_walk(context: StageContext) -> Callable[[str], Arrays]:
    """Class maps of role "cam" over affinities of role "affinity": "walk" float16 (1 + K, h, w), "keys" int64 (K,)."""
    config: WalkConfig = context.config

    def walk(name: str) -> Arrays:
        arrays, pairs = context.arrays("cam", name), context.arrays("affinity", name)
        affinity = DirectionAffinity(0, pairs["directions"], torch.from_numpy(pairs["affinity"]))
        walked = walk_with_background(read_high_res(arrays), affinity, config.alpha, config.beta, config.exp_times)
        return {"walk": walked.astype(np.float16), "keys": arrays["keys"]}

    return walk


def build_walked_label(context: StageContext) -> Callable[[str], Arrays]:
    """ "label" uint8 (H, W): the best class of the walk of role "random_walk", the background one of them."""
    config: LabelConfig = context.config

    def label(name: str) -> Arrays:
        arrays = context.arrays("random_walk", name)
        walk, keys = arrays["walk"].astype(np.float32), arrays["keys"]
        if config.crf is None:
            return {"label": walked_label(walk, keys, context.data.image_size(name))}
        image = context.data.image(name)
        return {"label": walked_label_by_crf(walk, keys, image, context.data.num_classes, config.crf)}

    return label


def power_crf_stage(
    name: str, crf: DenseCrfSettings, alphas: Mapping[str, float], *, cam_stage: str, image_list: str
) -> MapStage:
    """CRF scores of a CAM stage as of `wsss.stages.cam`; alphas: name of an array -> power of its background."""
    return MapStage(
        name=name,
        version=1,
        config=PowerCrfConfig(tuple(alphas), tuple(alphas.values()), crf),
        inputs={"cam": cam_stage},
        reads=IMAGES,
        image_list=image_list,
        build=build_power_crf,
    )


def affinity_crf_stage(
    settings: FeatureAffinitySettings, *, cam_stage: str, image_list: str, suffix: str = ""
) -> MapStage:
    """`crf<suffix>`: "crf_low" and "crf_high", which labels of affinities are made of."""
    alphas = {"crf_low": settings.crf_alpha_low, "crf_high": settings.crf_alpha_high}
    return power_crf_stage(f"crf{suffix}", settings.crf, alphas, cam_stage=cam_stage, image_list=image_list)


def crf_score_stages(split: str, suffix: str = "") -> list[Stage]:
    """`crf<suffix>_score` and `crf_low<suffix>_evaluation`, `crf_high<suffix>_evaluation`: labels of the CRF scores.

    split: the list that is scored, or a part of it. Metrics are `crf_low/miou_<split>` and `crf_high/miou_<split>`.
    """
    arrays = ("crf_low", "crf_high")
    return [
        MapStage(
            name=f"crf{suffix}_score",
            version=1,
            config=CrfScoreConfig(arrays),
            inputs={"crf": f"crf{suffix}"},
            reads=frozenset({"masks"}),
            image_list=split,
            build=build_crf_scorer,
        ),
        *(
            ReduceStage(
                name=f"{array}{suffix}_evaluation",
                version=1,
                config=SummaryConfig(prefix=array, split=split),
                inputs={"confusions": f"crf{suffix}_score"},
                compute=summarize_crf,
            )
            for array in arrays
        ),
    ]


def walked_label_stages(
    settings: FeatureAffinitySettings,
    walk: FeatureWalkSettings,
    *,
    cam_stage: str,
    image_list: str,
    split: str | None,
    suffix: str = "",
) -> list[Stage]:
    """`affinity<suffix>`, `random_walk<suffix>`, `pseudo_label<suffix>` ("label") of "affinity_train" on a list.

    split: the list, or a part of it, whose masks `pseudo_label<suffix>_score` and `pseudo_label<suffix>_evaluation`
    score the labels by; None: no score.
    """

    def mapped(name: str, config: Any, inputs: Mapping[str, str], build: Any, gpu: bool = False) -> MapStage:
        return MapStage(
            name=f"{name}{suffix}",
            version=1,
            config=config,
            inputs=inputs,
            reads=IMAGES,
            image_list=image_list,
            uses_gpu=gpu,
            build=build,
        )

    network = AffinityConfig(settings.backbone, settings.width, settings.radius)
    steps = WalkConfig(walk.alpha, walk.beta, walk.exp_times)
    affinity, walked, label = (f"{name}{suffix}" for name in ("affinity", "random_walk", "pseudo_label"))
    stages: list[Stage] = [
        mapped("affinity", network, {"weights": "affinity_train"}, build_affinity, gpu=True),
        mapped("random_walk", steps, {"cam": cam_stage, "affinity": affinity}, build_walk),
        mapped(
            "pseudo_label", LabelConfig(WALK_CRF if walk.crf else None), {"random_walk": walked}, build_walked_label
        ),
    ]
    if split is not None:
        stages += [
            MapStage(
                name=f"{label}_score",
                version=1,
                config=LabelScoreConfig(),
                inputs={"labels": label},
                reads=frozenset({"masks"}),
                image_list=split,
                build=build_label_scorer,
            ),
            ReduceStage(
                name=f"{label}_evaluation",
                version=1,
                config=SummaryConfig(prefix="pseudo_label", split=split),
                inputs={"confusions": f"{label}_score"},
                compute=summarize_labels,
            ),
        ]
    return stages


def feature_affinity_stages(
    settings: FeatureAffinitySettings,
    walk: FeatureWalkSettings,
    *,
    cam_stage: str,
    seed: int,
    image_list: str = "train_aug",
    split: str | None = "train",
    files: Mapping[str, Path] | None = None,
) -> list[Stage]:
    """Stages crf, affinity_train, and `walked_label_stages`, of one list.

    cam_stage: a stage as of `wsss.stages.cam`, its full-resolution maps in [0, 1]. files: "backbone": an ImageNet file.
    """
    return [
        affinity_crf_stage(settings, cam_stage=cam_stage, image_list=image_list),
        TrainStage(
            name="affinity_train",
            version=1,
            config=_without_crf(settings),
            inputs={"crf": "crf"},
            reads=IMAGES,
            image_list=image_list,
            files=files or {},
            uses_gpu=True,
            build=build_affinity_training,
            seed=seed,
            epochs=settings.num_epochs,
        ),
        *walked_label_stages(settings, walk, cam_stage=cam_stage, image_list=image_list, split=split),
    ]


def _without_crf(settings: FeatureAffinitySettings) -> FeatureAffinitySettings:
    """What the training itself depends on: scores of elsewhere have no setting of ours."""
    defaults = FeatureAffinitySettings()
    crf = [field.name for field in fields(settings) if field.name.startswith("crf_")]
    return replace(settings, **{name: getattr(defaults, name) for name in crf})
