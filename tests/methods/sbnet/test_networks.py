"""SBNet's network: parts by settings, gradients, edges, correlation (numbers: tests/parity)."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from wsss.data.transforms import channels_first, normalize
from wsss.nn.checkpoint import load_weights
from wsss_methods.sbnet import networks
from wsss_methods.sbnet.networks import (
    CamNetwork,
    build_cam_network,
    canny_edges,
    correlation_input,
    kept_maximum,
    propagated,
    published_name,
)
from wsss_methods.sbnet.recipe import CamSettings, plain_settings, seam_settings

CLASSES = 5
WIDE = CamSettings(width=0.0625, edge_width=0.25)
MOBILE = CamSettings(backbone="mobilenet_v2", width=0.125, edge_width=0.25)


def image(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("settings", [WIDE, MOBILE, replace(MOBILE, output_stride=16)])
def test_maps_have_the_size_of_the_image(settings: CamSettings) -> None:
    network, x = build_cam_network(settings, CLASSES).eval(), image(2, 3, 50, 67)
    with torch.no_grad():
        maps = network(x, canny_edges(x, settings))
        features = network.features(x)
    for value in (maps.cam, maps.refined, maps.boundary):
        assert value is not None and value.shape == (2, CLASSES, 50, 67)
    stride = settings.output_stride
    assert features["conv7"].shape[2:] == (-(-50 // stride), -(-67 // stride))
    full = settings.backbone == "resnet38"
    assert features["conv1"].shape[2:] == ((50, 67) if full else (25, 34))
    assert maps.refined is not None and (maps.refined >= 0).all()


def test_parts_follow_the_weights_of_the_losses() -> None:
    x = image(1, 3, 32, 32)
    seam, plain = (build_cam_network(make(WIDE, 1), CLASSES).eval() for make in (seam_settings, plain_settings))
    parts = {name.split(".")[0] for name in build_cam_network(WIDE, CLASSES).state_dict()}
    seam_parts, plain_parts = ({name.split(".")[0] for name in network.state_dict()} for network in (seam, plain))
    assert parts - seam_parts == {"edge_layer", "fuse_canny_edge"} and seam_parts - plain_parts == {
        "f8_3",
        "f8_4",
        "f9",
    }
    with torch.no_grad():
        assert seam(x).boundary is None and plain(x).refined is None


def gradients_of(network: CamNetwork, which: str) -> set[str]:
    network.zero_grad()
    x = image(2, 3, 64, 64)
    getattr(network(x, canny_edges(x, WIDE)), which).square().sum().backward()
    return {
        published_name(name).split(".")[0]
        for name, value in network.named_parameters()
        if value.grad is not None and value.grad.abs().sum() > 0
    }


def test_each_output_trains_its_own_part() -> None:
    torch.manual_seed(0)
    network = build_cam_network(WIDE, CLASSES).eval()
    refined, cam, boundary = (gradients_of(network, which) for which in ("refined", "cam", "boundary"))
    assert refined == {"f8_3", "f8_4", "f9"}
    assert {"fc8", "b3", "b7"} <= cam and not cam & {*refined, "conv1a", "b2", "b2_1", "b2_2", "edge_layer", "bn7"}
    # Block b7 and what is behind it feed the classifier alone.
    assert {"edge_layer", "fuse_canny_edge", "b3", "b6"} <= boundary and not boundary & {"fc8", "b7", "b2", "f9"}


def test_with_batch_normalization_everything_is_trained() -> None:
    network = build_cam_network(replace(WIDE, normalization="batch"), CLASSES)
    assert all(parameter.requires_grad for parameter in network.parameters())
    frozen = build_cam_network(WIDE, CLASSES)
    fixed = {
        published_name(n).split(".")[0] for n, p in frozen.named_parameters() if p.dim() > 1 and not p.requires_grad
    }
    assert fixed == {"conv1a", "b2", "b2_1", "b2_2"}


@pytest.mark.parametrize("settings", [WIDE, MOBILE])
def test_published_names_load(settings: CamSettings) -> None:
    torch.manual_seed(0)
    source, target = build_cam_network(settings, CLASSES), build_cam_network(settings, CLASSES)
    published = source.published_state_dict()
    assert not any(name.startswith("body.") for name in published)
    assert ("conv1a.weight" in published) == (settings.backbone == "resnet38")
    load_weights(target, published, aliases=target.aliases())
    for one, two in zip(source.state_dict().values(), target.state_dict().values(), strict=True):
        assert torch.equal(one, two)


def test_inference_adds_the_mirrored_maps() -> None:
    torch.manual_seed(0)
    for settings in (WIDE, plain_settings(WIDE, 1)):
        network, x = build_cam_network(settings, CLASSES).eval(), image(1, 3, 41, 56)
        pair = torch.cat([x, x.flip(-1)])
        found = network.infer(pair)
        with torch.no_grad():
            maps = network(pair)
            raw = maps.cam.relu() if maps.refined is None else maps.refined
        assert found.shape == (CLASSES - 1, 41, 56) and (found >= 0).all()
        if maps.refined is not None:
            np.testing.assert_allclose(found, raw[0, 1:] + raw[1, 1:].flip(-1), rtol=1e-4, atol=1e-6)
        # What is added is a mirror image of itself where the picture is its own mirror.
        torch.testing.assert_close(network.infer(pair.flip(0)), found.flip(-1), rtol=1e-4, atol=1e-6)


def test_the_published_edges_are_those_of_the_signs_of_the_normalized_image() -> None:
    rng = np.random.default_rng(0)
    picture = cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (64, 48), interpolation=cv2.INTER_CUBIC)
    x = torch.from_numpy(channels_first(normalize(picture)))[None]
    wrapped = canny_edges(x, WIDE)
    assert wrapped.shape == (1, 1, 48, 64) and set(wrapped.unique().tolist()) == {0.0, 255.0}
    values = np.trunc(x[0].permute(1, 2, 0).numpy().astype(np.float64))
    assert set(np.unique(values % 256)) <= {254, 255, 0, 1, 2}
    np.testing.assert_array_equal(wrapped[0, 0], cv2.Canny((values % 256).astype(np.uint8), 10, 100))
    np.testing.assert_array_equal(
        canny_edges(x, replace(WIDE, canny_input="rgb", canny_low=20, canny_high=60))[0, 0], cv2.Canny(picture, 20, 60)
    )
    assert (canny_edges(x, replace(WIDE, canny_input="none")) == 0).all()


def test_fusing_repeats_the_edges_for_each_class() -> None:
    network = build_cam_network(WIDE, CLASSES)
    semantic, canny = image(2, CLASSES, 6, 7), 255.0 * (image(2, 1, 6, 7) > 0)
    expected = network.fuse_canny_edge(torch.cat([semantic, canny.expand(-1, CLASSES, -1, -1)], dim=1))
    torch.testing.assert_close(network.fused(semantic, canny), expected, rtol=1e-4, atol=1e-3)


def test_the_correlation_spreads_one_class_at_each_position() -> None:
    cam = torch.tensor([[[[9.0, 9.0]], [[-1.0, 4.0]], [[3.0, 2.0]]]])  # (1, 3, 1, 2)
    # Class 1 has 0 and 1 of its maximum, class 2 has 1 and 2/3: at each position the larger one stays.
    np.testing.assert_allclose(correlation_input(cam)[0, :, 0], [[0, 0], [0, 1], [1, 0]], atol=2e-5)
    tied = torch.tensor([[[[0.1]], [[0.5]], [[0.2]], [[0.5]]]])
    assert kept_maximum(tied).flatten().tolist() == pytest.approx([0.1, 0.5, 0.0, 0.5])


def test_propagation_is_a_weighted_mean_whatever_the_number_of_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, features = image(2, 3, 4, 5).abs(), image(2, 6, 4, 5)
    found = propagated(scores, features)
    for s, f, result in zip(scores.flatten(2), features.flatten(2), found.flatten(2), strict=True):
        unit = f / f.norm(dim=0)
        weight = (unit.T @ unit).relu()
        np.testing.assert_allclose(result, s @ (weight / weight.sum(dim=0)), rtol=1e-3)
    monkeypatch.setattr(networks, "_COLUMNS", 7)
    torch.testing.assert_close(propagated(scores, features), found)
