"""Affinity network of IRN as stages: its labels, its training, displacements and edge maps.

Ahn, Cho, Kwak, "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations", 2019; official files
`step/cam_to_ir_label.py`, `step/train_irn.py` and `net/resnet50_irn.py`.
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
from torch.nn import functional

from wsss.data.augment.rescaled_crop import UNSURE, affinity_training_sample
from wsss.data.transforms import channels_first, normalize
from wsss.nn.backbones import BACKBONES
from wsss.nn.checkpoint import load_imagenet_body, load_weights, read_checkpoint
from wsss.nn.irn import AffinityNetwork, build_affinity_network
from wsss.ops.affinity import LOSS_WEIGHTS, affinity_loss_sums, affinity_targets
from wsss.ops.affinity_path import path_index
from wsss.ops.cam import class_ids, strided_size, thresholded_argmax
from wsss.ops.crf import DenseCrfSettings, refine_labels
from wsss.pipeline import Arrays, MapStage, Reads, Stage, StageContext, TrainStage
from wsss.recipe import setting
from wsss.schedules import polynomial_decay
from wsss.stages.cam import read_high_res
from wsss.train_task import Batch, OptimizerPlan, TrainTask

STRIDE = 4
_PADDING_MULTIPLE = 16


@dataclass(frozen=True)
class IrLabelConfig:
    """Labels for the affinity network, from two thresholds and a dense CRF each: a recipe's section and the config."""

    conf_fg_thres: float = setting(0.30, minimum=0.02, maximum=0.9, help="background constant for sure objects")
    conf_bg_thres: float = setting(0.10, minimum=0.005, maximum=0.5, help="background constant for sure background")
    crf_iterations: int = setting(10, minimum=1, maximum=50, help="mean field steps")
    crf_gt_prob: float = setting(0.7, minimum=0.5, below=1, help="trust in the labels that enter the CRF")
    crf_gaussian_sxy: float = setting(3.0, minimum=0.01, maximum=20, help="pixels")
    crf_gaussian_compat: float = setting(3.0, minimum=0, maximum=20, help="weight of the smoothness term")
    crf_bilateral_sxy: float = setting(50.0, minimum=0.01, maximum=300, help="pixels")
    crf_bilateral_srgb: float = setting(5.0, minimum=0.01, maximum=100, help="grey levels")
    crf_bilateral_compat: float = setting(10.0, minimum=0, maximum=50, help="weight of the appearance term")

    def check(self) -> list[str]:
        """Relations between settings."""
        if self.conf_bg_thres >= self.conf_fg_thres:
            return [f"conf_bg_thres = {self.conf_bg_thres} must lie below conf_fg_thres = {self.conf_fg_thres}"]
        return []


@dataclass(frozen=True)
class AffinityConfig:
    """Training of the affinity network: a recipe's section and the config of the stage."""

    backbone: str = setting("resnet50", choices=BACKBONES, help="frozen ImageNet network of the features")
    width: float = setting(1.0, minimum=0.125, maximum=2, help="width of the backbone; 1 takes ImageNet weights")
    head_width: float = setting(1.0, minimum=0.125, maximum=2, help="width of the edge and displacement heads")
    train_backbone: bool = setting(
        False, help="train the backbone too, with batch statistics: for networks without ImageNet weights"
    )
    crop_size: int = setting(512, minimum=64, maximum=1024, multiple_of=16, help="side of a training crop")
    batch_size: int = setting(16, minimum=1, maximum=256, help="images in a step, over all workers")
    num_epochs: int = setting(3, minimum=1, maximum=100, help="passes over the training images")
    learning_rate: float = setting(0.1, above=0, maximum=1, help="SGD rate of the edge layers")
    dp_lr_mult: float = setting(10.0, minimum=1, maximum=100, help="factor for the displacement layers")
    weight_decay: float = setting(1e-4, minimum=0, maximum=0.1, help="SGD weight decay")
    # 1e-4, not 0.9: the official `misc/torchutils.py` hands its optimizer the weight decay as the momentum.
    momentum: float = setting(1e-4, minimum=0, maximum=0.99, help="SGD momentum; lower the rate with 0.9")
    lr_power: float = setting(0.9, minimum=0.1, maximum=3, help="power of the polynomial schedule")
    rescale_min: float = setting(0.5, minimum=0.1, maximum=2, help="smallest scale of a training image")
    rescale_max: float = setting(1.5, minimum=0.1, maximum=4, help="largest scale of a training image")
    path_radius: int = setting(10, minimum=2, maximum=20, help="radius of the pairs, in positions of stride 4")
    displacement_mean: bool = setting(
        False, help="also measure the mean displacement, which only the official checkpoint layout needs"
    )
    precision: str = setting("float32", choices=("float32", "amp"), help="amp: mixed precision on a GPU")

    def check(self) -> list[str]:
        """Relations between settings."""
        problems = []
        if self.rescale_min > self.rescale_max:
            problems.append(f"rescale_min = {self.rescale_min} is above rescale_max = {self.rescale_max}")
        if self.crop_size // 4 < 2 * self.path_radius:
            problems.append(
                f"path_radius = {self.path_radius} does not fit a crop of {self.crop_size}"
                f" ({self.crop_size // 4} positions)"
            )
        return problems


@dataclass(frozen=True)
class AffinityNetworkConfig:
    """What the affinity network is built from."""

    backbone: str
    width: float
    head_width: float
    train_backbone: bool

    @classmethod
    def of(cls, settings: AffinityConfig) -> AffinityNetworkConfig:
        """From the recipe's section."""
        return cls(settings.backbone, settings.width, settings.head_width, settings.train_backbone)

    def build(self) -> AffinityNetwork:
        """With random weights in the heads."""
        return build_affinity_network(
            self.backbone, self.width, train_backbone=self.train_backbone, head_width=self.head_width
        )


@dataclass(frozen=True)
class DisplacementConfig:
    """The network and the crop of the displacement mean."""

    network: AffinityNetworkConfig
    crop_size: int


@dataclass(frozen=True)
class EdgeConfig:
    """The network and the square that images are padded to."""

    network: AffinityNetworkConfig
    input_size: int


def build_ir_label(context: StageContext) -> Callable[[str], Arrays]:
    """Map function (config IrLabelConfig, maps in role "cam"): "label" uint8 (H, W), see `ir_label`."""
    config: IrLabelConfig = context.config

    def label(name: str) -> Arrays:
        arrays = context.arrays("cam", name)
        return {"label": ir_label(context.data.image(name), read_high_res(arrays), arrays["keys"], config).label}

    return label


@dataclass(frozen=True)
class IrLabel:
    """Label of the affinity network and what leads to it; uint8 (H, W) each.

    label: class ids, 0 sure background, 255 unsure. foreground_argmax, foreground_crf: indices into
    (background, keys...) before and after the CRF of the foreground threshold.
    """

    label: np.ndarray
    foreground_argmax: np.ndarray
    foreground_crf: np.ndarray


def ir_label(image: np.ndarray, high_res: np.ndarray, keys: np.ndarray, config: IrLabelConfig) -> IrLabel:
    """Three-state label for the affinity network: sure classes, sure background 0, unsure 255.

    image uint8 (H, W, 3), high_res float32 (K, H, W), keys (K,) class ids. Both thresholds share one CRF's kernels.
    """
    indices = np.arange(1, len(keys) + 1)
    thresholds = (config.conf_fg_thres, config.conf_bg_thres)
    argmax = [thresholded_argmax(high_res, indices, threshold) for threshold in thresholds]
    crf = DenseCrfSettings(
        **{kernel.name: getattr(config, f"crf_{kernel.name}") for kernel in fields(DenseCrfSettings)}
    )
    refined = refine_labels(image, argmax, len(keys) + 1, config.crf_gt_prob, crf)
    foreground, background = (labels.astype(np.uint8) for labels in refined)
    label = class_ids(keys)[foreground]
    label[foreground == 0] = UNSURE
    label[(foreground == 0) & (background == 0)] = 0
    return IrLabel(label, argmax[0], foreground)


class AffinitySamples:
    """Augmented training crops with their quartered labels."""

    def __init__(self, context: StageContext) -> None:
        self.data = context.data
        self.context = context
        self.config: AffinityConfig = context.config

    def __len__(self) -> int:
        return len(self.data.names)

    def sample(self, index: int, rng: np.random.Generator) -> Batch:
        """image float32 (3, S, S), label int16 (S/4, S/4), pairs float32 (3,): as of `AffinityTargets.counts`."""
        name = self.data.names[index]
        crop = affinity_training_sample(
            self.data.image(name),
            self.context.arrays("ir_label", name)["label"],
            rng,
            crop_size=self.config.crop_size,
            rescale_min=self.config.rescale_min,
            rescale_max=self.config.rescale_max,
        )
        label = torch.from_numpy(crop.label.astype(np.int16))
        index_of_paths = path_index(self.config.path_radius, (label.shape[0], label.shape[1]))
        targets = affinity_targets(label[None], index_of_paths, self.data.num_classes)
        return {"image": torch.from_numpy(crop.image), "label": label, "pairs": targets.counts()}


class AffinityTraining(nn.Module):
    """The affinity network and the losses of a step, as sums over pairs."""

    def __init__(self, network: AffinityNetwork, radius: int, num_classes: int) -> None:
        super().__init__()
        self.network = network
        self.radius = radius
        self.num_classes = num_classes

    def forward(self, batch: Batch, epoch: int, step: int) -> dict[str, Tensor]:
        label = batch["label"]
        index = path_index(self.radius, (label.shape[1], label.shape[2]))
        edge, displacement = self.network(batch["image"])
        targets = affinity_targets(label, index, self.num_classes)
        return affinity_loss_sums(edge, displacement, targets, index)


def affinity_denominators(batch: Batch) -> dict[str, Tensor]:
    """Pairs of each kind, twice for the displacement's two components, from the counts in the batch.

    Without the 1e-5 of the published ratio, which every worker would add: it is below rounding unless there is no
    pair at all, and then the loss is 0 either way.
    """
    background, foreground, negative = batch["pairs"].double().sum(dim=0).unbind()
    return {
        "background_positive": background,
        "foreground_positive": foreground,
        "negative": negative,
        "displacement_foreground": 2 * foreground,
        "displacement_background": 2 * background,
    }


def build_affinity_training(context: StageContext) -> TrainTask:
    """Edge and displacement heads on a frozen ImageNet backbone of their own."""
    config: AffinityConfig = context.config
    network = AffinityNetworkConfig.of(config).build()
    if "backbone" in context.files:
        load_imagenet_body(network.get_submodule(network.backbone_name), context.files["backbone"])
    optimizer = affinity_optimizer(network, config)
    return TrainTask(
        module=AffinityTraining(network, config.path_radius, context.data.num_classes),
        denominators=affinity_denominators,
        loss_weights=LOSS_WEIGHTS,
        optimizers=(OptimizerPlan("affinity", optimizer, partial(polynomial_decay, power=config.lr_power)),),
        samples=AffinitySamples(context),
        epochs=config.num_epochs,
        global_batch=config.batch_size,
        trained_weights=lambda: {"affinity_network": network.state_dict()},
        precision=cast(Any, config.precision),
    )


def affinity_optimizer(network: AffinityNetwork, config: AffinityConfig) -> torch.optim.SGD:
    """SGD with edge heads at the base rate and displacement heads at `dp_lr_mult` times it.

    A trained backbone joins the edge heads' group.
    """
    displacement = network.displacement_parameters()
    known = {id(parameter) for parameter in displacement}
    edge = [p for p in network.parameters() if p.requires_grad and id(p) not in known]
    rate = config.learning_rate
    groups = [{"params": edge, "lr": rate}, {"params": displacement, "lr": rate * config.dp_lr_mult}]
    return torch.optim.SGD(groups, lr=rate, momentum=config.momentum, weight_decay=config.weight_decay)


def build_affinity_displacement(context: StageContext) -> Callable[[str], Arrays]:
    """Mean displacement of each image, "displacement" float32 (2,): (dy, dx).

    Images are cut or zero-padded at the right and bottom to the training crop. The mean over images is what the
    official checkpoint stores as `mean_shift.running_mean`.
    """
    config: DisplacementConfig = context.config
    network = _trained_network(context, config.network)

    def displacement(name: str) -> Arrays:
        planes = channels_first(normalize(context.data.image(name)))[:, : config.crop_size, : config.crop_size]
        padded = np.zeros((3, config.crop_size, config.crop_size), dtype=np.float32)
        padded[:, : planes.shape[1], : planes.shape[2]] = planes
        field = network(torch.from_numpy(padded)[None].to(context.device))[1][0]
        return {"displacement": field.float().mean(dim=(1, 2)).cpu().numpy()}

    return displacement


def build_edge(context: StageContext) -> Callable[[str], Arrays]:
    """Map function (config EdgeConfig): "edge" float32 (ceil(H/4), ceil(W/4)), probabilities.

    Not halved to float16: the walk takes products of hundreds of them.
    """
    config: EdgeConfig = context.config
    network = _trained_network(context, config.network)

    def edge(name: str) -> Arrays:
        planes = torch.from_numpy(channels_first(normalize(context.data.image(name))))
        return {"edge": padded_affinity_forward(network, planes, config.input_size)[0][0].cpu().numpy()}

    return edge


@torch.no_grad()
def padded_affinity_forward(network: nn.Module, planes: Tensor, crop_size: int = 512) -> tuple[Tensor, Tensor]:
    """Affinity network on a padded image and its mirror.

    The image is padded with zeros at the right and bottom to `crop_size`; the padding matters, because the network's
    normalization sees it. A side longer than `crop_size` is padded to a multiple of 16 instead (the published
    program would cut it, which never happens on VOC).

    Args:
        network: affinity network in evaluation mode, on any device.
        planes: normalized image (3, H, W).

    Returns:
        edge (1, h, w): probabilities from the mean of the logits of image and mirror; displacement (2, h, w) of the
        image. (h, w) is the image size divided by 4, rounded up.
    """
    height, width = planes.shape[1:]
    padded = [max(crop_size, -(-side // _PADDING_MULTIPLE) * _PADDING_MULTIPLE) for side in (height, width)]
    pair = torch.stack([planes, planes.flip(-1)])
    pair = functional.pad(pair, (0, padded[1] - width, 0, padded[0] - height))
    logits, displacement = network(pair.to(next(network.parameters()).device))
    rows, columns = strided_size((height, width), STRIDE)
    logits, displacement = logits[..., :rows, :columns], displacement[..., :rows, :columns]
    edge = torch.sigmoid(logits[0] / 2 + logits[1].flip(-1) / 2)
    return edge, displacement[0]


def _trained_network(context: StageContext, config: AffinityNetworkConfig) -> AffinityNetwork:
    network = config.build()
    path = context.inputs["weights"].path("affinity_network.pt")
    load_weights(network, read_checkpoint(path), aliases=network.aliases(), where=str(path))
    return network.to(context.device).eval()


def affinity_stages(
    labels: IrLabelConfig,
    affinity: AffinityConfig,
    *,
    input_size: int,
    image_list: str,
    files: Mapping[str, Path],
    seed: int,
) -> list[Stage]:
    """From the maps of the stage "cam" to the edge maps of the stage "edge".

    Args:
        input_size: side of the square that a picture is padded to for its edge map.
        image_list: list of the training and of the maps.
        files: "backbone" -> ImageNet weights; none starts from random weights.
    """
    images: frozenset[Reads] = frozenset({"images"})
    network = AffinityNetworkConfig.of(affinity)
    weights = {"weights": "affinity_train"}
    stages: list[Stage] = [
        MapStage(
            name="ir_label",
            version=1,
            config=labels,
            inputs={"cam": "cam"},
            reads=images,
            image_list=image_list,
            build=build_ir_label,
        ),
        TrainStage(
            name="affinity_train",
            version=1,
            config=replace(affinity, displacement_mean=False),
            inputs={"ir_label": "ir_label"},
            reads=images,
            image_list=image_list,
            files=files,
            uses_gpu=True,
            build=build_affinity_training,
            seed=seed,
            epochs=affinity.num_epochs,
        ),
    ]
    if affinity.displacement_mean:
        stages.append(
            MapStage(
                name="affinity_displacement",
                version=1,
                config=DisplacementConfig(network, affinity.crop_size),
                inputs=weights,
                reads=images,
                image_list="train",
                uses_gpu=True,
                build=build_affinity_displacement,
            )
        )
    edge = MapStage(
        name="edge",
        version=1,
        config=EdgeConfig(network, input_size),
        inputs=weights,
        reads=images,
        image_list=image_list,
        uses_gpu=True,
        build=build_edge,
    )
    return [*stages, edge]
