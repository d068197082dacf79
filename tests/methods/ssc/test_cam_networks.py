"""CAM network, decoder and affinity network at small sizes."""

import pytest
import torch

from wsss.nn.checkpoint import load_weights, official_state_dict
from wsss.nn.irn import TRAINING_BUFFERS, build_affinity_network, training_buffers
from wsss.stages.affinity_irn import AffinityConfig, affinity_optimizer, padded_affinity_forward
from wsss_methods.ssc.networks import (
    CamNetwork,
    ReconstructionDecoder,
    class_scores,
)
from wsss_methods.ssc.training import cam_optimizer, decoder_optimizer

BACKBONES = ("resnet18", "resnet50", "mobilenet_v2")


def _small(backbone: str, **options) -> CamNetwork:
    torch.manual_seed(0)
    return CamNetwork(backbone, 0.125, num_classes=4, **options)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("normalization", ["frozen", "batch"])
def test_shapes_at_stride_16(backbone, normalization):
    network = _small(backbone, normalization=normalization)
    maps = network.train()(torch.randn(2, 3, 64, 80))
    assert maps.shape == (2, 4, 4, 5) and class_scores(maps).shape == (2, 4)
    inferred = network.eval().infer(torch.randn(2, 3, 50, 70))
    assert inferred.shape == (4, 4, 5) and inferred.min() >= 0


@pytest.mark.parametrize("backbone", BACKBONES)
def test_gradient_stops_after_layer2(backbone):
    x = torch.randn(2, 3, 64, 64)
    stopped, free = _small(backbone), _small(backbone, gradient_stop=False)
    stopped(x).square().sum().backward()
    free(x).square().sum().backward()
    trained = {name for name, parameter in stopped.named_parameters() if parameter.grad is not None}
    # Batch norm of frozen stages, too, has trainable scales that must stay.
    assert trained == {name for name, parameter in stopped.named_parameters() if parameter.requires_grad}
    assert any("layer3.0" in name or "features.7." in name for name in trained)
    assert not any("layer2" in name or name.split(".", 1)[1] == "conv1.weight" for name in trained)
    assert not any("features.6." in name for name in trained)
    assert all(parameter.grad is not None for parameter in free.parameters())


def test_suppression_after_layer2_is_in_training_only():
    x = torch.randn(1, 3, 64, 64)
    on, off = _small("resnet18"), _small("resnet18", drs_after_stage2=False)
    off.load_state_dict(on.state_dict())
    with torch.no_grad():
        assert not torch.allclose(on(x), off(x))
        pair = torch.cat([x, x.flip(-1)])
        assert torch.equal(on.infer(pair), off.infer(pair))


def test_delta_one_turns_suppression_off():
    x = torch.randn(1, 3, 64, 64)
    plain, unbounded = _small("resnet18", drs_delta=1.0, drs_after_stage2=False), _small("resnet18", drs_delta=1.0)
    unbounded.load_state_dict(plain.state_dict())
    with torch.no_grad():
        assert torch.equal(plain(x), unbounded(x))
        assert not torch.allclose(plain(x), _small("resnet18", drs_delta=0.5)(x))


def test_inference_of_a_mirrored_pair_is_mirrored():
    network = _small("resnet18").eval()
    x = torch.randn(1, 3, 64, 64)
    left = network.infer(torch.cat([x, x.flip(-1)]))
    right = network.infer(torch.cat([x.flip(-1), x]))
    torch.testing.assert_close(left, right.flip(-1), rtol=1e-4, atol=1e-5)


def test_frozen_normalization_keeps_statistics_and_batch_updates_them():
    for normalization, changes in (("frozen", False), ("batch", True)):
        network = _small("resnet18", normalization=normalization).train()
        before = network.get_buffer("backbone.bn1.running_mean").clone()
        network(torch.randn(2, 3, 64, 64) + 1)
        assert torch.equal(before, network.get_buffer("backbone.bn1.running_mean")) != changes


def test_published_names_round_trip():
    network = CamNetwork(width=0.125)
    published = official_state_dict(network, network.aliases())
    other = CamNetwork(width=0.125)
    load_weights(other, published, aliases=other.aliases())
    for name, value in network.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


@pytest.mark.parametrize("width", [0.125, 0.5])
def test_decoder_is_16_times_larger_and_bounded(width):
    decoder = ReconstructionDecoder(4, width)
    image = decoder(torch.randn(2, 4, 3, 5))
    assert image.shape == (2, 3, 48, 80) and image.abs().max() < 1


@pytest.mark.parametrize("backbone", BACKBONES)
def test_affinity_network_at_a_quarter(backbone):
    network = build_affinity_network(backbone, 0.125, head_width=0.5).train()
    edge, field = network(torch.randn(1, 3, 64, 96))
    assert edge.shape == (1, 1, 16, 24) and field.shape == (1, 2, 16, 24)
    (edge.sum() + field.sum()).backward()
    with_gradient = {name.split(".")[0] for name, p in network.named_parameters() if p.grad is not None}
    assert with_gradient == {f"fc_edge{i}" for i in range(1, 7)} | {f"fc_dp{i}" for i in range(1, 8)}


def test_a_trained_affinity_backbone_gets_a_gradient():
    network = build_affinity_network("resnet18", 0.125, train_backbone=True).train()
    edge, field = network(torch.randn(2, 3, 64, 64))
    (edge.sum() + field.sum()).backward()
    assert network.get_parameter("backbone.conv1.weight").grad is not None
    assert len(affinity_optimizer(network, AffinityConfig()).param_groups[0]["params"]) > len(network.edge_parameters())


def test_mean_shift_is_for_inference():
    network = build_affinity_network("resnet18", 0.125, head_width=0.5)
    network.mean_shift.running_mean.copy_(torch.tensor([2.0, -3.0]))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        difference = network.train()(x)[1] - network.eval()(x)[1]
    torch.testing.assert_close(difference.mean(dim=(0, 2, 3)), torch.tensor([2.0, -3.0]))


def test_affinity_checkpoint_with_training_buffers_loads():
    network = build_affinity_network("resnet50", 0.125)
    published = official_state_dict(network, network.aliases()) | training_buffers(5, (16, 16))
    load_weights(network, published, aliases=network.aliases(), ignore=TRAINING_BUFFERS)


@pytest.mark.parametrize("size", [(40, 56), (61, 90), (130, 100)])
def test_affinity_of_any_image_size_has_the_size_of_its_cam(size):
    network = build_affinity_network("resnet18", 0.125, head_width=0.5).eval()
    planes = torch.randn(3, *size)
    edge, field = padded_affinity_forward(network, planes, 96)
    quarter = ((size[0] + 3) // 4, (size[1] + 3) // 4)
    assert edge.shape == (1, *quarter) and field.shape == (2, *quarter)
    mirrored, _ = padded_affinity_forward(network, planes.flip(-1), 96)
    torch.testing.assert_close(edge, mirrored.flip(-1), rtol=1e-4, atol=1e-5)
    assert edge.min() >= 0 and edge.max() <= 1


def test_learning_rates_follow_the_published_groups():
    network, decoder = _small("resnet18"), ReconstructionDecoder(4, 0.125)
    sgd, adam = cam_optimizer(network), decoder_optimizer(decoder)
    assert [group["lr"] for group in sgd.param_groups] == [0.1, 1.0]
    assert [group["momentum"] for group in sgd.param_groups] == [1e-4, 1e-4]
    assert adam.param_groups[0]["betas"] == (0.5, 0.999) and adam.param_groups[0]["weight_decay"] == 0
    affinity = build_affinity_network("resnet18", 0.125)
    groups = affinity_optimizer(affinity, AffinityConfig()).param_groups
    assert [group["lr"] for group in groups] == [0.1, 1.0]
    assert sum(len(group["params"]) for group in groups) == 17 + 22
