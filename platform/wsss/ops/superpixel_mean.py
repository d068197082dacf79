"""Mean of a map over the superpixel of every position."""

from __future__ import annotations

import torch
from torch import Tensor


def superpixel_mean(values: Tensor, ids: Tensor) -> Tensor:
    """Replace every position by the mean over its superpixel, by scatter and gather.

    Args:
        values: float (n, h, w).
        ids: integer (n, h, w), at least 0; small consecutive ids (0..k-1) are fastest.

    Returns:
        float (n, h, w). Time and memory grow with the number of positions, not with that of superpixels.
    """
    number = values.shape[0]
    if ids.shape != values.shape:
        raise ValueError(f"values {tuple(values.shape)} and ids {tuple(ids.shape)} differ in shape")
    flat = ids.flatten(1).long()
    if flat.numel() == 0:
        return values.clone()
    count = int(flat.max()) + 1
    if count > flat.shape[1]:
        # Sparse ids (raw 24-bit codes) would make a table far larger than the map.
        _, compact = torch.unique(flat, return_inverse=True)
        flat, count = compact, int(compact.max()) + 1
    flat = (flat + count * torch.arange(number, device=flat.device)[:, None]).reshape(-1)
    source = values.reshape(-1).float()
    sums = source.new_zeros(number * count).index_add_(0, flat, source)
    sizes = source.new_zeros(number * count).index_add_(0, flat, torch.ones_like(source))
    means = sums / sizes.clamp_min(1.0)
    return means[flat].reshape(values.shape).to(values.dtype)
