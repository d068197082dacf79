"""SBNet's losses against plain readings of their formulae on small maps (official numbers: tests/parity)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from wsss_methods.sbnet.losses import (
    aligned,
    boundary_loss,
    cam_losses,
    classification_loss,
    cross_equivariance_loss,
    loss_weights,
    min_pooling_loss,
    normalized,
    smoothness_loss,
)
from wsss_methods.sbnet.networks import Maps
from wsss_methods.sbnet.recipe import CamSettings, plain_settings, seam_settings

CLASSES = 4
LABEL = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
PRESENT = torch.cat([torch.ones(2, 1), LABEL], dim=1)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_classification_is_the_cross_entropy_of_the_mean_map() -> None:
    cam = drawn(2, CLASSES, 5, 6)
    expected = 0.0
    for maps, labels in zip(cam.numpy(), LABEL.numpy(), strict=True):
        for scores, label in zip(maps[1:], labels, strict=True):
            probability = 1 / (1 + np.exp(-scores.mean()))
            expected -= (label * np.log(probability) + (1 - label) * np.log(1 - probability)) / 3
    assert float(classification_loss(cam, LABEL)) == pytest.approx(expected, rel=1e-5)


def test_minimum_pooling_takes_the_smallest_values_of_the_largest_present_class() -> None:
    refined = drawn(2, CLASSES, 4, 5).abs() + 0.1
    refined[:, 3] += 100  # absent in the first image, and present in the second
    first, second = refined[0, 1], torch.maximum(refined[1, 2], refined[1, 3])
    expected = sum(float(values.flatten().sort().values[:5].mean()) for values in (first, second))
    assert float(min_pooling_loss(refined, LABEL, 0.25)) == pytest.approx(expected, rel=1e-5)


def test_normalization_of_one_map() -> None:
    values = torch.tensor([[[[-5.0, 1.0], [3.0, 2.0]]]])
    # The negative value counts as 0, which is the minimum.
    np.testing.assert_allclose(normalized(values), [[[[0, 1 / 3], [1, 2 / 3]]]], atol=1e-4)
    assert float(normalized(values).max()) < 1


def test_aligned_maps_are_zero_for_absent_classes_and_resized_after_normalization() -> None:
    cam = drawn(2, CLASSES, 7, 7)
    maps = aligned(cam, PRESENT, torch.Size((4, 4)))
    assert (maps[0, 2:] == 0).all() and (maps[1, 1] == 0).all()
    # With aligned corners every second of seven positions is a position of four.
    np.testing.assert_allclose(maps[1, 2], normalized(cam)[1, 2, ::2, ::2], atol=1e-6)


def test_cross_equivariance_compares_with_the_best_class_and_averages_the_largest_differences() -> None:
    cam = torch.zeros(1, 3, 1, 2)
    cam[0, 1] = torch.tensor([[0.75, 0.25]])
    cam[0, 2] = torch.tensor([[0.5, 0.5]])
    cam[0, 0] = 9.0  # is replaced by what the classes leave: 0.25, 0.5
    refined = torch.zeros(1, 3, 1, 2)
    # Differences: 0.25, 0.5 (background), 0.75, 0 (class 1), 0, 0.5 (class 2).
    assert float(cross_equivariance_loss(cam, refined, 1.0)) == pytest.approx(2.0 / 6)
    assert float(cross_equivariance_loss(cam, refined, 0.5)) == pytest.approx((0.75 + 0.5 + 0.5) / 3)


def test_boundary_loss_is_clamped_where_the_logits_saturate() -> None:
    logits, target = torch.zeros(1, 2, 1, 2), torch.zeros(1, 2, 1, 2)
    logits[0, 0] = torch.tensor([[-500.0, 0.0]])
    target[0, 0, 0, 0] = 1.0
    target[0, 1] = 1.0  # a class that is absent: its target is 0
    expected = (100 + 3 * np.log(2)) / 4
    assert float(boundary_loss(logits, target, torch.tensor([[1.0, 0.0]]))) == pytest.approx(expected, rel=1e-6)


def plain_smoothness(cam: np.ndarray, boundary: np.ndarray, present: np.ndarray, alpha: float) -> float:
    """10 times the mean of both Sobel differences plus the mean of the Laplacian, position by position."""
    sobel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    laplacian = 9 * np.eye(3)[1][:, None] * np.eye(3)[1][None, :] - 1
    total = 0.0
    for channel, maps in enumerate(cam):
        if not present[channel]:
            continue
        padded = np.pad(1 / (1 + np.exp(-maps)), 1)
        for y, x in np.ndindex(maps.shape):
            window, gate = padded[y : y + 3, x : x + 3], np.exp(-alpha * boundary[channel, y, x])
            for kernel, weight in ((sobel, 10), (sobel.T, 10), (laplacian, 1)):
                total += weight * np.sqrt((abs((kernel * window).sum()) * gate) ** 2 + 0.001**2)
    return total / cam.size


def test_smoothness_is_the_gated_mean_over_all_classes() -> None:
    cam, boundary = drawn(2, CLASSES, 5, 4), drawn(2, CLASSES, 5, 4, seed=1).sigmoid()
    expected = sum(
        plain_smoothness(cam[i].numpy().astype(float), boundary[i].numpy(), PRESENT[i].numpy(), 10) for i in range(2)
    )
    assert float(smoothness_loss(cam, boundary, PRESENT, CamSettings())) == pytest.approx(expected, rel=1e-5)


def views(seed: int = 0) -> list[Maps]:
    return [
        Maps(
            drawn(2, CLASSES, n, n, seed=seed + n), drawn(2, CLASSES, n, n, seed=n + 50).abs(), drawn(2, CLASSES, n, n)
        )
        for n in (12, 6)
    ]


def boundaries() -> list[Tensor]:
    return [drawn(2, CLASSES, n, n, seed=3).sigmoid() for n in (12, 6)]


def test_a_loss_of_weight_0_is_left_out() -> None:
    settings = CamSettings()
    every = cam_losses(views(), boundaries(), LABEL, settings)
    assert list(every) == [name for name, weight in loss_weights(settings).items() if weight]
    seam, plain = seam_settings(settings, 8), plain_settings(settings, 8)
    assert list(cam_losses(views(), None, LABEL, seam)) == [
        name for name, weight in loss_weights(seam).items() if weight
    ]
    assert list(cam_losses(views()[:1], None, LABEL, plain)) == ["classification"]
    gated = replace(settings, boundary_loss_weight=0.0, ecr_loss_weight=0.0)
    found = cam_losses(views(), boundaries(), LABEL, gated)
    assert set(every) - set(found) == {"boundary", "cross_equivariance"}
    assert all(torch.equal(value, every[name]) for name, value in found.items())


def test_losses_are_sums_of_what_each_image_has_alone() -> None:
    settings = CamSettings()
    both = cam_losses(views(), boundaries(), LABEL, settings)
    for name, value in both.items():
        alone = 0.0
        for i in range(2):
            one = [Maps(*(maps[i : i + 1] for maps in (v.cam, v.refined, v.boundary))) for v in views()]  # type: ignore[index]
            alone += float(cam_losses(one, [b[i : i + 1] for b in boundaries()], LABEL[i : i + 1], settings)[name])
        assert float(value) == pytest.approx(alone, rel=1e-5), name


def test_the_equivariance_of_the_cam_leaves_the_background_out() -> None:
    first = views()
    second = [replace(view, cam=torch.cat([view.cam[:, :1] * 3, view.cam[:, 1:]], dim=1)) for view in first]
    one, two = (cam_losses(given, boundaries(), LABEL, CamSettings()) for given in (first, second))
    assert torch.equal(one["equivariance"], two["equivariance"]) and torch.equal(
        one["classification"], two["classification"]
    )
    assert not torch.equal(one["smoothness"], two["smoothness"])
