"""Classification networks: what their parts see, what is trained, and the published names."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from wsss.nn.checkpoint import load_weights
from wsss_methods.msa.networks import (
    PlainNetwork,
    ReconstructionNetwork,
    Structure,
    aliases,
    build_network,
    parameter_groups,
    published_state_dict,
)

SMALL = Structure(num_classes=4, backbone="resnet18", width=0.25, normalization="batch", head_width=16)


def inputs(seed: int = 0, height: int = 48, width: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(2, 3, height, width, generator=generator)
    return image, torch.randn(2, 9, height, width, generator=generator).softmax(1)


def small(**changes: object) -> ReconstructionNetwork:
    torch.manual_seed(0)
    return ReconstructionNetwork(Structure(**{**vars(SMALL), **changes})).eval()  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", "mobilenet_v2"])
def test_scores_features_and_the_mean_of_what_is_classified(backbone: str) -> None:
    network = small(backbone=backbone, normalization="frozen")
    found = network(*inputs())
    assert found.scores.shape == (2, 4, 3, 4) and found.pooled.shape == (2, 4, 1, 1)
    assert found.features.shape[2:] == (3, 4)
    maps = network.features(*inputs())
    torch.testing.assert_close(found.pooled[..., 0, 0], maps["scores"].mean(dim=(2, 3)))
    for kernels in (maps["kernels4"], maps["kernels5"]):
        torch.testing.assert_close(kernels.sum(dim=1), torch.ones(2, 3, 4))


@pytest.mark.parametrize(
    ("dcr_inputs", "sees_superpixels", "sees_features"),
    [("both", True, True), ("features", False, True), ("superpixels", True, False)],
)
def test_kernels_are_predicted_from_what_the_recipe_names(
    dcr_inputs: str, sees_superpixels: bool, sees_features: bool
) -> None:
    network = small(dcr_inputs=dcr_inputs)
    (image, association), (other_image, other_association) = inputs(0), inputs(1)
    kernels = network.features(image, association)["kernels4"]
    assert torch.equal(network.features(image, other_association)["kernels4"], kernels) != sees_superpixels
    assert torch.equal(network.features(other_image, association)["kernels4"], kernels) != sees_features
    head = network.get_submodule("get_tran_conv4.0.0")
    assert head.get_parameter("weight").shape[1] == 16 * (1 + (dcr_inputs == "both"))
    names = network.state_dict()
    assert any(name.startswith("get_qfeats.") for name in names) == sees_superpixels
    assert any(name.startswith("x4_feats.") for name in names) == sees_features


def test_kernels_send_no_gradient_into_the_backbone() -> None:
    network = small().train()
    image, association = inputs()
    network.features(image, association)["kernels5"].square().sum().backward()
    # kernels5 hang on the backbone through what they see alone, and that is cut off.
    assert all(parameter.grad is None for parameter in network.model.parameters())
    assert network.get_submodule("x5_feats.0.0").get_parameter("weight").grad is not None


def test_the_plain_classifier_trains_behind_layer2_alone_unless_the_gradient_goes_on() -> None:
    for gradient_stop in (True, False):
        torch.manual_seed(0)
        network = build_network(Structure(**{**vars(SMALL), "dcr": False, "gradient_stop": gradient_stop}))
        assert isinstance(network, PlainNetwork)
        network(*inputs()).pooled.sum().backward()
        trained = {name.split(".")[1] for name, p in network.named_parameters() if p.grad is not None and "." in name}
        assert {"layer3", "layer4"} <= trained
        assert ("conv1" in trained) == ("layer2" in trained) == (not gradient_stop)


def test_what_the_plain_classifier_of_the_published_files_never_calls_is_not_trained() -> None:
    network = PlainNetwork(Structure(num_classes=4, width=0.125, dcr=False))
    assert not network.get_parameter("ala1.weight").requires_grad
    groups = parameter_groups(network, learning_rate=1.0, head_lr_mult=10.0, weight_decay=0.1)
    assert [len(group["params"]) for group in groups][2:] == [1, 0]


def test_biases_learn_twice_as_fast_without_weight_decay() -> None:
    network = small()
    groups = parameter_groups(network, learning_rate=0.1, head_lr_mult=10.0, weight_decay=4e-5)
    assert [group["lr"] for group in groups] == pytest.approx([0.1, 0.2, 1.0, 2.0])
    assert [group["weight_decay"] for group in groups] == [4e-5, 0, 4e-5, 0]
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))
    assert network.get_parameter("get_tran_conv4.1.0.bias") in set(groups[3]["params"])
    assert network.get_parameter("model.bn1.weight") in set(groups[0]["params"])


def test_the_published_file_has_both_names_of_the_backbone_and_either_is_read() -> None:
    network, other = small(), small()
    for parameter in other.parameters():
        torch.nn.init.constant_(parameter, 0.5)
    state = published_state_dict(network)
    assert torch.equal(state["stage2.0.0.conv1.weight"], state["model.layer1.0.conv1.weight"])
    for dropped in ("model.", "stage", "nothing"):
        load_weights(other, {k: v for k, v in state.items() if not k.startswith(dropped)}, aliases=aliases(other))
        assert all(torch.equal(a, b) for a, b in zip(other.parameters(), network.parameters(), strict=True))
    assert not aliases(small(backbone="mobilenet_v2"))
