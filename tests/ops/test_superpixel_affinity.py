"""Soft superpixels against the definition read pixel by pixel."""

from __future__ import annotations

import pytest
import torch
from tests.references import PixelReading
from torch import Tensor

from wsss.ops.superpixel_affinity import (
    NEIGHBORS,
    REACH,
    hard_superpixels,
    lifted_to_pixels,
    pooled_to_superpixels,
    refined_by_affinity,
    superpixel_affinity,
)

CELL = 4


def case(height: int = 3, width: int = 5, channels: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Features of pixels, their association, values of superpixels, all float64."""
    generator = torch.Generator().manual_seed(0)
    pixels = (2, channels, height * CELL, width * CELL)
    features = torch.randn(pixels, generator=generator, dtype=torch.float64)
    association = (2 * torch.randn(2, 9, *pixels[2:], generator=generator, dtype=torch.float64)).softmax(1)
    return features, association, torch.randn(2, channels, height, width, generator=generator, dtype=torch.float64)


def test_every_pixel_gives_to_and_takes_from_its_nine_superpixels() -> None:
    features, association, values = case()
    for number in range(2):
        reading = PixelReading(association[number].numpy(), CELL)
        pooled, lifted = reading.pooled(features[number].numpy()), reading.lifted(values[number].numpy())
        affinity = reading.affinity()
        chosen = slice(number, number + 1)
        torch.testing.assert_close(
            pooled_to_superpixels(features[chosen], association[chosen], CELL)[0], torch.from_numpy(pooled)
        )
        torch.testing.assert_close(
            lifted_to_pixels(values[chosen], association[chosen], CELL)[0], torch.from_numpy(lifted)
        )
        torch.testing.assert_close(superpixel_affinity(association[chosen], CELL)[0], torch.from_numpy(affinity))


def test_a_cell_of_one_pixel_is_a_kernel_for_each_position() -> None:
    association, values = case(2, 3)[1][:, :, :2, :3], case(2, 3)[2]
    expected = torch.nn.functional.unfold(values, 3, padding=1).unflatten(1, (2, 9)).unflatten(3, (2, 3))
    torch.testing.assert_close(lifted_to_pixels(values, association, 1), (expected * association[:, None]).sum(2))


def test_gradients_of_both_operators() -> None:
    features, association, values = case(2, 2, 1)
    inputs = [tensor[:1].clone().requires_grad_() for tensor in (features, association, values)]
    assert torch.autograd.gradcheck(lambda f, q, v: pooled_to_superpixels(f, q, CELL), inputs)
    assert torch.autograd.gradcheck(lambda f, q, v: lifted_to_pixels(v, q, CELL), inputs)


def test_affinity_is_that_of_pooled_indicators_and_refinement_repeats_it() -> None:
    _, association, values = case()
    affinity = superpixel_affinity(association, CELL)
    height, width = values.shape[2:]
    matrix = torch.zeros(2, height * width, height * width, dtype=torch.float64)
    for k, (dy, dx) in enumerate(REACH):
        for i in range(height):
            for j in range(width):
                if 0 <= i + dy < height and 0 <= j + dx < width:
                    matrix[:, i * width + j, (i + dy) * width + j + dx] = affinity[:, k, i, j]
                else:
                    assert (affinity[:, k, i, j] == 0).all()
    indicators = torch.eye(height * width, dtype=torch.float64).reshape(1, -1, height, width).expand(2, -1, -1, -1)
    pooled = pooled_to_superpixels(lifted_to_pixels(indicators, association, CELL), association, CELL)
    torch.testing.assert_close(matrix.transpose(1, 2), pooled.flatten(2))
    expected = torch.linalg.matrix_power(matrix, 3) @ values.flatten(2).transpose(1, 2)
    torch.testing.assert_close(
        refined_by_affinity(values, affinity, 3).flatten(2).transpose(1, 2), expected, rtol=1e-9, atol=1e-12
    )


def test_certain_pixels_keep_their_superpixel() -> None:
    """All weight on the own cell: pooling is block averaging, lifting repeats each value."""
    features, association, values = case()
    own = torch.zeros_like(association)
    own[:, NEIGHBORS.index((0, 0))] = 1
    torch.testing.assert_close(
        pooled_to_superpixels(features, own, CELL), torch.nn.functional.avg_pool2d(features, CELL), rtol=1e-6, atol=0
    )
    repeated = values.repeat_interleave(CELL, 2).repeat_interleave(CELL, 3)
    assert torch.equal(lifted_to_pixels(values, own, CELL), repeated)


def test_a_pixel_goes_to_the_superpixel_that_it_belongs_to_most_inside_the_grid() -> None:
    _, association, values = case()
    ids = hard_superpixels(association, CELL)
    for y, x, found in PixelReading(association[1].numpy(), CELL).members():
        i, j, _ = max(found, key=lambda member: member[2])
        assert ids[1, y, x] == i * values.shape[3] + j
    assert ids.shape == (2, *association.shape[2:]) and ids.min() >= 0 and ids.max() < values[0, 0].numel()


def test_sizes_that_do_not_fit_are_refused() -> None:
    features, association, values = case()
    with pytest.raises(ValueError, match="multiple of 5"):
        pooled_to_superpixels(features, association, 5)
    with pytest.raises(ValueError, match="one size"):
        pooled_to_superpixels(features[..., :-CELL], association, CELL)
    with pytest.raises(ValueError, match="not 4 times"):
        lifted_to_pixels(values[..., :-1], association, CELL)
