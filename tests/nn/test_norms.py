"""Norms over two gloo processes are those of the whole batch; norms over groups are those of several devices."""

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.gloo import run_on_gloo
from torch import nn

from wsss.nn.norms import (
    FrozenStatisticsBatchNorm2d,
    GroupedBatchNorm2d,
    SynchronizedBatchNorm2d,
    sum_over_workers,
    synchronize_batch_norm,
)

SPLIT = (0, 2, 5)


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5))


def _batch() -> torch.Tensor:
    # Far from zero: a variance from sums of squares would show.
    return torch.randn(5, 3, 8, 9, generator=torch.Generator().manual_seed(1)) * 3 + 20


def _step(network: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.clone().requires_grad_()
    out = network(x)
    (out.square() * torch.linspace(0.5, 2, out.shape[-1])).sum().backward()
    assert x.grad is not None
    return out.detach(), x.grad


def _worker(rank: int, world_size: int) -> dict[str, Any]:
    network = synchronize_batch_norm(_network())
    out, gradient = _step(network, _batch()[SPLIT[rank] : SPLIT[rank + 1]])
    gradients = []
    for parameter in network.parameters():
        dist.all_reduce(parameter.grad)
        gradients.append(parameter.grad)
    return {"out": out, "gradient": gradient, "parameters": gradients, "state": network.state_dict()}


def test_two_processes_equal_one():
    parts = run_on_gloo(_worker, 2)
    network = _network()
    out, gradient = _step(network, _batch())
    torch.testing.assert_close(torch.cat([part["out"] for part in parts]), out, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.cat([part["gradient"] for part in parts]), gradient, rtol=1e-3, atol=1e-4)
    for part in parts:
        for own, parameter in zip(part["parameters"], network.parameters(), strict=True):
            torch.testing.assert_close(own, parameter.grad, rtol=1e-3, atol=2e-3)
        assert list(part["state"]) == list(network.state_dict())
        for name, value in network.state_dict().items():
            torch.testing.assert_close(part["state"][name], value, rtol=1e-5, atol=1e-6)


def _ratio(rank: int, world_size: int) -> tuple[float, torch.Tensor | None]:
    """This worker's part of the square of a mean over all numbers, and its gradient."""
    own = torch.arange(5.0, dtype=torch.float64)[SPLIT[rank] : SPLIT[rank + 1]].requires_grad_()
    total, count = sum_over_workers(torch.stack([own.sum(), own.new_tensor(float(len(own)))]))
    loss = (total / count) ** 2 / world_size
    loss.backward()
    return loss.item(), own.grad


def test_a_sum_over_workers_is_that_of_the_whole_batch_and_so_are_its_gradients():
    parts = run_on_gloo(_ratio, 2)
    assert sum(loss for loss, _ in parts) == pytest.approx(4.0)
    torch.testing.assert_close(torch.cat([gradient for _, gradient in parts]), torch.full((5,), 0.8).double())
    assert sum_over_workers(torch.tensor(3.0)) == 3.0, "one process"


def test_one_process_is_plain_batch_norm():
    plain = _network()
    synchronized = synchronize_batch_norm(_network())
    for a, b in zip(_step(plain, _batch()), _step(synchronized, _batch()), strict=True):
        assert torch.equal(a, b)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, synchronized.state_dict()[name])


def test_conversion_keeps_tensors_mode_and_other_norms():
    network = nn.Sequential(nn.BatchNorm2d(3), FrozenStatisticsBatchNorm2d(3)).eval()
    weight = network[0].weight
    synchronize_batch_norm(network)
    assert type(network[0]) is SynchronizedBatchNorm2d and network[0].weight is weight
    assert not network[0].training
    assert type(network[1]) is FrozenStatisticsBatchNorm2d
    assert type(synchronize_batch_norm(nn.BatchNorm2d(2), cuda=True)) is nn.SyncBatchNorm


@pytest.mark.parametrize("training", [True, False])
def test_frozen_statistics_are_used_and_kept(training):
    norm = FrozenStatisticsBatchNorm2d(3).train(training)
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    norm.running_var.fill_(4.0)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    out = norm(torch.ones(2, 3, 4, 4) * 5)
    torch.testing.assert_close(out[0, :, 0, 0], torch.tensor([2.0, 1.5, 1.0]), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


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
