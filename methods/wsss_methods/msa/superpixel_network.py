"""The superpixel network: which of the nine superpixels around it a pixel belongs to, learned from images alone.

The U-Net of Yang et al., "Superpixel Segmentation with Fully Convolutional Networks", 2020, with the loss of the
official `train_scn.py`: what is pooled to superpixels and lifted back must give color and place of the pixels.
"""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.data.augment.rescaled_crop import cropped_image, cropped_map, sample_canvas_crop
from wsss.data.transforms import IMAGENET_MEAN, IMAGENET_STD, channels_first, resize_long
from wsss.nn.checkpoint import load_weights, read_checkpoint
from wsss.ops.superpixel_affinity import (
    lifted_to_pixels,
    pooled_to_superpixels,
    refined_by_affinity,
    superpixel_affinity,
)
from wsss.pipeline import StageContext
from wsss.train_task import Batch, OptimizerPlan, TrainTask
from wsss_methods.msa.recipe import CELL, SuperpixelSettings, TrainSettings

WEIGHTS = "superpixel_network"
_SLOPE = 0.1
_LOSS_SCALE = 0.005
# The second map of a sample is padded with 255 unless it has a value above this.
_DARK = 100


def conv_block(in_channels: int, channels: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution, batch normalization, leaky ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels), nn.LeakyReLU(_SLOPE)
    )


class SuperpixelNetwork(nn.Module):
    """Normalized image (N, 3, H, W) -> association (N, 9, H, W), softmax over channels; H and W multiples of 16.

    `pred_mask1` to `pred_mask3` are in the published files; nothing calls or trains them.
    """

    def __init__(self, base_channels: int = 16) -> None:
        super().__init__()
        widths = [base_channels * 2**level for level in range(5)]
        for level, width in enumerate(widths):
            source = widths[level - 1] if level else 3
            self.add_module(f"conv{level}a", conv_block(source, width, 2 if level else 1))
            self.add_module(f"conv{level}b", conv_block(width, width))
        for level in reversed(range(4)):
            width = widths[level]
            up = nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1)
            self.add_module(f"deconv{level}", nn.Sequential(up, nn.LeakyReLU(_SLOPE)))
            self.add_module(f"conv{level}_1", conv_block(2 * width, width))
            self.add_module(f"pred_mask{level}", nn.Conv2d(width, 9, 3, padding=1))
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.kaiming_normal_(module.weight, _SLOPE)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for level in (1, 2, 3):
            self.get_submodule(f"pred_mask{level}").requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        skips, x = [], image
        for level in range(5):
            x = self.get_submodule(f"conv{level}b")(self.get_submodule(f"conv{level}a")(x))
            skips.append(x)
        for level in reversed(range(4)):
            up = self.get_submodule(f"deconv{level}")(x)
            x = self.get_submodule(f"conv{level}_1")(torch.cat([skips[level], up], dim=1))
        return self.get_submodule("pred_mask0")(x).softmax(dim=1)


def load_superpixel_network(state: Mapping[str, Tensor], device: str = "cpu", where: str = "") -> SuperpixelNetwork:
    """A trained network of the width that the weights have, frozen and in evaluation mode.

    Raises CheckpointError where they are of another network.
    """
    first = state.get("conv0a.0.weight")
    with torch.random.fork_rng():  # building a network draws weights
        network = SuperpixelNetwork(16 if first is None else len(first))
    load_weights(network, state, where=where)
    return network.requires_grad_(False).eval().to(device)


def reconstruction_errors(association: Tensor, lab: Tensor, cell: int = CELL) -> tuple[Tensor, Tensor]:
    """Distances in color and in place between pixels and what superpixels say of them, summed over each image.

    association (N, 9, H, W), lab (N, 3, H, W) in [0, 1] -> (N,) each, place in pixels; both times 0.005 / cell.
    """
    height, width = lab.shape[2:]
    rows = torch.arange(height, dtype=lab.dtype, device=lab.device)[:, None].expand(height, width)
    columns = torch.arange(width, dtype=lab.dtype, device=lab.device)[None].expand(height, width)
    place = torch.stack([columns, rows]).expand(len(lab), 2, height, width)
    target = torch.cat([lab, place], dim=1)
    found = lifted_to_pixels(pooled_to_superpixels(target, association, cell), association, cell)
    difference = (found - target) * (_LOSS_SCALE / cell)
    return difference[:, :3].norm(dim=1).sum(dim=(1, 2)), difference[:, 3:].norm(dim=1).sum(dim=(1, 2))


def lab_image(image: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) RGB -> uint8 (H, W, 3), OpenCV's 8-bit Lab; divided by 255 it is what is reconstructed."""
    return cv2.cvtColor(image, cv2.COLOR_RGB2LAB)


def refined_scores(scores: Tensor, association: Tensor, iterations: int, cell: int = CELL) -> Tensor:
    """Maps (N, C, H, W) refined by superpixels: pooled, `iterations` - 1 steps of their affinity, lifted."""
    pooled = pooled_to_superpixels(scores, association, cell)
    refined = refined_by_affinity(pooled, superpixel_affinity(association, cell), iterations - 1)
    return lifted_to_pixels(refined, association, cell)


def scores_from_coarse_masks(
    mask: Tensor, association: Tensor, num_classes: int, low: tuple[int, int] = (12, 12), iterations: int = 20
) -> Tensor:
    """What superpixels make of masks that were coarsened: the official training watches its network by them.

    mask: integer (N, H, W), association (N, 9, H, W) -> scores float (N, num_classes, H, W), one-hot masks resized to
    `low` and back and refined. A value outside the classes belongs to none.
    """
    classes = torch.arange(num_classes, device=mask.device)[:, None, None]
    one_hot = (mask[:, None] == classes).to(association.dtype)
    small = F.interpolate(one_hot, low, mode="bilinear", align_corners=False)
    coarse = F.interpolate(small, mask.shape[1:], mode="bilinear", align_corners=False)
    return refined_scores(coarse, association, iterations)


def training_pair(
    image: np.ndarray,
    second: np.ndarray,
    rng: np.random.Generator,
    settings: SuperpixelSettings | TrainSettings,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> tuple[np.ndarray, np.ndarray]:
    """A picture and a second map at a random scale, mirrored, cut or padded to a square.

    Args:
        image: uint8 (H, W, 3) RGB, resized bicubically.
        second: uint8 (H, W[, 3]), resized to the nearest pixel.

    Returns:
        float32 (3, S, S), normalized, 0 where padded; uint8 (S, S[, 3]), padded with 0, or with 255 if its largest
        value is 100 at most, as published.
    """
    long_side = int(rng.integers(settings.resize_long_min, settings.resize_long_max + 1))
    image, second = resize_long(image, long_side, "bicubic"), resize_long(second, long_side, "nearest")
    mirrored = bool(rng.random() < 0.5)
    crop = sample_canvas_crop(rng, image.shape[0], image.shape[1], settings.crop_size)
    fill = 0 if int(second.max()) > _DARK else 255
    return channels_first(cropped_image(image, mirrored, crop, mean, std)), cropped_map(second, mirrored, crop, fill)


class SuperpixelSamples:
    """Augmented crops, as the network sees them and as it must reconstruct them."""

    def __init__(self, context: StageContext) -> None:
        self.data = context.data
        self.settings: SuperpixelSettings = context.config

    def __len__(self) -> int:
        return len(self.data.names)

    def sample(self, index: int, rng: np.random.Generator) -> Batch:
        """image float32 (3, S, S), normalized by ImageNet's statistics; lab uint8 (3, S, S)."""
        picture = self.data.image(self.data.names[index])
        image, again = training_pair(picture, picture, rng, self.settings)
        return {"image": torch.from_numpy(image), "lab": torch.from_numpy(channels_first(lab_image(again)))}


class SuperpixelTraining(nn.Module):
    """The network and its two losses, "color" and "position", as sums over images."""

    def __init__(self, network: SuperpixelNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: Batch, epoch: int, step: int) -> dict[str, Tensor]:
        association = self.network(batch["image"])
        color, position = reconstruction_errors(association, batch["lab"].to(association.dtype) / 255)
        return {"color": color.sum(), "position": position.sum()}

    def denominators(self, batch: Batch) -> Mapping[str, Tensor]:
        """Images; the sums run over all pixels, padding included."""
        return dict.fromkeys(("color", "position"), torch.tensor(float(len(batch["image"]))))


def build_superpixel_training(context: StageContext) -> TrainTask:
    """One network, Adam without weight decay; file "superpixels": weights to start from."""
    config: SuperpixelSettings = context.config
    network = SuperpixelNetwork(config.base_channels)
    if "superpixels" in context.files:
        path = context.files["superpixels"]
        load_weights(network, read_checkpoint(path), where=str(path))
    module = SuperpixelTraining(network)
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return TrainTask(
        module=module,
        denominators=module.denominators,
        loss_weights={"color": 1.0, "position": config.position_weight},
        optimizers=(OptimizerPlan("superpixels", torch.optim.Adam(parameters, config.learning_rate), lambda *_: 1.0),),
        samples=SuperpixelSamples(context),
        epochs=config.num_epochs,
        global_batch=config.batch_size,
        trained_weights=lambda: {WEIGHTS: network.state_dict()},
        # The official program's loader does not shuffle.
        shuffle=False,
    )
