"""Every architecture of the recipe can be built narrow, and starts from its ImageNet file at full width."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from wsss.nn.checkpoint import CheckpointError, load_imagenet_body
from wsss_methods.ssc.networks import build_segmentation_network
from wsss_methods.ssc.recipe import SEGMENTATION_ARCHITECTURES, SegmentationSettings


def settings(architecture: str, width: float) -> SegmentationSettings:
    return replace(SegmentationSettings(), architecture=architecture, width=width)


@pytest.mark.parametrize("architecture", SEGMENTATION_ARCHITECTURES)
def test_narrow_networks_have_the_same_interface(architecture: str) -> None:
    narrow = build_segmentation_network(settings(architecture, 0.25), 5).eval()
    with torch.no_grad():
        pre_logits, logits = narrow(torch.zeros(1, 3, 64, 64))
    assert logits.shape == (1, 5, 64, 64)
    assert pre_logits.shape[1] == 5 and pre_logits.shape[2] < 64
    # Learning rates are given by this prefix.
    heads = [name for name, _ in narrow.named_parameters() if not name.startswith("backbone.")]
    assert 0 < len(heads) < len(list(narrow.parameters()))
    half = build_segmentation_network(settings(architecture, 0.5), 5)
    assert sum(p.numel() for p in narrow.parameters()) < sum(p.numel() for p in half.parameters())


def test_imagenet_start(shared: Path) -> None:
    path = shared / "data" / "weights" / "mobilenet_v2_keras_int8-7edfbd0e.pth"
    if not path.is_file():
        pytest.skip("no ImageNet weights in the shared data")
    network = build_segmentation_network(settings("deeplabv2_mobilenet_v2", 1.0), 5)
    load_imagenet_body(network.get_submodule("backbone"), path)
    expected = torch.load(path, weights_only=True)["features.0.0.weight"]
    assert torch.equal(network.state_dict()["backbone.features.0.0.weight"], expected)
    with pytest.raises(CheckpointError):
        other = build_segmentation_network(settings("deeplabv2_r18", 1.0), 5)
        load_imagenet_body(other.get_submodule("backbone"), path)
