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


def test_a_threshold_that_nothing_passes_gives_nan() -> None:
    assert propagated(*case(), 1, 0.9995).isnan().all(), "the similarity of a position with itself counts as 0.999"
