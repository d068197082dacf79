"""The scatter mean equals the one-hot mean, in value and gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.references import superpixel_mean_one_hot

from wsss.ops.superpixel_mean import superpixel_mean


@settings(max_examples=30)
@given(
    number=st.integers(1, 3),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    superpixels=st.integers(1, 12),
    seed=st.integers(0, 2**31),
)
def test_scatter_equals_one_hot(number, height, width, superpixels, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(number, height, width, generator=generator)
    ids = torch.randint(0, superpixels, (number, height, width), generator=generator)
    a, b = values.clone().requires_grad_(), values.clone().requires_grad_()
    weight = torch.randn(values.shape, generator=generator)
    left, right = superpixel_mean(a, ids), superpixel_mean_one_hot(b, ids)
    torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)
    (left * weight).sum().backward()
    (right * weight).sum().backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-6)


def test_raw_24_bit_ids_need_no_table_of_their_size():
    ids = torch.tensor([[[0, 16_000_000], [16_000_000, 5]]])
    values = torch.tensor([[[1.0, 2.0], [4.0, 7.0]]])
    assert superpixel_mean(values, ids).tolist() == [[[1.0, 3.0], [3.0, 7.0]]]


def test_equal_ids_of_different_images_are_different_superpixels():
    ids = torch.zeros(2, 1, 2, dtype=torch.int32)
    values = torch.tensor([[[0.0, 2.0]], [[10.0, 20.0]]])
    assert superpixel_mean(values, ids).tolist() == [[[1.0, 1.0]], [[15.0, 15.0]]]


def test_sizes_must_agree():
    with pytest.raises(ValueError, match="differ in shape"):
        superpixel_mean(torch.zeros(1, 2, 2), torch.zeros(1, 2, 3, dtype=torch.int64))
