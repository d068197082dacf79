"""Bodies, gate, freezing and optimizer groups of WS-FCN beyond what the reference outputs say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from wsss.nn.backbones import FROZEN_LAYERS, TAP_BACKBONES, Taps
from wsss.nn.checkpoint import CheckpointError, load_imagenet_body
from wsss_methods.wsfcn.networks import (
    FeatureFusion,
    FlowAlignment,
    StochasticGate,
    Structure,
    WsFcn,
    official_name,
    own_name,
    parameter_groups,
)

NARROW = 0.125


@pytest.mark.parametrize("name", TAP_BACKBONES)
def test_taps_have_the_stated_channels_and_strides(name: str) -> None:
    taps = Taps(name, NARROW).eval()
    with torch.no_grad():
        low, deep = taps(torch.randn(1, 3, 65, 81))
    assert low.shape[1] == taps.low_channels and deep.shape[1] == taps.deep_channels
    assert low.shape[2:] == (17, 21)
    assert deep.shape[2:] == ((9, 11) if name == "resnet38" else (5, 6))


@pytest.mark.parametrize("name", TAP_BACKBONES)
def test_a_frozen_body_does_not_move_in_training(name: str) -> None:
    taps = Taps(name, NARROW).train()
    buffers = {key: value.clone() for key, value in taps.named_buffers()}
    low, deep = taps(torch.randn(2, 3, 65, 65))
    (low.mean() + deep.mean()).backward()
    assert all(torch.equal(buffers[key], value) for key, value in taps.named_buffers())
    for layer in FROZEN_LAYERS[name]:
        assert all(p.grad is None for p in taps.body.get_submodule(layer).parameters())
    for module in taps.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert not module.weight.requires_grad and not module.bias.requires_grad
    trained = Taps(name, NARROW, "batch").train()
    assert all(parameter.requires_grad for parameter in trained.parameters())


@pytest.mark.parametrize("name", TAP_BACKBONES)
def test_a_whole_network_trains(name: str) -> None:
    network = WsFcn(Structure(4, name, NARROW, head_width=8)).train()
    logits = network(torch.randn(2, 3, 65, 65))
    assert logits.shape == (2, 4, 17, 17) and (logits[:, 0] == 1).all()
    logits[:, 1:].mean().backward()
    without = {official_name(key) for key, p in network.named_parameters() if p.requires_grad and p.grad is None}
    assert without == {f"fca.fca{number}.bn.{part}" for number in range(1, 5) for part in ("weight", "bias")}


def test_official_names_go_both_ways() -> None:
    network = WsFcn(Structure(4, "vgg16", NARROW, head_width=8))
    for name in network.state_dict():
        assert own_name(official_name(name)) == name


def test_every_trained_parameter_is_in_one_group_and_biases_do_not_decay() -> None:
    network = WsFcn(Structure(4, "vgg16", NARROW, head_width=8))
    groups = parameter_groups(network, learning_rate=0.1, weight_decay=0.5, multipliers=(1, 2, 3, 4))
    names = [name for group in groups for name in group["names"]]
    assert len(names) == len(set(names))
    assert set(names) == {official_name(n) for n, p in network.named_parameters() if p.requires_grad}
    assert [group["lr"] for group in groups] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0, 0.5, 0.0]
    torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def test_the_gate_draws_anew_for_every_shape_and_element() -> None:
    torch.manual_seed(0)
    gate = StochasticGate(0.3).train()
    for shape in ((2, 3, 40, 40), (1, 2, 7, 5)):
        deep, shallow = torch.full(shape, 5.0), torch.full(shape, 1.0)
        mixed = gate(deep, shallow)
        assert sorted(mixed.unique().tolist()) == pytest.approx([1.0, (5 - 0.3) / 0.7])
    torch.manual_seed(0)
    wide = (4, 8, 64, 64)
    mixed = gate(torch.full(wide, 5.0), torch.full(wide, 1.0))
    assert float((mixed == 1).float().mean()) == pytest.approx(0.3, abs=0.01)
    assert float(mixed.mean()) == pytest.approx(5.0, abs=0.05), "the expectation is the deep map"
    assert float(gate.eval()(torch.full(wide, 5.0), torch.full(wide, 1.0)).mean()) == pytest.approx(3.8)
    with pytest.raises(ValueError, match="psi"):
        StochasticGate(1.0)


def test_alignment_without_flow_is_a_resize_with_aligned_corners() -> None:
    align = FlowAlignment(4, 6, 3)
    nn.init.zeros_(align.flow_make.weight)
    low, high = torch.randn(1, 4, 9, 13), torch.randn(1, 6, 5, 4)
    expected = nn.functional.interpolate(high, size=(9, 13), mode="bilinear", align_corners=True)
    assert torch.allclose(align(low, high), expected, atol=1e-5)


def test_fusion_resizes_a_deep_map_of_another_size() -> None:
    fusion = FeatureFusion(4, 6, 8).eval()
    shallow, deep = fusion(torch.randn(1, 4, 8, 10), torch.randn(1, 6, 4, 5))
    assert shallow.shape == deep.shape == (1, 8, 8, 10)


def test_imagenet_files_load_without_their_classifier_and_must_be_complete(tmp_path: Path) -> None:
    source, target = Taps("resnet38", NARROW), Taps("resnet38", NARROW)
    state = {**source.body.state_dict(), "linear1000.weight": torch.ones(2, 2), "linear1000.bias": torch.ones(2)}
    torch.save(state, tmp_path / "body.pth")
    load_imagenet_body(target.body, tmp_path / "body.pth")
    assert all(torch.equal(value, state[name]) for name, value in target.body.state_dict().items())
    del state["b4_3.conv_branch2a.weight"]
    torch.save(state, tmp_path / "body.pth")
    with pytest.raises(CheckpointError, match=r"missing: b4_3.conv_branch2a.weight"):
        load_imagenet_body(target.body, tmp_path / "body.pth")
    with pytest.raises(ValueError, match="unknown backbone"):
        Taps("resnet39")
