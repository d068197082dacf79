"""Optimizers by name: the published SGD, and AdamW, which needs fewer steps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from wsss.recipe import setting

OPTIMIZERS = ("sgd", "adamw")


def optimizer_setting() -> Any:
    """The setting of a recipe's section that has a learning rate and a momentum. At "sgd" it is in no stage key."""
    return setting(
        "sgd",
        choices=OPTIMIZERS,
        key_at_default=False,
        help="sgd: as published; adamw: for trainings of a few hundred steps, momentum is its first beta",
    )


def build_optimizer(
    name: str, groups: Iterable[dict[str, Any]], learning_rate: float, momentum: float, *, nesterov: bool = False
) -> torch.optim.Optimizer:
    """SGD, or AdamW with betas (`momentum`, 0.999), over parameter groups with their rates and weight decays.

    nesterov: of SGD. AdamW's weight decay is decoupled from the gradient (Loshchilov and Hutter, 2019).
    Raises ValueError for another name than those of `OPTIMIZERS`.
    """
    if name == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum, nesterov=nesterov)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, betas=(momentum, 0.999))
    raise ValueError(f"no optimizer {name!r}; there are {', '.join(OPTIMIZERS)}")
