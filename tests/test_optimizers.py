"""Optimizers by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from wsss.optimizers import OPTIMIZERS, build_optimizer


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.tensor([1.0, -2.0]))


def test_sgd_is_torchs_with_its_groups() -> None:
    ours, theirs = parameter(), parameter()
    group = {"lr": 0.3, "weight_decay": 0.1}
    first = build_optimizer("sgd", [{"params": [ours], **group}], 0.1, 0.9, nesterov=True)
    second = torch.optim.SGD([{"params": [theirs], **group}], lr=0.1, momentum=0.9, nesterov=True)
    for optimizer, values in ((first, ours), (second, theirs)):
        for _ in range(3):
            optimizer.zero_grad()
            values.square().sum().backward()
            optimizer.step()
    assert torch.equal(ours, theirs)


def test_a_step_of_adamw_does_not_depend_on_the_size_of_the_gradient() -> None:
    """What makes it fit weights whose layers have gradients of very different sizes."""
    moved = []
    for size in (1e-4, 1e3):
        values = parameter()
        optimizer = build_optimizer("adamw", [{"params": [values], "lr": 0.01, "weight_decay": 0.0}], 0.5, 0.9)
        (size * values).sum().backward()
        optimizer.step()
        moved.append(values.detach().clone())
    torch.testing.assert_close(moved[0], moved[1], rtol=0, atol=1e-5)
    torch.testing.assert_close(moved[0], torch.tensor([0.99, -2.01]), rtol=0, atol=1e-5)


def test_momentum_is_the_first_beta() -> None:
    optimizer = build_optimizer("adamw", [{"params": [parameter()], "lr": 0.01}], 0.01, 0.8)
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.999)


def test_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match="lion"):
        build_optimizer("lion", [{"params": [parameter()]}], 0.1, 0.9)
    assert OPTIMIZERS == ("sgd", "adamw")
