"""Optimizers and schedules of the CAM and affinity stages (SSC, section 7)."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from wsss.schedules import polynomial_decay
from wsss.train_task import Schedule
from wsss_methods.ssc.networks import CamNetwork


def cam_optimizer(
    network: CamNetwork,
    learning_rate: float = 0.1,
    classifier_lr_mult: float = 10.0,
    momentum: float = 1e-4,
    weight_decay: float = 1e-4,
) -> torch.optim.SGD:
    """SGD with two groups: backbone at the base rate, classifier at `classifier_lr_mult` times it.

    The published momentum is 1e-4, not 0.9 (SSC, section 9, item 1).
    """
    return torch.optim.SGD(
        [
            {"params": network.backbone_parameters(), "lr": learning_rate},
            {"params": network.classifier_parameters(), "lr": learning_rate * classifier_lr_mult},
        ],
        lr=learning_rate,
        momentum=momentum,
        weight_decay=weight_decay,
    )


def decoder_optimizer(
    decoder: nn.Module, learning_rate: float = 5e-4, beta1: float = 0.5, beta2: float = 0.999
) -> torch.optim.Adam:
    """Adam of the reconstruction decoder, without weight decay."""
    return torch.optim.Adam(decoder.parameters(), lr=learning_rate, betas=(beta1, beta2))


def polynomial_schedule(power: float = 0.9) -> Schedule:
    """Factor (1 - step / total) ** power on every group's initial rate, set before each step."""
    return partial(polynomial_decay, power=power)
