"""The three segmentation networks: shapes, small variants, gradients, weight files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from wsss.nn.backbones import SegmentationBackbone
from wsss.nn.checkpoint import CheckpointError, load_imagenet_body
from wsss.nn.deeplabv2 import DeepLabV2
from wsss.nn.deeplabv3plus import DeepLabV3Plus
from wsss.nn.segformer import MixTransformer, SegFormer, StochasticDepth

CLASSES = 5


def small_deeplabv2() -> DeepLabV2:
    return DeepLabV2(CLASSES, SegmentationBackbone("resnet18", output_stride=8, width=0.25))


def small_deeplabv2_mobilenet() -> DeepLabV2:
    return DeepLabV2(CLASSES, SegmentationBackbone("mobilenet_v2", output_stride=16, width=0.25))


def small_deeplabv3plus() -> DeepLabV3Plus:
    backbone = SegmentationBackbone(
        "resnet50",
        output_stride=16,
        width=0.125,
        depths=(1, 1, 1, 2),
        multi_grid=(1, 2, 4),
        deep_stem=True,
        average_pool_shortcut=True,
    )
    return DeepLabV3Plus(CLASSES, backbone, width=32)


def small_segformer() -> SegFormer:
    return SegFormer(
        CLASSES, widths=(8, 16, 40, 64), depths=(1, 1, 2, 1), embed_width=32, fused_width=24, drop_path=0.5
    )


@pytest.mark.parametrize(
    ("make", "stride"),
    [
        (small_deeplabv2, 8),
        (small_deeplabv2_mobilenet, 16),
        (small_deeplabv3plus, 4),
        (small_segformer, 4),
    ],
)
def test_small_variants_train_at_64(make, stride: int) -> None:
    torch.manual_seed(0)
    network = make().train()
    images = torch.randn(2, 3, 64, 64)
    pre_logits, logits = network(images)
    assert pre_logits.shape == (2, CLASSES, 64 // stride, 64 // stride)
    assert logits.shape == (2, CLASSES, 64, 64)
    expected = nn.functional.interpolate(pre_logits, size=(64, 64), mode="bilinear", align_corners=False)
    assert torch.equal(logits, expected)
    nn.functional.cross_entropy(logits, torch.randint(CLASSES, (2, 64, 64))).backward()
    without = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert not without
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


@pytest.mark.parametrize("make", [small_deeplabv2, small_segformer])
def test_sides_need_not_be_multiples_of_the_stride(make) -> None:
    network = make().eval()
    with torch.no_grad():
        assert network(torch.randn(1, 3, 50, 71))[1].shape == (1, CLASSES, 50, 71)


def test_pooled_shortcuts_refuse_odd_sides() -> None:
    with pytest.raises(ValueError, match="multiples of 16"):
        small_deeplabv3plus()(torch.randn(1, 3, 64, 72))


def test_classifiers_start_as_published() -> None:
    torch.manual_seed(0)
    network = DeepLabV2(21, SegmentationBackbone("resnet18", width=0.5))
    weights = torch.cat([getattr(network.aspp, f"c{i}").weight.flatten() for i in range(4)])
    assert weights.std().item() == pytest.approx(0.01, rel=0.05)
    assert all(not getattr(network.aspp, f"c{i}").bias.any() for i in range(4))


def test_output_stride_changes_resolution_not_names() -> None:
    fine = DeepLabV2(CLASSES, SegmentationBackbone("resnet18", output_stride=8, width=0.125)).eval()
    coarse = DeepLabV2(CLASSES, SegmentationBackbone("resnet18", output_stride=16, width=0.125)).eval()
    coarse.load_state_dict(fine.state_dict())
    image = torch.randn(1, 3, 64, 64)
    assert fine(image)[0].shape[2:] == (8, 8)
    assert coarse(image)[0].shape[2:] == (4, 4)


def test_unknown_backbones_are_named() -> None:
    with pytest.raises(ValueError, match="resnet999"):
        DeepLabV2(CLASSES, SegmentationBackbone("resnet999"))


def test_stochastic_depth_drops_whole_samples_in_training_only() -> None:
    torch.manual_seed(0)
    layer = StochasticDepth(0.25)
    branch = torch.ones(4000, 3, 2)
    dropped = layer(branch).flatten(1)
    kept = dropped[:, 0]
    assert torch.equal(dropped.amin(dim=1), dropped.amax(dim=1))
    assert kept.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert (kept > 0).float().mean().item() == pytest.approx(0.75, abs=0.03)
    assert torch.equal(layer.eval()(branch), branch)


def test_stochastic_depth_rates_rise_linearly() -> None:
    encoder = MixTransformer(drop_path=0.15)
    rates = [block.drop_path.rate for i in range(1, 5) for block in getattr(encoder, f"block{i}")]
    assert rates == pytest.approx([0.01 * i for i in range(16)])


def test_inconsistent_stages_are_refused() -> None:
    with pytest.raises(ValueError, match="four stages"):
        SegFormer(depths=(1, 1, 1))
    with pytest.raises(ValueError, match="attention heads"):
        SegFormer(widths=(8, 15, 40, 64))


def torchvision_names(name: str) -> str:
    return name.removeprefix("stem_layer.")


def mmcls_names(name: str) -> str:
    for i in (1, 2, 3):
        name = name.replace(f"stem_layer.conv{i}.", f"stem.{i - 1}.conv.")
        name = name.replace(f"stem_layer.bn{i}.", f"stem.{i - 1}.bn.")
    return f"backbone.{name}"


@pytest.mark.parametrize(
    ("make", "rename", "classifier", "level"),
    [
        (small_deeplabv2, torchvision_names, "fc.weight", None),
        (small_deeplabv2_mobilenet, str, "classifier.1.weight", None),
        (small_deeplabv3plus, mmcls_names, "head.fc.weight", "state_dict"),
        (small_segformer, str, "head.weight", None),
    ],
)
def test_imagenet_files_fill_the_backbone(make, rename, classifier: str, level: str | None, tmp_path: Path) -> None:
    torch.manual_seed(1)
    reference = {name: torch.rand_like(v.float()) for name, v in make().backbone.state_dict().items()}
    in_file = {rename(name): v for name, v in reference.items() if not name.endswith("num_batches_tracked")}
    in_file[classifier] = torch.zeros(10, 3)
    path = tmp_path / "weights.pth"
    torch.save({level: in_file, "meta": {"epoch": 3}} if level else in_file, path)
    network = make()
    load_imagenet_body(network.backbone, path)
    for name, value in network.backbone.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, reference[name]), name

    del in_file[rename(next(iter(reference)))]
    torch.save(in_file, path)
    with pytest.raises(CheckpointError, match=r"missing[\s\S]*weights\.pth"):
        load_imagenet_body(make().backbone, path)


def test_files_of_another_architecture_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(small_segformer().backbone.state_dict(), path)
    with pytest.raises(CheckpointError, match="unexpected"):
        load_imagenet_body(small_deeplabv2().backbone, path)
    with pytest.raises(CheckpointError, match="no such weights file"):
        load_imagenet_body(small_deeplabv2().backbone, tmp_path / "absent.pth")
