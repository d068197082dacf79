"""Mask refinement against its plain definition, and what it must leave alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wsss.ops.pamr import NEIGHBOURS, local_deviation, pamr, pamr_affinity, pamr_present, refine_masks

DILATIONS = (1, 3)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def plain_pamr(image: np.ndarray, masks: np.ndarray, iterations: int) -> np.ndarray:
    """By the definition, pixel by pixel: image (3, H, W), masks (C, H, W), float64."""
    height, width = image.shape[1:]

    def at(array: np.ndarray, y: int, x: int) -> np.ndarray:
        return array[:, min(max(y, 0), height - 1), min(max(x, 0), width - 1)]

    offsets = [(row * d, column * d) for d in DILATIONS for row, column in NEIGHBOURS]
    for _ in range(iterations):
        refined = np.zeros_like(masks)
        for y in range(height):
            for x in range(width):
                center = image[:, y, x]
                window = [center] * len(DILATIONS) + [at(image, y + dy, x + dx) for dy, dx in offsets]
                scale = 1e-8 + 0.1 * np.std(window, axis=0, ddof=1)
                others = [(y + dy, x + dx) for dy, dx in offsets]
                likeness = np.array([-(np.abs(center - at(image, *place)) / scale).mean() for place in others])
                weights = np.exp(likeness - likeness.max())
                weights /= weights.sum()
                refined[:, y, x] = sum(w * at(masks, *place) for w, place in zip(weights, others, strict=True))
        masks = refined
    return masks


def test_equals_the_definition() -> None:
    image, masks = drawn(1, 3, 5, 6, seed=1).double(), drawn(1, 2, 5, 6, seed=2).double()
    expected = plain_pamr(image[0].numpy(), masks[0].numpy(), 2)
    np.testing.assert_allclose(pamr(image, masks, 2, DILATIONS)[0].numpy(), expected, rtol=1e-9)


@settings(max_examples=20)
@given(st.integers(0, 1000), st.integers(3, 9), st.integers(3, 9))
def test_weights_are_means_of_neighbours(seed: int, height: int, width: int) -> None:
    affinity = pamr_affinity(drawn(2, 3, height, width, seed=seed), DILATIONS)
    assert affinity.shape == (2, 8 * len(DILATIONS), height, width)
    assert torch.allclose(affinity.sum(dim=1), torch.ones(2, height, width), atol=1e-5)
    masks = drawn(2, 4, height, width, seed=seed + 1).softmax(dim=1)
    refined = refine_masks(affinity, masks, 3, DILATIONS)
    # Means stay within the range of what they average, and masks that sum to 1 still do.
    assert refined.min() >= masks.min() - 1e-6 and refined.max() <= masks.max() + 1e-6
    assert torch.allclose(refined.sum(dim=1), torch.ones(2, height, width), atol=1e-5)


def test_an_edge_of_the_image_holds_the_mask_back() -> None:
    image = torch.zeros(1, 3, 12, 12)
    image[..., 6:] = 1.0
    masks = torch.zeros(1, 1, 12, 12)
    masks[..., 2:5, 2:5] = 1.0
    refined = pamr(image, masks, 6, (1, 2))[0, 0]
    assert refined[:, :6].sum() > 20 * refined[:, 6:].sum()


def test_only_present_channels_are_refined_and_equal_the_whole() -> None:
    image, masks = drawn(3, 3, 7, 8, seed=3), drawn(3, 5, 7, 8, seed=4)
    present = torch.tensor([[1, 0, 0, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], dtype=torch.bool)
    some = pamr_present(image, masks, present, 3, DILATIONS)
    whole = pamr(image, masks, 3, DILATIONS) * present[:, :, None, None]
    assert torch.allclose(some, whole, atol=1e-6)
    with pytest.raises(ValueError, match="size of the image"):
        pamr_present(image, masks[..., :4], present, 1, DILATIONS)


def test_masks_of_another_size_are_brought_to_the_image() -> None:
    assert pamr(drawn(1, 3, 8, 10), drawn(1, 2, 4, 5), 1, DILATIONS).shape == (1, 2, 8, 10)
    assert local_deviation(torch.ones(1, 3, 4, 4), DILATIONS).abs().max() == 0
