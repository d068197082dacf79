"""The files that `demo` starts from fit their networks, know the generated classes, and can be made again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from wsss.data.shapes import SHAPE_CLASSES, render_single
from wsss.data.transforms import IMAGENET_MEAN, IMAGENET_STD, channels_first
from wsss.nn.checkpoint import load_imagenet_body
from wsss.nn.mobilenet import MobileNetV2
from wsss.nn.resnet import ResNet, resnet_structure
from wsss.shapes_weights import SHAPES_WEIGHTS, is_shapes_file, shapes_file
from wsss.shapes_weights.training import train_classifier


def body_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    width = SHAPES_WEIGHTS[name]
    return MobileNetV2(width) if name == "mobilenet_v2" else ResNet(resnet_structure(18, width=width))


def accuracy(body: nn.Module, stream: int) -> float:
    """Of the nearest class mean of the last map's average, means from ten pictures a class, on ten others."""
    features: list[torch.Tensor] = []
    body.eval()
    count = 20 * len(SHAPE_CLASSES)
    for index in range(count):
        picture = render_single(112, stream, index)[0].astype(np.float32) / 255
        pixels = channels_first(((picture - IMAGENET_MEAN) / IMAGENET_STD).astype(np.float32))
        with torch.no_grad():
            features.append(body(torch.from_numpy(pixels)[None])[-1].mean(dim=(2, 3))[0])
    seen, new = torch.stack(features).unflatten(0, (-1, len(SHAPE_CLASSES))).split(10)
    nearest = torch.cdist(new.flatten(0, 1), seen.mean(dim=0)).argmin(dim=1)
    return float((nearest == torch.arange(len(nearest)) % len(SHAPE_CLASSES)).float().mean())


@pytest.mark.parametrize("name", SHAPES_WEIGHTS)
def test_features_tell_the_classes_of_new_pictures(name: str) -> None:
    body = body_of(name)
    random = accuracy(body, stream=1)
    load_imagenet_body(body, shapes_file(name))
    assert random < 0.6 and accuracy(body, stream=1) > 0.9


@pytest.mark.parametrize("name", SHAPES_WEIGHTS)
def test_what_the_training_makes_fits_the_network(name: str, tmp_path: Path) -> None:
    state, right = train_classifier(name, pictures=64, epochs=1)
    torch.save(state, tmp_path / "made.pth")
    load_imagenet_body(body_of(name), tmp_path / "made.pth")
    assert 0 <= right <= 1
    shipped = torch.load(shapes_file(name), weights_only=True)
    assert {key: (value.shape, value.dtype) for key, value in state.items()} == {
        key: (value.shape, value.dtype) for key, value in shipped.items()
    }


def test_only_these_files_are_called_so(tmp_path: Path) -> None:
    assert is_shapes_file(shapes_file("resnet18")) and not is_shapes_file(tmp_path / shapes_file("resnet18").name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES_WEIGHTS)
def test_the_training_makes_files_as_good_as_the_shipped(name: str, tmp_path: Path) -> None:
    state, right = train_classifier(name)
    torch.save(state, tmp_path / "made.pth")
    body = body_of(name)
    load_imagenet_body(body, tmp_path / "made.pth")
    assert right > 0.94 and accuracy(body, stream=2) > 0.9
