"""What the check modules of several stages share."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import torch
from tests.parity.fixtures import ParityError
from torch import Tensor, nn

from wsss.evaluation.confusion import iou, mean_accuracy, miou, pixel_accuracy


def prose_number(text: str, pattern: str, default: float) -> float:
    """A number in a fixture's prose, for settings that it states nowhere else."""
    match = re.search(pattern, text)
    return float(match[1]) if match else default


def gradient_norms(module: nn.Module, names: list[str]) -> Tensor:
    """L2 norms of the gradients of named parameters, (names,). Raises ParityError for one without a gradient."""
    parameters = dict(module.named_parameters())
    norms = []
    for name in names:
        gradient = parameters[name].grad
        if gradient is None:
            raise ParityError(f"{name} has no gradient")
        norms.append(gradient.norm())
    return torch.stack(norms)


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> list[float]:
    """What the training loop does before every step; the rates of all groups."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
    return [group["lr"] for group in optimizer.param_groups]


def shapes(state: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """Name -> shape of a state dict."""
    return {name: list(value.shape) for name, value in state.items()}


def final_scores(confusion: np.ndarray) -> list[float]:
    """Pixel accuracy, mean recall, IoU weighted by the truth's pixels, mean IoU: the official table, in its order."""
    in_truth = confusion.sum(axis=1)
    weighted = float(np.nansum(in_truth * iou(confusion)) / in_truth.sum())
    return [pixel_accuracy(confusion), mean_accuracy(confusion), weighted, miou(confusion, mean_over="truth")]
