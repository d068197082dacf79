"""Stages S3 to S6: affinity labels and training, edge maps, random walk, pseudo labels (SSC, section 2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from wsss.data.transforms import channels_first, normalize
from wsss.nn.checkpoint import load_imagenet_body, load_weights, read_checkpoint
from wsss.nn.irn import AffinityNetwork
from wsss.ops.affinity import LOSS_WEIGHTS, affinity_loss_sums, affinity_targets
from wsss.ops.affinity_path import path_index
from wsss.ops.confidence import confidence_mask
from wsss.ops.random_walk import DirectionAffinity, direction_affinity, random_walk
from wsss.pipeline import Arrays, StageContext
from wsss.train_task import Batch, OptimizerPlan, TrainTask
from wsss_methods.ssc.cam_stages import read_high_res
from wsss_methods.ssc.cam_transforms import affinity_training_sample
from wsss_methods.ssc.networks import build_affinity_network
from wsss_methods.ssc.optimizers import affinity_optimizer, polynomial_schedule
from wsss_methods.ssc.pseudo_label import (
    PseudoLabel,
    ir_label,
    irn_edge_and_displacement,
    pseudo_label_of_walk,
)
from wsss_methods.ssc.recipe import AffinitySettings, IrLabelSettings, RandomWalkSettings

PAIR_KINDS = ("background", "foreground", "negative")


@dataclass(frozen=True)
class AffinityConfig:
    """What the affinity network is built from."""

    backbone: str
    width: float
    head_width: float
    train_backbone: bool

    @classmethod
    def of(cls, settings: AffinitySettings) -> AffinityConfig:
        """From the recipe's section."""
        return cls(settings.backbone, settings.width, settings.head_width, settings.train_backbone)


@dataclass(frozen=True)
class DisplacementConfig:
    """The network and the crop of the displacement mean."""

    network: AffinityConfig
    crop_size: int


@dataclass(frozen=True)
class EdgeConfig:
    """The network and the square that images are padded to."""

    network: AffinityConfig
    input_size: int


@dataclass(frozen=True)
class RandomWalkConfig:
    """The walk alone: what the network sees belongs to the edge maps."""

    radius: int
    beta: int
    exp_times: int

    @classmethod
    def of(cls, settings: RandomWalkSettings) -> RandomWalkConfig:
        """From the recipe's section."""
        return cls(settings.radius, settings.beta, settings.exp_times)


@dataclass(frozen=True)
class ThresholdConfig:
    """Background constant of the pseudo label."""

    sem_seg_bg_thres: float


@dataclass(frozen=True)
class ConfidenceConfig:
    """Background constant of the pseudo label, and the share of each class that is trusted."""

    sem_seg_bg_thres: float
    mask_keep_ratio: float


def build_ir_label(context: StageContext) -> Callable[[str], Arrays]:
    """S3: "label" uint8 (H, W), class ids, 0 sure background, 255 unsure (SSC, section 6.2)."""
    config: IrLabelSettings = context.config
    artifact = context.inputs["cam"]

    def label(name: str) -> Arrays:
        arrays = artifact.arrays(name)
        return {"label": ir_label(context.data.image(name), read_high_res(arrays), arrays["keys"], config)}

    return label


class AffinitySamples:
    """Augmented training crops of S4 with their quartered labels (SSC, section 3.2)."""

    def __init__(self, context: StageContext) -> None:
        self.data = context.data
        self.labels = context.inputs["ir_label"]
        self.config: AffinitySettings = context.config

    def __len__(self) -> int:
        return len(self.data.names)

    def sample(self, index: int, rng: np.random.Generator) -> Batch:
        """image float32 (3, S, S), label int16 (S/4, S/4), pairs float32 (3,): how many of each of PAIR_KINDS."""
        name = self.data.names[index]
        crop = affinity_training_sample(
            self.data.image(name),
            self.labels.arrays(name)["label"],
            rng,
            crop_size=self.config.crop_size,
            rescale_min=self.config.rescale_min,
            rescale_max=self.config.rescale_max,
        )
        label = torch.from_numpy(crop.label.astype(np.int16))
        index_of_paths = path_index(self.config.path_radius, (label.shape[0], label.shape[1]))
        targets = affinity_targets(label[None], index_of_paths, self.data.num_classes)
        pairs = torch.stack([getattr(targets, kind).sum() for kind in PAIR_KINDS]).float()
        return {"image": torch.from_numpy(crop.image), "label": label, "pairs": pairs}


class AffinityTraining(nn.Module):
    """The affinity network and the losses of a step, as sums over pairs (SSC, section 5.4)."""

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
    """S4: edge and displacement heads on a frozen ImageNet backbone of their own (SSC, sections 4.4, 7)."""
    config: AffinitySettings = context.config
    network = _affinity_network(AffinityConfig.of(config))
    if "backbone" in context.files:
        load_imagenet_body(network.get_submodule(network.backbone_name), context.files["backbone"])
    optimizer = affinity_optimizer(
        network, config.learning_rate, config.dp_lr_mult, config.momentum, config.weight_decay
    )
    return TrainTask(
        module=AffinityTraining(network, config.path_radius, context.data.num_classes),
        denominators=affinity_denominators,
        loss_weights=LOSS_WEIGHTS,
        optimizers=(OptimizerPlan("affinity", optimizer, polynomial_schedule(config.lr_power)),),
        samples=AffinitySamples(context),
        epochs=config.num_epochs,
        global_batch=config.batch_size,
        trained_weights=lambda: {"affinity_network": network.state_dict()},
        precision=cast(Any, config.precision),
    )


def build_affinity_displacement(context: StageContext) -> Callable[[str], Arrays]:
    """Mean displacement of each image, "displacement" float32 (2,): (dy, dx) (SSC, section 5.4).

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
    """S5, the network's part: "edge" float32 (ceil(H/4), ceil(W/4)), probabilities (SSC, section 6.2).

    Not halved to float16: the walk takes products of hundreds of them.
    """
    config: EdgeConfig = context.config
    network = _trained_network(context, config.network)
    return lambda name: {"edge": irn_edge_and_displacement(network, context.data.image(name), config.input_size)[0][0]}


def build_random_walk(context: StageContext) -> Callable[[str], Arrays]:
    """S5 before the threshold: "walk" float16 (K, ceil(H/4), ceil(W/4)), "keys" int64 (K,) (SSC, section 6.2).

    The walk is divided by its largest value, which the later normalization makes immaterial and which float16 likes.
    It needs no GPU: an H200 takes a fifth of the time of a core, and has more cores than that beside it.
    """
    walks = build_random_walks([context])
    return lambda name: walks(name)[0]


def build_random_walks(contexts: Sequence[StageContext]) -> Callable[[str], Sequence[Arrays]]:
    """`build_random_walk` for several settings: those of one edge map share the affinities of its pairs."""
    radius = max(context.config.radius for context in contexts)

    def walk(name: str) -> Sequence[Arrays]:
        affinities: dict[str, tuple[np.ndarray, DirectionAffinity]] = {}
        return [_walk(context, name, radius, affinities) for context in contexts]

    return walk


def _walk(
    context: StageContext, name: str, radius: int, affinities: dict[str, tuple[np.ndarray, DirectionAffinity]]
) -> Arrays:
    """The walk of one setting; affinities: key of the edge maps -> the image's edges and affinities within `radius`."""
    config: RandomWalkConfig = context.config
    edges, arrays = context.inputs["edge"], context.inputs["cam"].arrays(name)
    if edges.key not in affinities:
        edge = edges.arrays(name)["edge"]
        affinities[edges.key] = edge, direction_affinity(edge, radius)
    edge, affinity = affinities[edges.key]
    walked = random_walk(
        arrays["cam"].astype(np.float32),
        edge,
        config.radius,
        config.beta,
        config.exp_times,
        affinity=affinity,
    )
    largest = walked.max(initial=0.0)
    if largest > 0:
        walked = walked / largest
    return {"walk": walked.astype(np.float16), "keys": arrays["keys"]}


def build_pseudo_label(context: StageContext) -> Callable[[str], Arrays]:
    """S5, threshold: "label" uint8 (H, W), class ids (SSC, section 6.2)."""
    config: ThresholdConfig = context.config

    def label(name: str) -> Arrays:
        return {"label": _thresholded(context, name, config.sem_seg_bg_thres).label}

    return label


def build_confidence_mask(context: StageContext) -> Callable[[str], Arrays]:
    """S6: "mask" uint8 (H, W), 1 on the most certain share of every class (SSC, section 6.2)."""
    config: ConfidenceConfig = context.config

    def mask(name: str) -> Arrays:
        found = _thresholded(context, name, config.sem_seg_bg_thres)
        return {"mask": confidence_mask(found.score, found.label, config.mask_keep_ratio)}

    return mask


def _thresholded(context: StageContext, name: str, background: float) -> PseudoLabel:
    arrays = context.inputs["random_walk"].arrays(name)
    size = context.data.image_size(name)
    return pseudo_label_of_walk(arrays["walk"].astype(np.float32), arrays["keys"], size, background)


def _affinity_network(config: AffinityConfig) -> AffinityNetwork:
    return build_affinity_network(
        config.backbone, config.width, train_backbone=config.train_backbone, head_width=config.head_width
    )


def _trained_network(context: StageContext, config: AffinityConfig) -> AffinityNetwork:
    network = _affinity_network(config)
    path = context.inputs["weights"].path("affinity_network.pt")
    load_weights(network, read_checkpoint(path), aliases=network.aliases(), where=str(path))
    return network.to(context.device).eval()
