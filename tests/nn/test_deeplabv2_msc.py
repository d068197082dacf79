"""Official names, start weights and parameter groups of DeepLabV2 with multi-scale inputs (numbers: tests/parity)."""

from dataclasses import replace

import pytest
import torch

from wsss.nn.checkpoint import CheckpointError
from wsss.nn.deeplabv2_msc import DeepLabV2Msc, DeepLabV2Structure, parameter_groups, published_name

SMALL = DeepLabV2Structure(depth=50, width=0.125)


@pytest.mark.parametrize("form", ["caffe", "torchvision"])
def test_a_published_state_dict_loads_back(form):
    torch.manual_seed(0)
    structure = replace(SMALL, form=form)
    first, second = DeepLabV2Msc(structure, 4).eval(), DeepLabV2Msc(structure, 4).eval()
    image = torch.rand(1, 3, 40, 56)
    second.load_published({f"module.{name}": value for name, value in first.published_state_dict().items()})
    assert torch.equal(first(image), second(image))
    # Pooling with incomplete windows gives one more cell at even sizes.
    assert first(image).shape == ((1, 4, 6, 8) if form == "caffe" else (1, 4, 5, 7))
    with pytest.raises(CheckpointError, match="missing"):
        DeepLabV2Msc(replace(structure, form={"caffe": "torchvision"}.get(form, "caffe")), 4).load_published(
            first.published_state_dict()
        )


@pytest.mark.parametrize("names", ["torchvision", "caffe"])
def test_a_backbone_starts_from_torchvision_or_from_the_caffe_port(tmp_path, names):
    torch.manual_seed(1)
    source, network = DeepLabV2Msc(SMALL, 4), DeepLabV2Msc(SMALL, 4)
    state = {f"base.backbone.{name}": value for name, value in source.base.backbone.state_dict().items()}
    if names == "caffe":
        state = {published_name(name, "caffe").removeprefix("base."): value for name, value in state.items()}
    else:
        state = {name.removeprefix("base.backbone."): value for name, value in state.items()}
        state["fc.weight"] = torch.zeros(3, 3)
    head = network.base.aspp.state_dict()["c0.weight"].clone()
    torch.save(state, tmp_path / "start.pth")
    network.load_backbone(tmp_path / "start.pth")
    for name, value in source.base.backbone.state_dict().items():
        assert torch.equal(network.base.backbone.state_dict()[name], value), name
    assert torch.equal(network.base.aspp.state_dict()["c0.weight"], head)
    torch.save({name: value for name, value in state.items() if "conv1" not in name}, tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match="missing"):
        network.load_backbone(tmp_path / "part.pth")


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("form", ["caffe", "torchvision", "mobilenet_v2"])
def test_the_output_stride_is_that_of_the_logits(form, stride):
    network = DeepLabV2Msc(replace(SMALL, form=form, output_stride=stride), 4).eval()
    # Windows of the Caffe form's pooling are incomplete at even sizes.
    assert network(torch.rand(1, 3, 65, 97)).shape == (1, 4, 64 // stride + 1, 96 // stride + 1)
    assert [getattr(network.base.aspp, f"c{i}").dilation[0] * stride for i in range(4)] == [48, 96, 144, 192]


def test_mobilenet_has_its_own_names_and_starts_from_torchvision(tmp_path):
    torch.manual_seed(3)
    structure = replace(SMALL, form="mobilenet_v2", output_stride=16)
    source, network = DeepLabV2Msc(structure, 4).eval(), DeepLabV2Msc(structure, 4).eval()
    state = source.published_state_dict()
    assert list(state) == list(source.state_dict()) and "base.backbone.features.18.0.weight" in state
    network.load_published(state)
    image = torch.rand(1, 3, 40, 56)
    assert torch.equal(source(image), network(image))
    body = {name: torch.full_like(value, 3) for name, value in source.base.backbone.state_dict().items()}
    torch.save({**body, "classifier.1.weight": torch.zeros(2, 2)}, tmp_path / "start.pth")
    network.load_backbone(tmp_path / "start.pth")
    assert all(torch.equal(value, body[name]) for name, value in network.base.backbone.state_dict().items())
    torch.save({"features.0.0.weight": body["features.0.0.weight"]}, tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match="missing"):
        network.load_backbone(tmp_path / "part.pth")
    rates = [(len(group["params"]), group["lr"]) for group in parameter_groups(network, 0.1, 0.01)]
    assert rates == [(len(list(network.base.backbone.parameters())), 0.1), (8, 1.0)]


def test_groups_of_the_optimizer():
    caffe, torchvision = DeepLabV2Msc(SMALL, 4), DeepLabV2Msc(replace(SMALL, form="torchvision"), 4)
    groups = parameter_groups(caffe, 0.1, 0.01)
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(0.1, 0.01), (1.0, 0.01), (2.0, 0.0)]
    assert [len(group["params"]) for group in groups] == [53, 4, 4]
    trained = {id(value) for group in groups for value in group["params"]}
    assert trained == {id(value) for value in caffe.parameters() if value.requires_grad}
    single = parameter_groups(torchvision, 0.1, 0.01, head_factor=1)
    assert {(group["lr"], group["weight_decay"]) for group in single} == {(0.1, 0.01)}
    assert sum(len(group["params"]) for group in single) == len(list(torchvision.parameters()))


def test_norms_are_frozen_or_take_groups_of_images():
    images = torch.rand(4, 3, 33, 33)
    frozen = DeepLabV2Msc(SMALL, 4).train()
    norm = frozen.get_buffer("base.backbone.bn1.running_mean")
    before = norm.clone()
    frozen(images)
    assert torch.equal(norm, before)
    torch.manual_seed(2)
    grouped = DeepLabV2Msc(replace(SMALL, freeze_norm=False, norm_group=2), 4).train()
    whole = [logits[2:] for logits in grouped(images)]
    for ours, alone in zip(whole, grouped(images[2:]), strict=True):
        torch.testing.assert_close(ours, alone, rtol=1e-4, atol=1e-5)
