"""Norms over groups of the batch: two groups are what two devices of `nn.DataParallel` compute."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from wsss.nn.grouped_norm import GroupedBatchNorm2d
from wsss.nn.sync_norm import synchronize_batch_norm


def layer(group: int) -> GroupedBatchNorm2d:
    made = GroupedBatchNorm2d(3, group)
    nn.init.uniform_(made.weight, 0.5, 1.5)
    nn.init.uniform_(made.bias)
    return made


def test_each_group_is_normalized_by_itself_and_the_first_one_is_remembered() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 3, 5, 4) * 3 + 1
    grouped = layer(4).train()
    plain = nn.BatchNorm2d(3).train()
    plain.load_state_dict(grouped.state_dict())
    second = copy.deepcopy(plain)
    out = grouped(x)
    expected = torch.cat([plain(x[:4]), second(x[4:])])
    assert torch.allclose(out, expected, atol=1e-6)
    assert torch.equal(grouped.running_mean, plain.running_mean)  # type: ignore[arg-type]
    assert grouped.num_batches_tracked == 1
    assert torch.equal(grouped.eval()(x), plain.eval()(x))


def test_a_batch_that_fits_one_group_is_ordinary() -> None:
    x = torch.randn(4, 3, 5, 4)
    grouped, plain = layer(8).train(), nn.BatchNorm2d(3).train()
    plain.load_state_dict(grouped.state_dict())
    assert torch.equal(grouped(x), plain(x))
    with pytest.raises(ValueError, match="at least one"):
        GroupedBatchNorm2d(3, 0)


def test_it_is_not_replaced_by_a_norm_over_all_workers() -> None:
    module = synchronize_batch_norm(nn.Sequential(layer(4), nn.BatchNorm2d(3)))
    assert type(module[0]) is GroupedBatchNorm2d and type(module[1]) is not nn.BatchNorm2d  # type: ignore[index]
