"""Soft superpixels on a regular grid: what pixels and superpixels give each other, and which superpixels are alike.

Association of pixels with superpixels: Yang et al., "Superpixel Segmentation with Fully Convolutional Networks", 2020,
section 3.1. A map `association` (N, 9, H, W), at least 0, channels summing to 1, says for the pixel in grid cell (i, j)
how much it belongs to the superpixel of cell (i + dy, j + dx), (dy, dx) in the order of `NEIGHBORS`. Cells are squares
of `cell` pixels, and H and W multiples of it.

Everything is linear in the number of pixels, in time and memory: products run cell by cell, and what moves between
cells are maps of the grid's size.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

NEIGHBORS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1))
# Two superpixels that share a pixel lie at most two cells apart.
REACH = tuple((dy, dx) for dy in range(-2, 3) for dx in range(-2, 3))
_EPSILON = 1e-8


def pooled_to_superpixels(features: Tensor, association: Tensor, cell: int) -> Tensor:
    """Mean feature of every superpixel, pixels weighted by their association.

    features (N, C, H, W), association (N, 9, H, W) -> (N, C, H / cell, W / cell). Differentiable in both.

    Raises:
        ValueError: the sizes differ or are no multiples of `cell`.
    """
    _check(features, association, cell)
    cells = _cells(association, cell)
    weighted = torch.einsum("nchywx,nkhywx->nkchw", _cells(features, cell), cells) / cell**2
    return _collected(weighted) / (_collected(cells.mean(dim=(3, 5))[:, :, None]) + _EPSILON)


def lifted_to_pixels(values: Tensor, association: Tensor, cell: int) -> Tensor:
    """Every pixel's mean over its nine superpixels: values (N, C, h, w) -> (N, C, h * cell, w * cell).

    association: (N, 9, h * cell, w * cell). Superpixels outside the grid count as 0 and the weights are not
    renormalized there. With `cell` 1 this is one 3x3 kernel for each position. Differentiable in both.

    Raises:
        ValueError: the association does not have `cell` times the size of the values.
    """
    height, width = values.shape[2:]
    if association.shape[2:] != (height * cell, width * cell):
        raise ValueError(
            f"an association of {tuple(association.shape[2:])} has not {cell} times the size of values {height, width}"
        )
    if cell == 1:
        # Nine copies of the values side by side, as below, would be nine times their memory here.
        return _sum(shifted(values, *offset) * association[:, k : k + 1] for k, offset in enumerate(NEIGHBORS))
    around = torch.stack([shifted(values, *offset) for offset in NEIGHBORS], dim=1)
    lifted = torch.einsum("nkchw,nkhywx->nchywx", around, _cells(association, cell))
    return lifted.reshape(*values.shape[:2], height * cell, width * cell)


def superpixel_affinity(association: Tensor, cell: int) -> Tensor:
    """Share of each superpixel's pixels that belong to each superpixel around it: (N, 9, H, W) -> (N, 25, h, w).

    Channel k is sum_p Q(p, s) Q(p, s') / sum_p Q(p, s) for s' = s + `REACH`[k], 0 where s' lies outside the grid.
    Only superpixels that share a cell are compared, so nothing of the size (pixels x superpixels) is made.
    """
    _check(association, association, cell)
    cells = _cells(association, cell)
    together = torch.einsum("nahywx,nbhywx->nabhw", cells, cells) / cell**2
    shared = association.new_zeros(len(association), len(REACH), *together.shape[3:])
    for a, (ay, ax) in enumerate(NEIGHBORS):
        for b, (by, bx) in enumerate(NEIGHBORS):
            shared[:, REACH.index((by - ay, bx - ax))] += shifted(together[:, a, b], -ay, -ax)
    inside = torch.stack([shifted(torch.ones_like(shared[0, 0]), *offset) for offset in REACH])
    return shared * inside / (_collected(cells.mean(dim=(3, 5))[:, :, None]) + _EPSILON)


def hard_superpixels(association: Tensor, cell: int) -> Tensor:
    """The superpixel that each pixel belongs to most, of those inside the grid: (N, 9, H, W) -> int64 (N, H, W).

    Numbers run along the rows of the grid; one that no pixel belongs to most is missing.
    """
    _check(association, association, cell)
    cells = _cells(association, cell)
    height, width = cells.shape[2], cells.shape[4]
    number = torch.arange(1, height * width + 1, device=association.device).reshape(height, width)
    # 0 is what lies outside, after which no pixel may go.
    around = torch.stack([shifted(number, *offset) for offset in NEIGHBORS])[:, :, None, :, None]
    best = torch.where(around > 0, cells, -1).argmax(dim=1, keepdim=True)
    found = around.expand(cells.shape[1:]).expand_as(cells).gather(1, best)[:, 0]
    return found.reshape(len(found), *association.shape[2:]) - 1


def refined_by_affinity(values: Tensor, affinity: Tensor, steps: int) -> Tensor:
    """Replace every superpixel's values by the affinity-weighted sum around it, `steps` times.

    values (N, C, h, w), affinity (N, 25, h, w) of `superpixel_affinity` -> (N, C, h, w).
    """
    for _ in range(steps):
        values = _sum(affinity[:, k : k + 1] * shifted(values, *offset) for k, offset in enumerate(REACH))
    return values


def shifted(maps: Tensor, dy: int, dx: int) -> Tensor:
    """What lies at (i + dy, j + dx) of (..., h, w), 0 outside."""
    height, width = maps.shape[-2:]
    if abs(dy) >= height or abs(dx) >= width:
        return torch.zeros_like(maps)
    padded = F.pad(maps, (max(0, -dx), max(0, dx), max(0, -dy), max(0, dy)))
    return padded[..., max(0, dy) : max(0, dy) + height, max(0, dx) : max(0, dx) + width]


def _collected(given: Tensor) -> Tensor:
    """What every superpixel is given: (N, 9, C, h, w), by the cell that gives and the offset -> (N, C, h, w)."""
    # Cell (i, j) gives to (i + dy, j + dx), so a superpixel collects from where the offset points back to.
    return _sum(shifted(given[:, k], -dy, -dx) for k, (dy, dx) in enumerate(NEIGHBORS))


def _sum(terms: Iterable[Tensor]) -> Tensor:
    return reduce(torch.add, terms)


def _cells(maps: Tensor, cell: int) -> Tensor:
    """(N, C, H, W) -> (N, C, h, cell, w, cell), a view."""
    return maps.unflatten(3, (-1, cell)).unflatten(2, (-1, cell))


def _check(features: Tensor, association: Tensor, cell: int) -> None:
    size = tuple(features.shape[2:])
    if association.shape[1] != len(NEIGHBORS) or tuple(association.shape[2:]) != size or any(s % cell for s in size):
        raise ValueError(
            f"features of {size} and an association {tuple(association.shape)} need one size, a multiple of {cell}, "
            f"and {len(NEIGHBORS)} neighbors"
        )
