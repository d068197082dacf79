"""AffinityNet's start, gradients and groups (numbers: tests/parity)."""

import pytest
import torch

from wsss.nn.affinity_net import NEW_LAYERS, AffinityNet, parameter_groups
from wsss.nn.checkpoint import CheckpointError
from wsss.nn.wide_resnet38 import WideResNet38


def test_the_backbone_starts_from_the_imagenet_file(tmp_path):
    torch.manual_seed(0)
    source, network = WideResNet38(0.125), AffinityNet(0.125)
    torch.save({**source.state_dict(), "linear1000.weight": torch.zeros(2)}, tmp_path / "resnet38.pth")
    head = network.f9.weight.detach().clone()
    network.load_backbone(tmp_path / "resnet38.pth")
    assert all(torch.equal(network.state_dict()[name], value) for name, value in source.state_dict().items())
    assert torch.equal(network.f9.weight, head)
    torch.save({"conv1a.weight": source.conv1a.weight}, tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match="missing"):
        network.load_backbone(tmp_path / "part.pth")


def test_only_trained_convolutions_are_in_the_groups():
    network = AffinityNet(0.125)
    old, new = parameter_groups(network, NEW_LAYERS, 0.1, 0.01)
    assert (old["lr"], new["lr"]) == (0.1, 1.0) and len(new["params"]) == len(NEW_LAYERS)
    names = {id(value): name for name, value in network.named_parameters()}
    trained = {names[id(value)].split(".")[0] for value in old["params"]}
    assert "b3" in trained and not trained & {"conv1a", "b2", "b2_1", "b2_2", "bn7"}
    features = network.features(torch.rand(1, 3, 40, 32))
    assert features.shape[2:] == (5, 4)
    features.sum().backward()
    without = [name for name, value in network.named_parameters() if value.requires_grad and value.grad is None]
    assert without == []
