"""Stages S7 and S8: co-training on pseudo labels, choice of the epoch, scores (SSC, section 2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from wsss.data.augment.photometric import PhotometricSettings
from wsss.data.augment.resized_crop import draw_training_sample, resized_image, resized_label
from wsss.evaluation.confusion import confusion_matrix
from wsss.evaluation.counts import Counts
from wsss.evaluation.segmentation_metrics import selection_metrics
from wsss.pipeline import Arrays, Reduction, StageContext
from wsss.schedules import polynomial_decay
from wsss.store import Artifact
from wsss.train_task import Batch, OptimizerPlan, TrainTask
from wsss_methods.ssc.cotraining import (
    LOSS_WEIGHTS,
    CoTraining,
    CoTrainingSettings,
    cotraining_denominators,
)
from wsss_methods.ssc.recipe import SegmentationSettings
from wsss_methods.ssc.seg_checkpoint import NETWORKS
from wsss_methods.ssc.seg_inference import multiscale_scores
from wsss_methods.ssc.segmentation_networks import build_segmentation_network, load_imagenet_weights

METRICS_FILE = "metrics.json"
SELECTED_EPOCH = "segmentation_selection/epoch"


@dataclass(frozen=True)
class CandidateConfig:
    """The networks; candidates are scored at the training size."""

    network: SegmentationSettings


@dataclass(frozen=True)
class SelectionConfig:
    """`epsilon` of the selection metric (SSC, section 8)."""

    epsilon: float = 1e-5


@dataclass(frozen=True)
class ScoresConfig:
    """The networks, the square that images are squeezed to, and the scales of the maximum."""

    network: SegmentationSettings
    input_size: int
    scales: tuple[float, ...]


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
    """Confusion matrix of every stored epoch at the training size, no CRF, one scale (SSC, section 7).

    All candidates are held in memory at once. Returns counts (E, C, C) of `wsss.evaluation.counts`, "epochs" (E,).
    """
    config: CandidateConfig = context.config
    artifact = context.inputs["weights"]
    epochs = candidate_epochs(artifact)
    candidates = [_load_networks(context, config.network, artifact, folder=candidate_folder(epoch)) for epoch in epochs]
    size = (config.network.crop_size, config.network.crop_size)

    def score(name: str) -> Arrays:
        image = torch.from_numpy(resized_image(context.data.image(name), size))[None].to(context.device)
        truth = resized_label(context.data.mask(name), size)
        confusions = []
        for networks in candidates:
            logits = networks[0](image)[1] + networks[1](image)[1]
            prediction = logits[0].argmax(dim=0).cpu().numpy().astype(np.uint8)
            confusions.append(confusion_matrix(truth, prediction, context.data.num_classes, context.data.ignore_index))
        return {**Counts.of(np.stack(confusions)).arrays(), "epochs": np.array(epochs)}

    return score


def select_candidate(context: StageContext) -> Reduction:
    """The epoch with the highest mIoU on the masks of val; the earliest among equals (SSC, section 7)."""
    config: SelectionConfig = context.config
    artifact = context.inputs["candidates"]
    names = sorted(artifact.images())
    epochs = artifact.arrays(names[0])["epochs"]
    total = np.sum([Counts.read(artifact.arrays(name)).dense() for name in names], axis=0)
    scores = [selection_metrics(confusion, config.epsilon).miou for confusion in total]
    best = int(np.argmax(scores))
    rows = [
        {"epoch": int(epoch), "miou": score, "selected": index == best}
        for index, (epoch, score) in enumerate(zip(epochs, scores, strict=True))
    ]
    return Reduction(
        metrics={
            SELECTED_EPOCH: float(epochs[best]),
            "segmentation_selection/miou_val_training_size": scores[best],
            "segmentation_selection/miou_val_training_size_last": scores[-1],
        },
        tables={"candidates": rows},
        arrays={"confusion": total, "epochs": epochs},
    )


def build_scores(context: StageContext) -> Callable[[str], Arrays]:
    """S8: multi-scale scores of both networks before softmax, "scores" float32 (C, h, w) (SSC, section 6.4)."""
    config: ScoresConfig = context.config
    folder = ""
    if "selection" in context.inputs:
        epoch = int(context.inputs["selection"].json(METRICS_FILE)[SELECTED_EPOCH])
        folder = candidate_folder(epoch)
    networks = _load_networks(context, config.network, context.inputs["weights"], folder)
    size = (config.input_size, config.input_size)

    def scores(name: str) -> Arrays:
        image = torch.from_numpy(resized_image(context.data.image(name), size))[None].to(context.device)
        return {"scores": multiscale_scores(networks, image, config.scales)[0].cpu().numpy()}

    return scores


def candidate_epochs(artifact: Artifact) -> list[int]:
    """Epochs (1-based, ascending) whose weights a training artifact holds; (0) for an imported checkpoint."""
    folders = {Path(file).parent.name for file in artifact.files if file.endswith(f"/{NETWORKS[0]}.pt")}
    return sorted(int(folder.removeprefix("epoch_")) for folder in folders) or [0]


def read_network_weights(artifact: Artifact, folder: str = "") -> dict[str, dict[str, Tensor]]:
    """State dicts of both networks: of one candidate folder, or the last ones."""
    prefix = f"{folder}/" if folder else ""
    return {
        name: torch.load(artifact.path(f"{prefix}{name}.pt"), map_location="cpu", weights_only=True)
        for name in NETWORKS
    }


def candidate_folder(epoch: int) -> str:
    """Folder of an epoch's weights in a training artifact; epoch 0 stands for the last ones."""
    return f"epoch_{epoch:04d}" if epoch else ""


def _load_networks(
    context: StageContext, settings: SegmentationSettings, artifact: Artifact, folder: str
) -> list[nn.Module]:
    networks = []
    for values in read_network_weights(artifact, folder).values():
        network = build_segmentation_network(settings, context.data.num_classes)
        network.load_state_dict(values)
        networks.append(network.to(context.device).eval())
    return networks


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
