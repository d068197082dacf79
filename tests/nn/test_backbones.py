"""Shapes, names and published weights of the backbones."""

import pytest
import torch
from tests.torchvision_compat import import_torchvision
from torch import nn

from wsss.nn.checkpoint import load_weights, read_checkpoint
from wsss.nn.mobilenet import MobileNetV2
from wsss.nn.resnet import ResNet, ResNetStructure, resnet_structure
from wsss.nn.suppression import DiscriminativeRegionSuppression
from wsss.nn.vgg import Vgg19Slices, slices_from_torchvision, vgg_features


@pytest.mark.parametrize(
    ("strides", "dilations", "total"),
    [((1, 2, 2, 2), (1, 1, 1, 1), 32), ((1, 2, 2, 1), (1, 1, 1, 1), 16), ((1, 2, 1, 1), (1, 1, 2, 4), 8)],
)
@pytest.mark.parametrize("depth", [18, 50])
def test_stage_shapes(depth, strides, dilations, total):
    network = ResNet(resnet_structure(depth, strides=strides, dilations=dilations, width=0.125)).eval()
    outputs = network(torch.randn(1, 3, 64, 96))
    assert [o.shape[1] for o in outputs] == list(network.channels)
    for output, stride in zip(outputs, network.strides, strict=True):
        assert tuple(output.shape[2:]) == (64 // stride, 96 // stride)
    assert network.strides[-1] == total


@pytest.mark.parametrize("depth", [18, 50])
def test_resnet_is_torchvisions(depth):
    torchvision = import_torchvision()
    reference = getattr(torchvision.models, f"resnet{depth}")().eval()
    network = ResNet(resnet_structure(depth)).eval()
    load_weights(network, reference.state_dict(), ignore=(r"fc\..*",))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        pooled = network(x)[-1].mean(dim=(2, 3))
        torch.testing.assert_close(reference.fc(pooled), reference(x), rtol=1e-4, atol=1e-4)


def test_mobilenet_is_torchvisions():
    reference = import_torchvision().models.mobilenet_v2().eval()
    network = MobileNetV2(output_stride=32).eval()
    load_weights(network, reference.state_dict(), ignore=(r"classifier\..*",))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network(x)[-1], reference.features(x), rtol=1e-4, atol=1e-5)


def test_vgg_slices_are_torchvisions():
    reference = import_torchvision().models.vgg19().eval()
    network = Vgg19Slices()
    load_weights(network, slices_from_torchvision(reference.state_dict()))
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        levels = network(x)
        for level, end in zip(levels, (2, 7, 12, 21, 30), strict=True):
            torch.testing.assert_close(level, reference.features[:end](x), rtol=1e-4, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_vgg16_is_torchvisions_and_at_stride_8_has_its_weights():
    reference = import_torchvision().models.vgg16().eval().features
    plain, fine = vgg_features(16), vgg_features(16, output_stride=8)
    plain.load_state_dict(reference.state_dict())
    fine.load_state_dict(reference.state_dict())
    x = torch.randn(1, 3, 67, 80)
    with torch.no_grad():
        torch.testing.assert_close(plain(x), reference(x), rtol=1e-4, atol=1e-5)
        assert fine(x).shape == (1, 512, 8, 10)
        # Up to the fourth pooling they are one network; behind it each position of the fine one sees as far.
        assert torch.equal(fine[:23](x), plain[:23](x))
    assert [fine[index].dilation for index in (24, 26, 28)] == [(2, 2)] * 3 and len(fine) == 30


@pytest.mark.parametrize("dilated", [False, True])
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_mobilenet_strides(output_stride, dilated):
    network = MobileNetV2(0.25, output_stride, dilated).eval()
    x = torch.randn(1, 3, 64, 64)
    outputs = network(x)
    assert [o.shape[1] for o in outputs] == list(network.channels)
    assert [64 // o.shape[2] for o in outputs] == list(network.strides)
    assert network.strides == (4, 4, 8, min(16, output_stride), output_stride)
    for layer, channels in zip(network.features, network.layer_channels, strict=True):
        x = layer(x)
        assert x.shape[1] == channels


@pytest.mark.parametrize("output_stride", [8, 16])
def test_a_dilated_mobilenet_keeps_the_values_of_the_strided_one(output_stride):
    """Its positions on the grid of stride 32 hold what the published network, and so ImageNet's weights, give there."""
    strided, dilated = MobileNetV2(0.25, 32).eval(), MobileNetV2(0.25, output_stride, dilated=True).eval()
    dilated.load_state_dict(strided.state_dict())
    x, step = torch.randn(2, 3, 75, 101), 32 // output_stride
    torch.testing.assert_close(dilated(x)[-1][..., ::step, ::step], strided(x)[-1], rtol=1e-4, atol=1e-12)


def test_mobilenet_loads_the_pretrained_file(shared):
    path = shared / "data" / "weights" / "mobilenet_v2_keras_int8-7edfbd0e.pth"
    network = MobileNetV2()
    load_weights(network, read_checkpoint(path), ignore=(r"classifier\..*",), where=str(path))
    assert torch.equal(
        network.state_dict()["features.0.0.weight"], torch.load(path, weights_only=True)["features.0.0.weight"]
    )


def test_a_module_after_each_block_of_one_layer():
    network = ResNet(
        resnet_structure(18, width=0.125),
        after_block=lambda layer: DiscriminativeRegionSuppression(0.5) if layer == 4 else None,
    )
    found = [name for name, module in network.named_modules() if isinstance(module, DiscriminativeRegionSuppression)]
    assert found == ["layer4.0.after", "layer4.1.after"]
    plain = ResNet(resnet_structure(18, width=0.125))
    assert list(network.state_dict()) == list(plain.state_dict())


def test_multi_grid_needs_a_factor_for_each_block():
    with pytest.raises(ValueError, match="multi_grid"):
        ResNetStructure(multi_grid=(1, 2))


def test_deep_stem_and_pooled_shortcut():
    structure = resnet_structure(
        50, strides=(1, 2, 2, 1), width=0.125, stem="deep", stem_under_prefix=True, average_pool_shortcut=True
    )
    network = ResNet(structure).eval()
    names = list(network.state_dict())
    assert "stem_layer.conv3.weight" in names and "layer1.0.downsample.0.weight" in names
    assert "layer4.0.downsample.1.weight" in names and "layer4.0.downsample.0.weight" not in names
    assert network(torch.randn(1, 3, 64, 64))[-1].shape[2:] == (4, 4)


@pytest.mark.parametrize("delta", [0.3, 0.55])
def test_suppression_bounds_every_channel(delta):
    x = torch.randn(2, 3, 5, 6).relu()
    out = DiscriminativeRegionSuppression(delta)(x)
    bound = delta * x.amax(dim=(2, 3), keepdim=True)
    assert torch.all(out <= bound) and torch.equal(out[x <= bound], x[x <= bound])
    assert torch.equal(DiscriminativeRegionSuppression(1.0)(x), x)
    with pytest.raises(ValueError, match="delta"):
        DiscriminativeRegionSuppression(1.5)


def test_width_scales_parameters():
    def count(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    assert count(ResNet(resnet_structure(18, width=0.25))) < count(ResNet(resnet_structure(18))) / 10
