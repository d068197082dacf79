"""Co-training of two segmentation networks on masked pseudo labels (BECO: Rong et al., CVPR 2023; `main.py`).

One training step: labels (offline in the warm-up, on-line from both networks later), class mixing within
pairs, photometric augmentation, and four losses.  Losses are sums over the local part of the batch; every
divisor is the number of pixels N*H*W, trusted or not.

Every random draw is made from a seed that travels with its sample, so a batch gives the same result however
it is split over workers, as long as a pair stays together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.data.augment.photometric import PhotometricSettings, augment_photometric, draw_photometric

IGNORE_INDEX = 255
LOSS_NAMES = ("supervised_1", "supervised_2", "cotrain_1", "cotrain_2")
LOSS_WEIGHTS: Mapping[str, float] = dict.fromkeys(LOSS_NAMES, 1.0)


@dataclass(frozen=True)
class CoTrainingSettings:
    """What the co-training step depends on; defaults are the published configuration.

    warmup_epochs: epochs that use offline labels only.  mix_probability: chance that an image is mixed.
    mix_ignore_background: background is never pasted.  online_confidence: on-line labels above this
    probability are trusted.  boundary_size: half width in pixels of the band around pasted objects.
    boundary_weight_*: extra weight of that band, one for each network.  photometric: None turns the
    augmentation off.
    """

    warmup_epochs: int = 2
    mix_probability: float = 0.5
    mix_ignore_background: bool = True
    online_confidence: float = 0.95
    boundary_size: int = 1
    boundary_weight_supervised: tuple[float, float] = (0.2, 0.2)
    boundary_weight_cotrain: tuple[float, float] = (0.0, 0.0)
    photometric: PhotometricSettings | None = field(default_factory=PhotometricSettings)


@dataclass(frozen=True)
class Targets:
    """Labels int64 (N, H, W) with 255 unsure, and masks bool (N, H, W), True where the label is trusted."""

    labels: Tensor
    masks: Tensor


@dataclass(frozen=True)
class MixedBatch:
    """Result of class mixing.

    images: float32 (N, 3, H, W).  targets: labels and masks after mixing.  boundary: bool (N, H, W), True
    on the band around pasted classes.  mixed: bool (N,), whether the image was mixed at all.
    """

    images: Tensor
    targets: Targets
    boundary: Tensor
    mixed: Tensor


@contextmanager
def evaluation_mode(*modules: nn.Module) -> Iterator[None]:
    """Put modules in evaluation mode without gradients, then give every submodule its own mode back.

    Running statistics of normalization layers are read, never written, inside the block.
    """
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for module in modules:
            module.eval()
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training


def online_targets(network1: nn.Module, network2: nn.Module, images: Tensor, confidence: float) -> Targets:
    """Labels of the mean of both networks' logits, trusted where the probability is above `confidence`."""
    with evaluation_mode(network1, network2):
        mean_logits = (network1(images)[1].float() + network2(images)[1].float()) / 2
        probability, labels = mean_logits.softmax(dim=1).max(dim=1)
    return Targets(labels, probability > confidence)


def boundary_map(mask: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Boundary band and inside of binary masks.

    mask: bool or 0/1 (N, H, W).  Returns bool (N, H, W) twice: dilation minus erosion with a
    (2*size+1)-square kernel that ignores what is outside the image, and the mask without the band.  Both
    are empty for a mask with one value.
    """
    # max_pool2d pads with -infinity, so neither the dilation nor the erosion sees the outside.
    values = mask.float()[:, None]
    kernel = 2 * size + 1
    dilated = F.max_pool2d(values, kernel, stride=1, padding=size)[:, 0] > 0
    eroded = -F.max_pool2d(-values, kernel, stride=1, padding=size)[:, 0] > 0
    has_both = (mask.flatten(1).any(dim=1) & ~mask.flatten(1).all(dim=1))[:, None, None]
    return dilated & ~eroded & has_both, eroded & has_both


def mix_pairs(
    images: Tensor,
    offline: Targets,
    online: Targets | None,
    seeds: Sequence[int],
    settings: CoTrainingSettings,
) -> MixedBatch:
    """Paste about half of a donor's classes into its partner, both ways in every pair.

    images: float32 (N, 3, H, W), N even; images 2i and 2i+1 are a pair.  offline: stored labels and masks.  online:
    labels and masks of the networks, None in the warm-up.  seeds: one integer per image, for the case that it is the
    target.

    An image is mixed with probability `mix_probability`.  Of the n classes in the donor's label (without
    255 and background; after the warm-up only where its on-line mask is on) (n + n mod 2) / 2 are chosen at
    random.  A mixed image takes label and mask from the offline pair in the warm-up and from the on-line
    pair later, on target and donor alike; an image that is not mixed keeps its offline label and mask.

    Raises ValueError for an odd batch or a wrong number of seeds.
    """
    count = len(images)
    if count % 2 or len(seeds) != count:
        raise ValueError(f"class mixing needs whole pairs and a seed for each image: {count=}, {len(seeds)=}")
    source = offline if online is None else online
    donor = torch.arange(count, device=images.device) ^ 1

    donor_labels = source.labels[donor]
    choice_labels = donor_labels
    if online is not None:
        choice_labels = donor_labels.masked_fill(~source.masks[donor], IGNORE_INDEX)
    decisions, priorities = _mixing_draws(seeds, settings.mix_probability)
    mixed = torch.from_numpy(decisions).to(images.device)
    pasted = _chosen_classes(
        choice_labels, torch.from_numpy(priorities).to(images.device), settings.mix_ignore_background
    )
    pasted &= mixed[:, None, None]

    def keep_or_mix(kept: Tensor, target: Tensor, given: Tensor) -> Tensor:
        return torch.where(mixed[:, None, None], torch.where(pasted, given, target), kept)

    labels = keep_or_mix(offline.labels, source.labels, donor_labels)
    masks = keep_or_mix(offline.masks, source.masks, source.masks[donor])
    boundary = torch.zeros_like(pasted) if online is None else boundary_map(pasted, settings.boundary_size)[0]
    mixed_images = torch.where(pasted[:, None], images[donor], images)
    return MixedBatch(mixed_images, Targets(labels, masks), boundary, mixed)


def cotraining_losses(
    logits1: Tensor,
    logits2: Tensor,
    targets: Targets,
    boundary: Tensor,
    boundary_weight_supervised: tuple[float, float] = (0.2, 0.2),
    boundary_weight_cotrain: tuple[float, float] = (0.0, 0.0),
) -> dict[str, Tensor]:
    """The four losses of a step as sums over pixels.

    logits: (N, C, H, W) of the two networks on one batch.  supervised_k: cross entropy with the given label
    on trusted pixels; cotrain_k: cross entropy with the other network's label (a constant) on the rest.
    Pixels labeled 255 add nothing to the former.  Divide by `cotraining_denominators` for the means.
    """
    log_probabilities = (F.log_softmax(logits1.float(), dim=1), F.log_softmax(logits2.float(), dim=1))
    predictions = (logits1.detach().argmax(dim=1), logits2.detach().argmax(dim=1))
    trusted, band = targets.masks.float(), boundary.float()
    losses: dict[str, Tensor] = {}
    for k in (0, 1):
        supervised = _pixel_loss(log_probabilities[k], targets.labels)
        weight = trusted * (1 + boundary_weight_supervised[k] * band)
        losses[f"supervised_{k + 1}"] = (supervised * weight).sum()
    for k in (0, 1):
        cotrain = _pixel_loss(log_probabilities[k], predictions[1 - k])
        weight = (1 - trusted) * (1 + boundary_weight_cotrain[k] * band)
        losses[f"cotrain_{k + 1}"] = (cotrain * weight).sum()
    return losses


def cotraining_denominators(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Number of pixels N*H*W of `batch["image"]` for every loss, as float32 scalars."""
    image = batch["image"]
    pixels = torch.tensor(float(image.shape[0] * image.shape[2] * image.shape[3]), device=image.device)
    return dict.fromkeys(LOSS_NAMES, pixels)


class CoTraining(nn.Module):
    """Two segmentation networks of one architecture, trained together.

    Networks return (pre_logits, logits) for images (N, 3, H, W).  `forward(batch, epoch, step)` takes image
    float32 (N, 3, H, W) normalized, label uint8 or int64 (N, H, W) with 255 unsure, mask uint8 or bool (N,
    H, W), pair_seed and photometric_seed int64 (N,), and returns the four loss sums of `cotraining_losses`.
    Samples 2i and 2i+1 are a pair.
    """

    def __init__(self, network1: nn.Module, network2: nn.Module, settings: CoTrainingSettings | None = None) -> None:
        super().__init__()
        self.network1 = network1
        self.network2 = network2
        self.settings = settings or CoTrainingSettings()

    def forward(self, batch: Mapping[str, Tensor], epoch: int, step: int) -> dict[str, Tensor]:
        mixed = self.augmented(batch, epoch)
        logits1 = self.network1(mixed.images)[1]
        logits2 = self.network2(mixed.images)[1]
        weights = (self.settings.boundary_weight_supervised, self.settings.boundary_weight_cotrain)
        return cotraining_losses(logits1, logits2, mixed.targets, mixed.boundary, *weights)

    def augmented(self, batch: Mapping[str, Tensor], epoch: int) -> MixedBatch:
        """The batch that is trained on: labels of this epoch, class mixing, photometric changes."""
        images = batch["image"]
        offline = Targets(batch["label"].long(), batch["mask"] > 0)
        online = None
        if epoch >= self.settings.warmup_epochs:
            online = online_targets(self.network1, self.network2, images, self.settings.online_confidence)
        mixed = mix_pairs(images, offline, online, batch["pair_seed"].tolist(), self.settings)
        if self.settings.photometric is None:
            return mixed
        draws = [draw_photometric(seed, self.settings.photometric) for seed in batch["photometric_seed"].tolist()]
        return replace(mixed, images=augment_photometric(mixed.images, draws))


def _mixing_draws(seeds: Sequence[int], probability: float) -> tuple[np.ndarray, np.ndarray]:
    """For each seed whether to mix, bool (N,), and a random rank of every class id, int64 (N, 255)."""
    decisions = np.zeros(len(seeds), dtype=bool)
    ranks = np.zeros((len(seeds), IGNORE_INDEX), dtype=np.int64)
    for i, seed in enumerate(seeds):
        rng = np.random.default_rng(seed)
        decisions[i] = rng.random() < probability
        ranks[i] = rng.permutation(IGNORE_INDEX)
    return decisions, ranks


def _chosen_classes(labels: Tensor, ranks: Tensor, ignore_background: bool) -> Tensor:
    """Bool (N, H, W): pixels of the (n + n mod 2) / 2 present classes that come first in `ranks`."""
    flat = labels.flatten(1)
    present = torch.zeros(len(labels), IGNORE_INDEX + 1, dtype=torch.bool, device=labels.device)
    present.scatter_(1, flat, torch.ones_like(flat, dtype=torch.bool))
    present = present[:, :IGNORE_INDEX]
    if ignore_background:
        present[:, 0] = False
    wanted = (present.sum(dim=1, keepdim=True) + 1) // 2
    # Position of each class among the present ones, in the order of the ranks.
    order = torch.where(present, ranks, IGNORE_INDEX).argsort(dim=1)
    position = torch.empty_like(order).scatter_(
        1, order, torch.arange(IGNORE_INDEX, device=labels.device).expand_as(order).contiguous()
    )
    chosen = F.pad(present & (position < wanted), (0, 1))
    return chosen.gather(1, flat).reshape(labels.shape)


def _pixel_loss(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    return F.nll_loss(log_probabilities, labels, ignore_index=IGNORE_INDEX, reduction="none")
