"""Training of SBNet's CAM network, of SEAM's and of the plain classifier (`train_SB.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.data.augment.color_jitter import PUBLISHED_JITTER, random_color_jitter
from wsss.data.augment.rescaled_crop import CanvasCrop, cropped_image, sample_canvas_crop
from wsss.data.transforms import channels_first, mirror, resize, resize_spline
from wsss.nn.checkpoint import load_imagenet_body
from wsss.ops.cam import as_shares
from wsss.optimizers import build_optimizer
from wsss.pipeline import StageContext
from wsss.schedules import polynomial_decay
from wsss.train_task import Batch, OptimizerPlan, TrainTask
from wsss_methods.sbnet.losses import cam_losses, loss_weights
from wsss_methods.sbnet.networks import EDGE_LAYERS, NEW_LAYERS, CamNetwork, build_cam_network, canny_edges
from wsss_methods.sbnet.recipe import CamSettings

WEIGHTS = "cam_network"


class CamSamples:
    """Augmented crops with the boundary maps of role "boundary", where a loss reads them."""

    def __init__(self, context: StageContext) -> None:
        self.data, self.context = context.data, context
        self.config: CamSettings = context.config
        self.jitter = PUBLISHED_JITTER.scaled(self.config.color_jitter)

    def __len__(self) -> int:
        return len(self.data.names)

    def sample(self, index: int, rng: np.random.Generator) -> Batch:
        """image float32 (3, S, S) normalized, label float32 (classes without background,), and where it is read
        boundary float32 (C, S, S) in [0, 1], of the background and the present classes."""
        name, config = self.data.names[index], self.config
        image, label = self.data.image(name), self.data.image_labels(name)
        longer, wanted = max(image.shape[:2]), int(rng.integers(config.resize_long_min, config.resize_long_max + 1))
        size = (round(image.shape[0] * wanted / longer), round(image.shape[1] * wanted / longer))
        mirrored = bool(rng.random() < 0.5)
        pixels = random_color_jitter(resize(image, size, "bicubic"), self.jitter, rng)
        crop = sample_canvas_crop(rng, *size, config.crop_size)
        batch = {
            "image": torch.from_numpy(channels_first(cropped_image(pixels, mirrored, crop))),
            "label": torch.from_numpy(label),
        }
        if config.boundaries:
            arrays = self.context.arrays("boundary", name)
            boundary = boundary_crop(arrays, self.data.num_classes, size, mirrored, crop)
            batch["boundary"] = torch.from_numpy(boundary)
        return batch


def boundary_crop(
    arrays: Mapping[str, np.ndarray], num_classes: int, size: tuple[int, int], mirrored: bool, crop: CanvasCrop
) -> np.ndarray:
    """Boundary maps resized, mirrored and cut as their image: float32 (num_classes, S, S), 0 where padded.

    arrays: "boundary" (1 + K, H, W) in [0, 1] of the background and the classes "keys" (K,), ids from 1. Other classes
    are not in the image, so that no loss reads their channel: it stays 0.
    """
    maps = resize_spline(as_shares(arrays["boundary"]), size).transpose(1, 2, 0)
    result = np.zeros((num_classes, crop.height, crop.width), dtype=np.float32)
    result[[0, *arrays["keys"]]] = crop.apply(mirror(maps) if mirrored else maps, 0).transpose(2, 0, 1)
    return result


class CamTraining(nn.Module):
    """The network and the losses of a step as sums over the batch; see `cam_losses`."""

    def __init__(self, network: CamNetwork, settings: CamSettings) -> None:
        super().__init__()
        self.network = network
        self.settings = settings

    def forward(self, batch: Batch, epoch: int, step: int) -> dict[str, Tensor]:
        images, boundaries = [batch["image"]], [batch["boundary"]] if self.settings.boundaries else None
        if self.settings.siamese:
            images.append(self._smaller(images[0]))
            if boundaries:
                boundaries.append(self._smaller(boundaries[0]))
        views = [
            self.network(image, canny_edges(image, self.settings) if self.settings.branch else None) for image in images
        ]
        with torch.autocast(images[0].device.type, enabled=False):
            return cam_losses([view.precise() for view in views], boundaries, batch["label"], self.settings)

    def _smaller(self, maps: Tensor) -> Tensor:
        size = [int(length * self.settings.siamese_scale) for length in maps.shape[2:]]
        return F.interpolate(maps, size, mode="bilinear", align_corners=True)

    def denominators(self, batch: Batch) -> Mapping[str, Tensor]:
        """Every loss is a mean over images."""
        return dict.fromkeys(loss_weights(self.settings), torch.tensor(float(len(batch["label"]))))


def build_cam_training(context: StageContext) -> TrainTask:
    """The network of the stage's settings; file "backbone": an ImageNet file of its backbone."""
    settings: CamSettings = context.config
    network = build_cam_network(settings, context.data.num_classes)
    if "backbone" in context.files:
        load_imagenet_body(network.body, context.files["backbone"])
    module = CamTraining(network, settings)
    groups = parameter_groups(network, settings)
    optimizer = build_optimizer(settings.optimizer, groups, settings.learning_rate, settings.momentum)
    return TrainTask(
        module=module,
        denominators=module.denominators,
        loss_weights=loss_weights(settings),
        optimizers=(OptimizerPlan("cam", optimizer, partial(polynomial_decay, power=settings.lr_power)),),
        samples=CamSamples(context),
        epochs=settings.num_epochs,
        global_batch=settings.batch_size,
        trained_weights=lambda: {WEIGHTS: network.published_state_dict()},
        precision=cast(Any, settings.precision),
    )


def parameter_groups(network: CamNetwork, settings: CamSettings) -> list[dict[str, Any]]:
    """What is trained: convolutions of the backbone, weights and biases of the boundary branch, new layers, norms.

    Each group also has its "name". The boundary branch counts as old in the official program, with biases at twice the
    rate; only the layers that SEAM adds are at the higher one. Biases and norms have no weight decay.
    """
    rates = {
        "backbone": (1.0, settings.weight_decay),
        "edge_weights": (settings.edge_lr_mult, settings.weight_decay),
        "edge_biases": (2 * settings.edge_lr_mult, 0.0),
        "new": (settings.head_lr_mult, settings.weight_decay),
        "norms": (1.0, 0.0),
    }
    members: dict[str, list[nn.Parameter]] = {name: [] for name in rates}
    for name, parameter in network.named_parameters():
        part = name.split(".")[0]
        if not parameter.requires_grad:
            continue
        if part in NEW_LAYERS:
            members["new"].append(parameter)
        elif part in EDGE_LAYERS:
            members["edge_biases" if name.endswith(".bias") else "edge_weights"].append(parameter)
        else:
            members["backbone" if parameter.dim() > 1 else "norms"].append(parameter)
    return [
        {"name": name, "params": members[name], "lr": factor * settings.learning_rate, "weight_decay": decay}
        for name, (factor, decay) in rates.items()
        if members[name]
    ]
