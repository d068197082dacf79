"""Losses against their definition, position by position."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from wsss_methods.msa.losses import (
    classification_loss,
    content_mask,
    contrast_loss,
    contrast_target,
    foreground_cam,
    normalized_cam,
    tiled,
)

CELL = 16


def tiles(seed: int = 0, count: int = 4) -> tuple[Tensor, Tensor]:
    """CAM (b, 2, 3, 4), sparse, and a target (b, 3, 3, 4); tile 1 has no CAM, tile 2 unknown rows."""
    generator = torch.Generator().manual_seed(seed)
    foreground = torch.rand(count, 2, 3, 4, generator=generator, dtype=torch.float64)
    foreground = torch.where(foreground > 0.7, foreground, 0.0)
    target = torch.randn(count, 3, 3, 4, generator=generator, dtype=torch.float64)
    foreground[1], target[2, :, :2] = 0, 0
    return foreground, target


def reading(foreground: np.ndarray, target: np.ndarray, threshold: float) -> float:
    """The loss, one tile and one position after the other."""
    kept, all_tiles = [], []
    for cam, colors in zip(foreground, target, strict=True):
        known = colors.sum(axis=0) != 0
        background = 1 - cam.max(axis=0)
        certain = background * known
        tile = (np.concatenate([background[None], cam]), colors, known)
        all_tiles.append(tile)
        if (1 - certain).max() > threshold and certain.max() > threshold:
            kept.append(tile)
    error = positions = 0.0
    for probabilities, colors, known in kept or all_tiles:
        directions = colors / np.maximum(np.linalg.norm(colors, axis=0), 1e-12)
        places = list(zip(*np.nonzero(known), strict=True))
        found = []
        for p in probabilities:
            total = sum(p[place] for place in places)
            found.append(sum(directions[(slice(None), *place)] * p[place] for place in places) / (total + 1e-5))
        for place in places:
            rebuilt = sum(p[place] * prototype for p, prototype in zip(probabilities, found, strict=True))
            error += ((rebuilt - directions[(slice(None), *place)]) ** 2).sum()
            positions += 1
    return error / (positions + 1e-3)


@pytest.mark.parametrize("threshold", [0.1, 0.35])
def test_the_contrast_loss_is_that_of_the_definition(threshold: float) -> None:
    foreground, target = tiles()
    loss, patches = contrast_loss(foreground, target, threshold)
    assert loss.item() == pytest.approx(reading(foreground.numpy(), target.numpy(), threshold), rel=1e-9)
    # Unknown positions count as foreground in the first test, so tile 2 has both.
    assert patches == 3


def test_without_a_patch_of_both_kinds_all_of_them_are_kept() -> None:
    foreground, target = tiles()
    target[2] = target[3]  # a padded position would count as foreground
    loss, patches = contrast_loss(0 * foreground, target, 0.1)
    assert patches == 0 and loss > 0
    assert loss.item() == pytest.approx(reading(0 * foreground.numpy(), target.numpy(), 0.1), rel=1e-9)


def test_a_cam_that_follows_the_colors_explains_the_patch() -> None:
    """Two colors, two regions: the right CAM leaves no error, one over the edge does."""
    target = torch.zeros(1, 3, 4, 4)
    target[:, 0, :, :2], target[:, 2, :, 2:] = 1.0, 1.0
    right = torch.zeros(1, 1, 4, 4)
    right[..., :2] = 1.0
    wrong = right.roll(1, dims=3)
    assert contrast_loss(right, target, 0.1)[0] < 1e-6 < 0.05 < contrast_loss(wrong, target, 0.1)[0]


def test_patches_of_the_same_place_come_together() -> None:
    maps = torch.arange(2 * 7 * 9).reshape(2, 1, 7, 9)
    cut = tiled(maps, 5)  # 2 x 2 patches
    assert cut.shape == (8, 1, 3, 4)
    for row in range(2):
        for column in range(2):
            patch = maps[:, :, 3 * row : 3 * row + 3, 4 * column : 4 * column + 4]
            assert torch.equal(cut[2 * (2 * row + column) :][:2], patch)


def test_the_target_is_unknown_where_the_crop_is_padded() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, 3 * CELL, 4 * CELL, generator=generator)
    image[:, :, :, 3 * CELL :] = 0
    association = torch.randn(1, 9, 3 * CELL, 4 * CELL, generator=generator).softmax(1)
    saliency = torch.full((1, 3 * CELL, 4 * CELL), 51)
    known = content_mask(image, CELL)
    assert known[..., :3].all() and not known[..., 3].any()
    for given in (association, None):
        colors, share = (contrast_target(image, map_, given, CELL) for map_ in (None, saliency))
        assert colors.shape == (1, 3, 3, 4) and not colors[..., 3].any()
        torch.testing.assert_close(share[:, :, :, :3], torch.tensor([0.2, 0.8])[None, :, None, None].expand(1, 2, 3, 3))
    assert not torch.allclose(contrast_target(image, None, association, CELL), contrast_target(image, None, None, CELL))


def test_maps_of_absent_classes_are_zero_and_others_reach_one() -> None:
    scores = torch.tensor([[5.0, 1.0, 2.0], [-1.0, 4.0, -3.0]]).T.reshape(1, 3, 1, 2)
    assert normalized_cam(scores)[0, :, 0].max(dim=1).values == pytest.approx([1, 1, 1], abs=1e-4)
    foreground = foreground_cam(scores, torch.tensor([[0, 1]]))
    assert foreground.shape == (1, 2, 1, 2) and not foreground[0, 0].any()
    assert foreground[0, 1, 0] == pytest.approx([1, 0], abs=1e-4)


def test_the_background_is_not_classified() -> None:
    pooled = torch.tensor([[100.0, 0.0, 2.0]])[:, :, None, None]
    loss = classification_loss(pooled, torch.tensor([[1.0, 0.0]]))
    assert loss.item() == pytest.approx((np.log(2) + np.log(1 + np.exp(2))) / 2)
