"""Paths and pair affinities against their definitions."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from tests.references import affinity_loss_counts, affinity_losses, pair_destinations

from wsss.ops.affinity import (
    LOSS_WEIGHTS,
    affinity_loss_sums,
    affinity_targets,
    pair_affinity,
    pair_displacement,
)
from wsss.ops.affinity_path import path_index, path_points, search_directions


def test_published_group_sizes():
    index = path_index(10, (128, 128))
    ends = [0, *index.group_ends]
    sizes = {len(index.paths[start]): end - start for start, end in pairwise(ends)}
    assert len(index.directions) == 152 and len(index.sources) == 13090
    assert list(sizes) == [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 19, 20, 21, 22]
    assert (sizes[16], sizes[20], sizes[22]) == (22, 20, 6)


@pytest.mark.parametrize("radius", [2, 5, 7])
def test_directions_are_half_of_the_disc(radius):
    directions = set(search_directions(radius))
    disc = {
        (y, x)
        for y in range(-radius, radius + 1)
        for x in range(-radius, radius + 1)
        if 0 < y * y + x * x < radius * radius
    }
    mirrored = {(-y, -x) for y, x in directions}
    assert directions | mirrored == disc and not directions & mirrored


def test_a_path_starts_at_the_destination_and_ends_at_the_source():
    for direction in search_directions(6):
        points = path_points(*direction)
        assert points[0] == direction and points[-1] == (0, 0)


@pytest.fixture
def index():
    return path_index(4, (7, 9))


def test_pair_affinity_is_one_minus_the_path_maximum(index):
    edge = torch.rand(2, 1, 7, 9, generator=torch.Generator().manual_seed(0))
    affinity = pair_affinity(edge, index)
    rows, columns = index.source_shape
    for direction, path in enumerate(index.paths):
        for source in range(rows * columns):
            y, x = source // columns, source % columns + index.radius - 1
            values = [edge[1, 0, y + dy, x + dx].item() for dy, dx in path]
            assert affinity[1, direction, source].item() == pytest.approx(1 - max(values), abs=1e-7)


def test_gradients_are_those_of_the_plain_expressions(index):
    generator = torch.Generator().manual_seed(1)
    edge = torch.rand(1, 1, 7, 9, generator=generator, dtype=torch.float64).requires_grad_()
    field = torch.randn(1, 2, 7, 9, generator=generator, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda e: pair_affinity(e, index), (edge,))
    assert torch.autograd.gradcheck(lambda d: pair_displacement(d, index), (field,))


def test_targets_leave_unsure_pairs_out(index):
    label = torch.zeros(1, 7, 9, dtype=torch.uint8)
    label[:, :, 5:] = 3
    label[:, 3] = 255
    targets = affinity_targets(label, index)
    flat = label.reshape(-1).long()
    destination = flat[torch.from_numpy(pair_destinations(index))]
    source = flat[torch.from_numpy(index.sources)][None].expand(destination.shape)
    sure = (source != 255) & (destination != 255)
    assert torch.equal(targets.negative[0], sure & (source != destination))
    assert torch.equal(targets.background[0], sure & (source == 0) & (destination == 0))
    assert torch.equal(targets.foreground[0], sure & (source == 3) & (destination == 3))
    assert targets.foreground.any() and targets.negative.any()


def test_sums_and_counts_of_parts_give_the_loss_of_the_whole(index):
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(4, 1, 7, 9, generator=generator)
    field = torch.randn(4, 2, 7, 9, generator=generator)
    label = torch.randint(0, 3, (4, 7, 9), generator=generator)
    whole = affinity_losses(logits, field, affinity_targets(label, index), index)
    assert set(whole) == set(LOSS_WEIGHTS)
    sums = dict.fromkeys(whole, 0.0)
    counts = dict.fromkeys(whole, 0.0)
    for part in (slice(0, 1), slice(1, 4)):
        targets = affinity_targets(label[part], index)
        for name, value in affinity_loss_sums(logits[part], field[part], targets, index).items():
            sums[name] += float(value)
        for name, value in affinity_loss_counts(targets).items():
            counts[name] += float(value)
    for name, value in whole.items():
        assert sums[name] / counts[name] == pytest.approx(float(value), rel=1e-5)


def test_a_grid_that_is_too_small_is_named():
    with pytest.raises(ValueError, match=r"at least 5x9"):
        path_index(5, (12, 8))
    with pytest.raises(ValueError, match="does not lie on the grid"):
        pair_affinity(torch.zeros(1, 1, 6, 6), path_index(2, (7, 7)))
    with pytest.raises(ValueError, match="radius"):
        search_directions(1)


def test_flat_indices_agree_with_the_offsets():
    index = path_index(3, (5, 8))
    start = 0
    for end in index.group_ends:
        flat = index.flat_paths(index.paths[start:end])
        assert np.array_equal(flat[:, 0], pair_destinations(index)[start:end])
        assert np.array_equal(flat[:, -1], np.broadcast_to(index.sources, flat[:, -1].shape))
        start = end
