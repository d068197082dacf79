"""Wide-ResNet-38: shapes, taps, and norms that training leaves alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from wsss.nn.wide_resnet38 import ResidualBlock, WideResNet38


def test_taps_have_the_channels_and_strides_that_it_states() -> None:
    network = WideResNet38(0.125).eval()
    taps = ("b2", "b3_2", "b4_5", "b5_2", "b6", "b7")
    with torch.no_grad():
        last, found = network(torch.randn(1, 3, 48, 64), taps)
    assert tuple(found) == taps
    assert [network.strides[name] for name in taps] == [2, 4, 8, 8, 8, 8]
    for name, value in found.items():
        stride = network.strides[name]
        assert value.shape == (1, network.channels[name], 48 // stride, 64 // stride)
    assert found["b3_2"].min() < 0, "a tap is neither normalized nor rectified"
    assert last.min() >= 0 and last.shape == found["b7"].shape


def test_the_activated_input_of_a_block_is_a_tap():
    network = WideResNet38(0.125).eval()
    norms = [network.get_submodule(name) for name in ("b4.bn_branch2a", "b6.bn_branch2a")]
    for norm in norms:
        norm.get_buffer("running_mean").uniform_(-1, 1)
    with torch.no_grad():
        _, found = network(torch.randn(1, 3, 48, 64), ("b3_2", "b4.bn_branch2a", "b5_2", "b6.bn_branch2a"))
        assert torch.equal(found["b4.bn_branch2a"], norms[0](found["b3_2"]).relu())
        assert torch.equal(found["b6.bn_branch2a"], norms[1](found["b5_2"]).relu())
    assert {name: network.channels[name] for name in found} == {name: map.shape[1] for name, map in found.items()}


def test_full_width_is_the_published_network() -> None:
    with torch.device("meta"):
        network = WideResNet38()
    assert network.channels["b3_2"] == 256 and network.channels["b7"] == 4096
    assert network.get_parameter("b6.conv_branch2b2.weight").shape == (2048, 1024, 1, 1)
    assert network.get_parameter("b7.conv_branch2b1.weight").shape == (2048, 1024, 3, 3)


def test_training_does_not_move_the_statistics() -> None:
    network = WideResNet38(0.125).train()
    before = {name: value.clone() for name, value in network.named_buffers()}
    network(torch.randn(2, 3, 32, 32))
    assert all(torch.equal(before[name], value) for name, value in network.named_buffers())
    ordinary = WideResNet38(0.125, nn.BatchNorm2d).train()
    ordinary(torch.randn(2, 3, 32, 32))
    assert not torch.equal(ordinary.bn7.running_mean, torch.zeros_like(ordinary.bn7.running_mean))  # type: ignore[arg-type]


@pytest.mark.parametrize("stride", [1, 2])
def test_the_shortcut_reads_every_stride_th_position(stride: int) -> None:
    """In channels_last with 8 channels, as a narrow network trains: PyTorch's strided 1x1 convolution crashes there."""
    torch.manual_seed(0)
    block = ResidualBlock(8, 8, 16, stride, (1, 1), nn.BatchNorm2d)
    block.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    x = torch.randn(1, 8, 96, 96).contiguous(memory_format=torch.channels_last)
    found, activated = block(x)
    found.sum().backward()
    assert block.conv_branch1 is not None
    weight = block.conv_branch1.weight.detach().contiguous()
    main = block.conv_branch2b1(block.bn_branch2b1(block.conv_branch2a(activated)).relu())
    expected = torch.nn.functional.conv2d(activated.contiguous(), weight, stride=stride)
    assert torch.allclose(found - main, expected, atol=1e-5)
