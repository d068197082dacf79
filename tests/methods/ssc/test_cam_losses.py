"""Losses of the CAM stage: exact under any split of the batch, and equal to their definitions."""

import numpy as np
import pytest
import torch
from tests.references import superpixel_mean_one_hot
from torch.nn import functional

from wsss_methods.ssc.losses import (
    AlignmentSettings,
    MobileNetFeatures,
    alignment_count,
    alignment_loss,
    alignment_terms,
    classification_loss,
    eroded,
    perceptual_loss,
    pixel_pyramid,
    ratio,
)

SPLITS = [(slice(0, 1), slice(1, 5)), (slice(0, 3), slice(3, 5))]


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(5, 6, generator=generator) < 0.3).float()
    labels[2] = 0
    labels[0, 1] = 1
    return {
        "maps": torch.randn(5, 6, 3, 4, generator=generator) * 2 + 0.5,
        "labels": labels,
        "superpixels": torch.randint(0, 9, (5, 48, 64), generator=generator),
        "image": torch.randn(5, 3, 48, 64, generator=generator),
        "reconstruction": torch.rand(5, 3, 48, 64, generator=generator) * 2 - 1,
    }


LOSSES = {
    "classification": lambda b: classification_loss(b["maps"].mean(dim=(2, 3)), b["labels"]),
    "perceptual": lambda b: perceptual_loss(pixel_pyramid, b["reconstruction"], b["image"]),
    "alignment": lambda b: alignment_loss(b["maps"], b["labels"], b["superpixels"]),
}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", LOSSES)
def test_parts_give_the_whole(batch, name, split):
    whole = ratio(LOSSES[name](batch))
    parts = [LOSSES[name]({key: value[part] for key, value in batch.items()}) for part in split]
    combined = sum(part[0] for part in parts) / sum(part[1] for part in parts)
    torch.testing.assert_close(combined, whole, rtol=1e-5, atol=1e-7)


def test_classification_is_the_multi_label_soft_margin_loss(batch):
    scores = batch["maps"].mean(dim=(2, 3))
    expected = functional.multilabel_soft_margin_loss(scores, batch["labels"])
    torch.testing.assert_close(ratio(classification_loss(scores, batch["labels"])), expected)


def test_perceptual_is_a_weighted_sum_of_means_and_trains_the_reconstruction_only(batch):
    weights = (0.5, 0.0, 1.0, 0.25, 2.0)
    reconstruction = batch["reconstruction"].requires_grad_()
    image = batch["image"].requires_grad_()
    loss = ratio(perceptual_loss(pixel_pyramid, reconstruction, image, weights))
    levels = zip(pixel_pyramid(reconstruction), pixel_pyramid(image), strict=True)
    expected = sum(w * (a - b).abs().mean() for w, (a, b) in zip(weights, levels, strict=True))
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert reconstruction.grad is not None and image.grad is None


def test_rescaled_reconstruction_reaches_the_range_of_the_image(batch):
    image = torch.zeros(1, 3, 16, 16)
    # -1 .. 1 is 0 .. 255; the mean color is the normalized 0.
    mean = torch.tensor([0.485, 0.456, 0.406])[None, :, None, None]
    perfect = (2 * mean - 1).expand(1, 3, 16, 16)
    assert ratio(perceptual_loss(pixel_pyramid, perfect, image, rescale_reconstruction=True)) < 1e-6
    assert ratio(perceptual_loss(pixel_pyramid, perfect, image)) > 0.01


def test_mobilenet_features_have_five_levels_and_do_not_train():
    features = MobileNetFeatures(0.25)
    levels = features(torch.randn(1, 3, 64, 64))
    assert [64 // level.shape[2] for level in levels] == [2, 4, 8, 16, 32]
    assert not any(parameter.requires_grad for parameter in features.parameters())


def test_alignment_against_the_definition(batch):
    settings = AlignmentSettings(downscale=0.5, threshold=0.3, erosion_kernel=3)
    maps, labels = batch["maps"], batch["labels"]
    ids = batch["superpixels"][:, ::2, ::2]
    raw = functional.interpolate(maps, (24, 32), mode="bilinear", align_corners=False)
    total, positions = 0.0, 0
    for image, label in zip(*torch.nonzero(labels, as_tuple=True), strict=True):
        one = raw[image, label]
        activation = one.relu() / (one.relu().max() + 1e-5)
        mean = superpixel_mean_one_hot(one[None], ids[image][None])[0].relu()
        mean = mean / (mean.max() + 1e-5)
        padded = functional.pad((activation > 0.3).float()[None], (1, 1, 1, 1), value=1.0)[0]
        reliable = padded.unfold(0, 3, 1).unfold(1, 3, 1).amin(dim=(2, 3))
        total += float((activation - torch.maximum(mean, activation * reliable)).square().sum())
        positions += activation.numel()
    sum_, count = alignment_loss(maps, labels, batch["superpixels"], settings)
    assert float(sum_) == pytest.approx(total, rel=1e-4)
    assert int(count) == positions == int(alignment_count(labels, (48, 64), settings))


def test_alignment_without_classes_is_zero(batch):
    maps = batch["maps"].requires_grad_()
    total, count = alignment_loss(maps, torch.zeros_like(batch["labels"]), batch["superpixels"])
    total.backward()
    assert total.item() == 0 and float(count) == 0 and maps.grad is not None and not maps.grad.any()


def test_alignment_targets_carry_no_gradient_and_leave_activations_alone(batch):
    activation, target = alignment_terms(batch["maps"].requires_grad_(), batch["labels"], batch["superpixels"])
    assert activation.requires_grad and not target.requires_grad
    assert torch.all(target >= 0) and not torch.equal(activation, target)


@pytest.mark.parametrize("kernel", [0, 1, 2, 3, 8])
def test_erosion_keeps_positions_with_a_full_neighborhood(kernel):
    region = torch.rand(2, 17, 15, generator=torch.Generator().manual_seed(kernel)) < 0.93
    low, high = kernel // 2, kernel - 1 - kernel // 2
    expected = np.ones(region.shape, dtype=bool) & region.numpy() if kernel <= 1 else np.zeros(region.shape, bool)
    if kernel > 1:
        padded = np.pad(region.numpy(), ((0, 0), (low, high), (low, high)), constant_values=True)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(1, 2))
        expected = windows.all(axis=(3, 4))
    assert np.array_equal(eroded(region, kernel).numpy(), expected)
