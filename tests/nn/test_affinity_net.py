"""AffinityNet's start, gradients and groups (numbers: tests/parity)."""

import pytest
import torch

from wsss.nn.affinity_net import NEW_LAYERS, AffinityNet, MobileAffinityNet, build_affinity_net, parameter_groups
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
    features = network.feature_map(torch.rand(1, 3, 40, 32))
    assert features.shape[2:] == (5, 4)
    features.sum().backward()
    without = [name for name, value in network.named_parameters() if value.requires_grad and value.grad is None]
    assert without == []


def test_on_mobilenet_it_starts_from_torchvisions_file(shared):
    path = shared / "data" / "weights" / "mobilenet_v2_keras_int8-7edfbd0e.pth"
    torch.manual_seed(0)
    network = build_affinity_net("mobilenet_v2")
    assert isinstance(network, MobileAffinityNet)
    head = network.f9.weight.detach().clone()
    network.load_backbone(path)
    file = torch.load(path, weights_only=True)
    assert torch.equal(network.get_parameter("features.4.conv.0.0.weight"), file["features.4.conv.0.0.weight"])
    assert torch.equal(network.f9.weight, head)
    assert network.feature_map(torch.rand(1, 3, 41, 64)).shape == (1, 448, 6, 8)


@pytest.mark.parametrize("backbone", ["resnet38", "mobilenet_v2"])
def test_from_scratch_everything_is_trained_and_in_a_group(backbone):
    network = build_affinity_net(backbone, 0.0625, "batch").train()
    old, new = parameter_groups(network, NEW_LAYERS, 0.1, 0.01)
    assert len(old["params"]) + len(new["params"]) == len(list(network.parameters()))
    before = {name: value.clone() for name, value in network.named_buffers() if name.endswith("running_mean")}
    network.feature_map(torch.rand(2, 3, 40, 32)).square().sum().backward()
    assert all(value.grad is not None for value in network.parameters())
    assert all(not torch.equal(network.get_buffer(name), value) for name, value in before.items())
    frozen = build_affinity_net(backbone, 0.0625)
    assert len(parameter_groups(frozen, NEW_LAYERS, 0.1, 0.01)[0]["params"]) < len(old["params"]) / 2
    with pytest.raises(ValueError, match="no AffinityNet on vgg16"):
        build_affinity_net("vgg16")
