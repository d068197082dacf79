"""What the shared stages after the co-training need: both networks and their scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from wsss.data.augment.resized_crop import resized_image, resized_label
from wsss.pipeline import Arrays, StageContext
from wsss.stages import refine
from wsss.stages.candidates import CandidateConfig, candidate_epochs, count_candidates, read_weights
from wsss_methods.ssc.networks import NETWORKS, build_segmentation_network


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
