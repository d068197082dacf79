"""Propagation along the likeness of features: blocks of columns give what the whole matrix gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from wsss.ops.feature_affinity import propagated


def case(positions: tuple[int, int] = (5, 7)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 3, *positions, generator=generator, dtype=torch.float64)
    return scores, torch.randn(2, 6, *positions, generator=generator, dtype=torch.float64).relu() + 0.01


def reading(scores: Tensor, features: Tensor, iterations: int, threshold: float) -> Tensor:
    """Position by position: the mean of the scores that look like it."""
    found = scores.flatten(2).clone()
    vectors = features.flatten(2)
    for _ in range(iterations):
        old = found.clone()
        for n in range(len(found)):
            for j in range(found.shape[2]):
                weights = torch.cosine_similarity(vectors[n], vectors[n, :, j : j + 1], dim=0).clamp(0.01, 0.999)
                weights[weights < threshold] = 0
                found[n, :, j] = (old[n] * weights).sum(dim=1) / weights.sum()
    return found.unflatten(2, scores.shape[2:])


@pytest.mark.parametrize(("iterations", "threshold"), [(0, 0.6), (1, 0.3), (4, 0.8)])
def test_every_position_takes_the_mean_of_those_that_look_like_it(iterations: int, threshold: float) -> None:
    scores, features = case()
    torch.testing.assert_close(
        propagated(scores, features, iterations, threshold), reading(scores, features, iterations, threshold)
    )


@pytest.mark.parametrize("kept_bytes", [0, 2**30])
@pytest.mark.parametrize("block", [1, 8, 35, 100])
def test_blocks_whether_they_are_kept_or_made_anew(block: int, kept_bytes: int) -> None:
    scores, features = case()
    whole = propagated(scores.requires_grad_(), features, 3, 0.7).detach()
    with torch.no_grad():
        torch.testing.assert_close(propagated(scores, features, 3, 0.7, kept_bytes, block), whole)


def test_gradients_flow_into_scores_and_features() -> None:
    scores, features = (tensor[:1, :, :2, :3].clone().requires_grad_() for tensor in case())
    assert torch.autograd.gradcheck(lambda s, f: propagated(s, f, 2, 0.7, block=2), (scores, features))


@pytest.mark.parametrize("block", [8, 100])
def test_a_position_without_features_keeps_its_scores_and_gives_them_to_no_other(block: int) -> None:
    scores, features = case()
    features[0, :, 2, 3] = 0
    found = propagated(scores, features, 3, 0.7, block=block)
    torch.testing.assert_close(found[0, :, 2, 3], scores[0, :, 2, 3])
    others = torch.ones(5, 7, dtype=torch.bool)
    others[2, 3] = False
    changed = scores.clone()
    changed[0, :, 2, 3] = 9
    again = propagated(changed, features, 3, 0.7, block=block)
    torch.testing.assert_close(again[..., others], found[..., others])


def test_gradients_are_finite_where_a_position_has_no_features() -> None:
    scores, features = case()
    features[0, :, 2, 3] = 0
    features.requires_grad_()
    propagated(scores, features, 3, 0.7).sum().backward()
    assert features.grad is not None and features.grad.isfinite().all()
