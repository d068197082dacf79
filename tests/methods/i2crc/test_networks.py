"""The classifier: names, sizes, initial weights, rates and the file that it starts from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from wsss.nn.backbones import Normalization
from wsss.nn.checkpoint import CheckpointError
from wsss.pipeline import StageContext
from wsss.recipe import RecipeError, load_recipe
from wsss_methods.i2crc.networks import Classifier, parameter_groups
from wsss_methods.i2crc.recipe import CamSettings
from wsss_methods.i2crc.training import build_cam_training, build_classifier

NARROW = CamSettings(width=0.125, head_width=16, relation_losses=False)


def context_of(config: CamSettings, **files: Path) -> StageContext:
    """A training stage on four classes without a picture."""
    data = cast(Any, SimpleNamespace(names=("a", "b"), num_classes=5))
    return StageContext(stage="cam_train", config=config, data=data, inputs={}, files=files)


@pytest.mark.parametrize(
    ("backbone", "size"), [("vgg16", (12, 10)), ("mobilenet_v2", (7, 5)), ("resnet18", (7, 5)), ("resnet50", (7, 5))]
)
def test_sizes_of_the_class_maps(backbone: str, size: tuple[int, int]) -> None:
    network = Classifier(backbone, width=0.125, head_width=16, num_classes=4)
    image = torch.randn(2, 3, 97, 80)
    maps = network(image).detach()
    assert maps.shape == (2, 4, *size)
    assert (maps < 0).any(), "class maps are not rectified"
    assert torch.allclose(network.infer(image[:1]), maps[0], rtol=1e-3, atol=1e-3 * float(maps.abs().max()))


def test_initial_weights_keep_the_variance_of_gradients() -> None:
    torch.manual_seed(0)  # of the few weights of the first layer, one draw in twenty is further off than 5 %
    network = Classifier(width=0.5, head_width=256)
    for name, value in network.named_parameters():
        if name.endswith("bias"):
            assert (value == 0).all(), name
        else:
            channels, _, height, width = value.shape
            expected = (2 / (height * width * channels)) ** 0.5
            assert float(value.detach().std()) == pytest.approx(expected, rel=0.05), name


def test_every_parameter_is_in_the_group_of_its_name() -> None:
    network = Classifier("mobilenet_v2", width=0.125, head_width=16, num_classes=4)
    groups = parameter_groups(network, 0.01, weight_decay=3e-4, head_factor=5)
    assert [group["lr"] for group in groups] == pytest.approx([0.01, 0.02, 0.05, 0.1])
    assert {group["weight_decay"] for group in groups} == {3e-4}
    place = {id(parameter): index for index, group in enumerate(groups) for parameter in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(place) == len(list(network.parameters()))
    assert place[id(network.get_parameter("features.features.0.0.weight"))] == 0
    assert place[id(network.get_parameter("features.features.0.1.bias"))] == 1
    assert place[id(network.get_parameter("extra_convs.6.weight"))] == 2
    assert place[id(network.get_parameter("extra_convs.0.bias"))] == 3


def imagenet_file(path: Path, config: CamSettings, rename: Callable[[str], str]) -> dict[str, torch.Tensor]:
    """A file as of torchvision with other values than a new network has; what it holds by our names."""
    torch.manual_seed(5)
    state = {n: v for n, v in build_classifier(config, 5).state_dict().items() if n.startswith("features.")}
    torch.save({**{rename(name): value for name, value in state.items()}, "classifier.0.weight": torch.ones(1)}, path)
    return state


@pytest.mark.parametrize(
    ("backbone", "rename"), [("vgg16", str), ("mobilenet_v2", lambda name: name.removeprefix("features."))]
)
def test_training_starts_from_the_file_of_an_imagenet_classifier(
    tmp_path: Path, backbone: str, rename: Callable[[str], str]
) -> None:
    config = CamSettings(backbone=backbone, width=0.125, head_width=16, relation_losses=False, batch_size=2)
    state = imagenet_file(tmp_path / "weights.pth", config, rename)
    torch.manual_seed(0)
    task = build_cam_training(context_of(config, backbone=tmp_path / "weights.pth"))
    loaded = task.trained_weights()["network"]
    for name, value in state.items():
        assert torch.equal(loaded[name], value), name
    first = next(iter(state))
    fresh = build_cam_training(context_of(config)).trained_weights()["network"]
    assert not torch.equal(fresh[first], state[first]), "without the file the weights are others"


def test_a_file_of_another_width_is_refused(tmp_path: Path) -> None:
    imagenet_file(tmp_path / "weights.pth", CamSettings(width=0.25, head_width=16), str)
    with pytest.raises(CheckpointError, match="wrong shape"):
        build_cam_training(context_of(NARROW, backbone=tmp_path / "weights.pth"))


def test_vgg_has_no_norms_to_train() -> None:
    assert "has none" in CamSettings(normalization="batch").check()[0]
    assert CamSettings(backbone="resnet18", normalization="batch").check() == []
    with pytest.raises(RecipeError, match="learning_rate"):
        load_recipe(CamSettings, None, ["learning_rate=0"])


def test_trained_norms_are_those_of_all_workers() -> None:
    network = Classifier("resnet18", width=0.125, head_width=16, normalization="batch", num_classes=4).train()
    before = network.state_dict()["features.bn1.running_mean"].clone()
    network(torch.from_numpy(np.ones((2, 3, 32, 32), dtype=np.float32)))
    assert not torch.equal(network.state_dict()["features.bn1.running_mean"], before)


def test_only_a_head_on_stored_norms_begins_small() -> None:
    kinds: tuple[tuple[str, Normalization], ...] = (
        ("vgg16", "frozen"),
        ("mobilenet_v2", "batch"),
        ("mobilenet_v2", "frozen"),
    )
    networks = [Classifier(backbone, head_width=32, normalization=norm) for backbone, norm in kinds]
    published, trained, stored = (
        network.get_parameter(f"extra_convs.{len(network.extra_convs) - 1}.weight").std().item() for network in networks
    )
    assert published == pytest.approx(trained, rel=0.2) and published > 0.25, "Kaiming's fan out, of 20 classes"
    assert stored == pytest.approx(0.01, rel=0.2)


def test_mobilenet_sees_what_its_weights_learned() -> None:
    """Its last stride is a dilation: ImageNet's neighbours are two positions apart."""
    body = Classifier("mobilenet_v2", width=0.125, head_width=8).features
    layers = (layer for layer in body.modules() if isinstance(layer, torch.nn.Conv2d))
    dilations = [layer.dilation[0] for layer in layers if layer.kernel_size == (3, 3)]
    assert dilations[-4:] == [1, 2, 2, 2] and set(dilations[:-3]) == {1}
