"""Class scores propagated along the likeness of features: every position takes the mean of those that look like it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

# Bounds of the cosine similarity.
LEAST, LARGEST = 0.01, 0.999
# A matrix that needs more is not kept: its columns are made anew in every iteration.
KEPT_BYTES = 256 * 2**20
BLOCK = 256


def likeness(features: Tensor, columns: slice, threshold: float) -> Tensor:
    """Columns of the thresholded cosine similarity of all positions, each divided by its sum.

    features: (N, C, P), of length 1 -> (N, P, columns). Similarities are clamped to [0.01, 0.999], and those below
    `threshold`, at most 0.999, are 0. A position of all-zero features, which the published form turns into NaN, is
    like itself alone.
    """
    similarity = features.transpose(1, 2) @ features[..., columns]
    if not torch.is_grad_enabled():  # in place: a copy of the largest thing here would be half of the peak
        with_itself(similarity.clamp_(LEAST, LARGEST), columns)
        similarity.masked_fill_(similarity < threshold, 0)
        return similarity.div_(similarity.sum(dim=1, keepdim=True))
    similarity = with_itself(similarity.clamp(LEAST, LARGEST), columns)
    kept = similarity.masked_fill(similarity < threshold, 0)
    return kept / kept.sum(dim=1, keepdim=True)


def with_itself(similarity: Tensor, columns: slice) -> Tensor:
    """Every position's similarity to itself set to the largest, in place; of clamped columns (N, P, columns).

    It is that already, without a gradient, unless the features of the position are all zero.
    """
    similarity.diagonal(-columns.start, dim1=1, dim2=2).fill_(LARGEST)
    return similarity


def propagated(
    scores: Tensor,
    features: Tensor,
    iterations: int,
    threshold: float,
    kept_bytes: int = KEPT_BYTES,
    block: int = BLOCK,
) -> Tensor:
    """Scores after `iterations` steps, each a mean over the positions that look alike.

    scores (N, K, h, w), features (N, C, h, w) -> (N, K, h, w). Where gradients are asked for they flow into the
    features too, and the matrix (N, h w, h w) is made as a whole. Otherwise it is made in blocks of columns. They
    are kept for the next iteration if all of them fit into `kept_bytes`, so the peak is that of the matrix or of
    one block (N, h w, block), whichever is allowed.
    """
    size = scores.shape[2:]
    scores = scores.flatten(2)
    if iterations == 0:
        return scores.unflatten(2, size)
    normal = F.normalize(features.flatten(2), dim=1)
    positions = normal.shape[2]
    if torch.is_grad_enabled() and (scores.requires_grad or features.requires_grad):
        block = positions
    bounds = [slice(start, min(start + block, positions)) for start in range(0, positions, block)]

    def blocks() -> Iterator[Tensor]:
        return (likeness(normal, columns, threshold) for columns in bounds)

    fits = len(normal) * positions**2 * normal.element_size() <= kept_bytes
    kept = list(blocks()) if fits or len(bounds) == 1 else None
    for _ in range(iterations):
        scores = torch.cat([scores @ columns for columns in kept or blocks()], dim=2)
    return scores.unflatten(2, size)
