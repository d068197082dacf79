"""The superpixel network: what it reconstructs, its training samples, its weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wsss.data.transforms import IMAGENET_MEAN, IMAGENET_STD, normalize
from wsss.nn.checkpoint import CheckpointError
from wsss_methods.msa.recipe import SuperpixelSettings, TrainSettings
from wsss_methods.msa.superpixel_network import (
    SuperpixelNetwork,
    lab_image,
    load_superpixel_network,
    reconstruction_errors,
    refined_scores,
    training_pair,
)

CELL = 16


def own_superpixel(height: int, width: int) -> torch.Tensor:
    """Every pixel belongs to the superpixel of its cell."""
    association = torch.zeros(1, 9, height, width)
    association[:, 4] = 1
    return association


def test_superpixels_along_edges_reconstruct_colors_and_others_do_not() -> None:
    """Left half dark, right half bright, the edge in the middle of a cell."""
    lab = torch.zeros(1, 3, 2 * CELL, 3 * CELL)
    lab[..., CELL + CELL // 2 :] = 0.8
    blind = own_superpixel(2 * CELL, 3 * CELL)
    along = blind.clone()
    along[..., CELL : CELL + CELL // 2] = 0
    along[:, 3, :, CELL : CELL + CELL // 2] = 1  # the dark half of the middle cells belongs to the left
    (color, place), (better, farther) = reconstruction_errors(blind, lab), reconstruction_errors(along, lab)
    assert better < 1e-6 < color and farther > place
    half = 0.4 * np.sqrt(3) * 2 * CELL * CELL
    assert color.item() == pytest.approx(0.005 / CELL * half, rel=1e-4)


def test_refinement_brings_coarse_scores_to_superpixels() -> None:
    scores = torch.zeros(1, 1, CELL, 2 * CELL)
    scores[..., : CELL + 4] = 1
    refined = refined_scores(scores, own_superpixel(CELL, 2 * CELL), iterations=1)
    assert refined[..., :CELL] == pytest.approx(1.0, abs=1e-4)
    assert refined[..., CELL:] == pytest.approx(0.25, abs=1e-4)


@pytest.mark.parametrize("settings", [SuperpixelSettings(), TrainSettings()])
def test_picture_and_second_map_stay_together(settings: SuperpixelSettings | TrainSettings) -> None:
    """At its own size a picture and its copy are cut alike; black is the padding of both."""
    picture = np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8)
    sized = type(settings)(crop_size=64, resize_long_min=48, resize_long_max=48)
    seen = set()
    for seed in range(6):
        image, second = training_pair(picture, picture, np.random.default_rng(seed), sized)
        assert image.shape == (3, 64, 64) and second.shape == (64, 64, 3) and second.dtype == np.uint8
        expected = normalize(second).transpose(2, 0, 1)
        inside = (image != 0).any(axis=0)
        assert inside.sum() == 48 * 40
        np.testing.assert_allclose(image[:, inside], expected[:, inside], atol=1e-6)
        assert not second[~inside].any()
        seen.add((int(inside.argmax()), bool((image[:, inside][:, 0] == normalize(picture)[0, 0]).all())))
    assert len({place for place, _ in seen}) > 3 and {plain for _, plain in seen} == {True, False}


@pytest.mark.parametrize(("brightest", "fill"), [(100, 255), (101, 0)])
def test_a_dark_second_map_is_padded_with_255(brightest: int, fill: int) -> None:
    picture, second = np.zeros((20, 32, 3), np.uint8), np.full((20, 32), brightest, np.uint8)
    sized = TrainSettings(crop_size=32, resize_long_min=32, resize_long_max=32)
    _, cut = training_pair(picture, second, np.random.default_rng(0), sized, IMAGENET_MEAN, IMAGENET_STD)
    assert np.unique(cut).tolist() == sorted({brightest, fill})


def test_black_is_no_color_in_lab() -> None:
    assert lab_image(np.zeros((1, 1, 3), np.uint8))[0, 0].tolist() == [0, 128, 128]


def test_a_trained_network_is_read_at_its_width_and_frozen() -> None:
    network = SuperpixelNetwork(base_channels=4)
    read = load_superpixel_network(network.state_dict())
    image = torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    association = read(image)
    assert torch.equal(association, network.eval()(image))
    torch.testing.assert_close(association.sum(dim=1), torch.ones(1, 32, 48))
    assert not read.training and not any(parameter.requires_grad for parameter in read.parameters())
    with pytest.raises(CheckpointError, match="missing"):
        load_superpixel_network({"conv1.weight": torch.zeros(3)})
