"""Affinities and displacements of pairs of positions, their targets and losses (IRN's `net/resnet50_irn.py`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wsss.ops.affinity_path import PathIndex

EPSILON = 1e-5


class _ShiftedViews(torch.autograd.Function):
    """Stack of the source window moved by each offset; the gradient is added back window by window."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, offsets: list[tuple[int, int]], index: PathIndex) -> Tensor:
        rows, columns = index.source_shape
        left = index.radius - 1
        ctx.offsets, ctx.index, ctx.shape = offsets, index, x.shape
        views = [x[:, :, y : y + rows, left + dx : left + dx + columns] for y, dx in offsets]
        return torch.stack(views, dim=2)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        rows, columns = ctx.index.source_shape
        left = ctx.index.radius - 1
        total = gradient.new_zeros(ctx.shape)
        for number, (y, dx) in enumerate(ctx.offsets):
            total[:, :, y : y + rows, left + dx : left + dx + columns] += gradient[:, :, number]
        return total, None, None


class _PathMaximum(torch.autograd.Function):
    """Maximum over the points of every path, remembering only which point it was."""

    @staticmethod
    def forward(ctx: Any, views: Tensor, groups: list[Tensor]) -> Tensor:
        maxima, places = [], []
        for group in groups:
            best = views[:, group[:, 0]]
            place = group[:, 0].to(torch.int16)[None, :, None].expand(best.shape).clone()
            for point in range(1, group.shape[1]):
                candidate = views[:, group[:, point]]
                # Strictly above: of equal points the one nearest to the destination counts.
                above = candidate > best
                best = torch.where(above, candidate, best)
                place = torch.where(above, group[:, point].to(torch.int16)[None, :, None], place)
            maxima.append(best)
            places.append(place)
        ctx.save_for_backward(torch.cat(places, dim=1))
        ctx.shape = views.shape
        return torch.cat(maxima, dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        (place,) = ctx.saved_tensors
        total = gradient.new_zeros(ctx.shape)
        total.scatter_add_(1, place.long(), gradient)
        return total, None


def pair_affinity(edge: Tensor, index: PathIndex) -> Tensor:
    """Affinity of every pair: 1 - the largest edge probability on its path, both ends included.

    edge: probabilities in [0, 1], float (N, 1, h, w) on the grid of `index`.
    Returns (N, directions, sources), differentiable.
    """
    if tuple(edge.shape[2:]) != index.size or edge.shape[1] != 1:
        raise ValueError(f"edge map {tuple(edge.shape)} does not lie on the grid {index.size}")
    offsets = [(int(y), int(x)) for y, x in index.offsets]
    views = _ShiftedViews.apply(edge, offsets, index).flatten(3)[:, 0]
    groups = [torch.from_numpy(group).to(edge.device) for group in index.path_offsets]
    return 1.0 - _PathMaximum.apply(views, groups)


def pair_displacement(displacement: Tensor, index: PathIndex) -> Tensor:
    """Displacement at the source minus that at the destination: (N, 2, h, w) -> (N, 2, directions, sources)."""
    directions = [(int(y), int(x)) for y, x in index.directions]
    views = _ShiftedViews.apply(displacement, [(0, 0), *directions], index).flatten(3)
    return views[:, :, :1] - views[:, :, 1:]


def displacement_target(index: PathIndex) -> np.ndarray:
    """(dy, dx) of every direction as float32 (2, directions)."""
    return np.ascontiguousarray(index.directions.T.astype(np.float32))


@dataclass(frozen=True)
class AffinityTargets:
    """Which pairs are alike: bool (N, directions, sources) each.

    background: both background; foreground: both the same class; negative: of different classes. A pair with an
    unsure end is in none.
    """

    background: Tensor
    foreground: Tensor
    negative: Tensor

    def counts(self) -> Tensor:
        """Pairs of each kind, in this order: float32 (3,)."""
        return torch.stack([self.background.sum(), self.foreground.sum(), self.negative.sum()]).float()


def affinity_targets(label: Tensor, index: PathIndex, num_labels: int = 21) -> AffinityTargets:
    """Targets from label maps (N, h, w) of integers; ids from `num_labels` on (255) are unsure."""
    if tuple(label.shape[1:]) != index.size:
        raise ValueError(f"label map {tuple(label.shape)} does not lie on the grid {index.size}")
    directions = [(int(y), int(x)) for y, x in index.directions]
    views = _ShiftedViews.apply(label[:, None], [(0, 0), *directions], index).flatten(3)[:, 0]
    source, destination = views[:, :1], views[:, 1:]
    sure = (source < num_labels) & (destination < num_labels)
    equal = (source == destination) & sure
    return AffinityTargets(
        background=equal & (source == 0),
        foreground=equal & (source > 0),
        negative=sure & (source != destination),
    )


# Weights of the five losses in the total: (L+_bg / 2 + L+_fg / 2 + L-) / 2 + (L_d,fg + L_d,bg) / 2.
LOSS_WEIGHTS = {
    "background_positive": 0.25,
    "foreground_positive": 0.25,
    "negative": 0.5,
    "displacement_foreground": 0.5,
    "displacement_background": 0.5,
}


def affinity_loss_sums(
    edge_logits: Tensor, displacement: Tensor, targets: AffinityTargets, index: PathIndex
) -> dict[str, Tensor]:
    """Each loss summed over the pairs of the batch; see `LOSS_WEIGHTS`.

    edge_logits (N, 1, h, w), displacement (N, 2, h, w), on the grid of `index`.
    """
    precision = torch.promote_types(edge_logits.dtype, torch.float32)  # half precision cannot hold the logarithms
    affinity = pair_affinity(torch.sigmoid(edge_logits.to(precision)), index)
    difference = pair_displacement(displacement.to(precision), index)
    target = torch.from_numpy(displacement_target(index)).to(difference.device)[None, :, :, None]
    to_target = (difference - target).abs().sum(dim=1)
    to_zero = difference.abs().sum(dim=1)
    return {
        **pair_loss_sums(affinity, targets),
        "displacement_foreground": (to_target * targets.foreground).sum(),
        "displacement_background": (to_zero * targets.background).sum(),
    }


def pair_loss_sums(affinity: Tensor, targets: AffinityTargets) -> dict[str, Tensor]:
    """Cross entropies of the three kinds of pairs, summed; affinity (N, directions, sources) in [0, 1]."""
    alike = -torch.log(affinity + EPSILON)
    unlike = -torch.log(1.0 + EPSILON - affinity)
    return {
        "background_positive": (alike * targets.background).sum(),
        "foreground_positive": (alike * targets.foreground).sum(),
        "negative": (unlike * targets.negative).sum(),
    }
