"""The sparse walks equal the published dense one, on any grid."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.references import dense_transition, edge_walk_in_form, grid_affinity, padded_pair_affinity

from wsss.ops.affinity_path import path_index
from wsss.ops.random_walk import (
    direction_affinity,
    random_walk,
    walk,
    walk_chebyshev,
)


def _case(height: int, width: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.random((classes, height, width), dtype=np.float32)
    edge = rng.random((height, width), dtype=np.float32) ** 4
    return x, edge


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def _double_walk(x: np.ndarray, edge: np.ndarray, radius: int, beta: float, steps: int) -> np.ndarray:
    """The walk in double precision from its definition."""
    powered = grid_affinity(edge, radius).toarray().astype(np.float64) ** beta
    transition = powered / powered.sum(axis=0)
    start = (x * (1 - edge)).reshape(len(x), -1).astype(np.float64)
    return (start @ np.linalg.matrix_power(transition, steps)).reshape(x.shape)


@settings(max_examples=25)
@given(
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    classes=st.integers(1, 3),
    radius=st.integers(2, 5),
    exp_times=st.integers(0, 9),
    seed=st.integers(0, 2**31),
)
def test_sparse_walks_equal_the_definition(height, width, classes, radius, exp_times, seed):
    x, edge = _case(height, width, classes, seed)
    expected = _double_walk(x, edge, radius, 10, 2**exp_times)
    for walked in (
        random_walk(x, edge, radius, 10, exp_times),
        edge_walk_in_form("sparse", x, edge, radius, 10, exp_times),
    ):
        assert _distance(walked, expected) < 5e-5


def test_dense_form_equals_the_definition():
    x, edge = _case(9, 13, 2, 3)
    expected = _double_walk(x, edge, 5, 10, 256)
    assert _distance(edge_walk_in_form("dense", x, edge), expected) < 1e-4


def test_chebyshev_series_equals_step_by_step():
    x, edge = _case(20, 30, 2, 1)
    # In double precision, so that only the cut of the series can differ.
    transition = torch.from_numpy(dense_transition(grid_affinity(edge, 5), 10).astype(np.float64))
    transition /= transition.sum(dim=0)
    start = torch.from_numpy((x * (1 - edge)).reshape(2, -1).astype(np.float64))
    calls = []

    def step(maps: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return maps @ transition

    series = walk_chebyshev(start, step, 256)
    assert len(calls) < 100
    assert _distance(series.numpy(), walk(start, step, 256).numpy()) < 1e-7
    assert series.min() >= 0


@settings(max_examples=30)
@given(height=st.integers(1, 12), width=st.integers(1, 12), radius=st.integers(2, 8), seed=st.integers(0, 2**31))
def test_affinities_are_those_of_the_training_and_a_larger_radius_holds_the_smaller(height, width, radius, seed):
    _, edge = _case(height, width, 1, seed)
    found = direction_affinity(edge, radius)
    index = path_index(radius, (height + radius, width + 2 * radius))
    on_padded = padded_pair_affinity(edge, radius).reshape(-1, *index.source_shape)[:, :height, 1 : width + 1]
    wanted = {tuple(direction): plane for direction, plane in zip(index.directions.tolist(), on_padded, strict=True)}
    for direction, plane in zip(found.directions.tolist(), found.values.numpy(), strict=True):
        assert np.array_equal(plane, wanted.pop(tuple(direction)))
    assert not any(plane.any() for plane in wanted.values()), "no path of a direction that was left out fits"
    larger = direction_affinity(edge, radius + 2).within(radius)
    assert np.array_equal(larger.directions, found.directions) and torch.equal(larger.values, found.values)
    with pytest.raises(ValueError, match="do not hold"):
        found.within(radius + 1)


def test_affinity_is_symmetric_and_columns_of_the_transition_sum_to_one():
    _, edge = _case(8, 10, 1, 7)
    affinity = grid_affinity(edge, 4)
    assert np.array_equal(affinity.toarray(), affinity.toarray().T)
    assert np.all(affinity.diagonal() == 1)
    np.testing.assert_allclose(dense_transition(affinity, 3).sum(axis=0), 1, rtol=5e-6)


def test_an_edge_across_the_map_stops_the_walk():
    edge = np.zeros((9, 11), dtype=np.float32)
    edge[:, 5] = 1.0
    x = np.zeros((1, 9, 11), dtype=np.float32)
    x[:, 4, 2] = 1.0
    walked = random_walk(x, edge)
    assert walked[0, :, :5].min() > 0
    assert np.all(walked[0, :, 6:] < 1e-6)


def test_no_classes_and_wrong_sizes():
    _, edge = _case(6, 7, 1, 0)
    assert random_walk(np.zeros((0, 6, 7), dtype=np.float32), edge).shape == (0, 6, 7)
    with pytest.raises(ValueError, match="differ in size"):
        random_walk(np.zeros((1, 7, 6), dtype=np.float32), edge)
