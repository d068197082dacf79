"""SBNet: what the platform has of its samples and of its last stages (AffinityNet, random walk, DeepLabV2)."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from tests.parity.check_parts import shapes
from tests.parity.shared_fixtures import OwnToleranceFixture
from tests.references import affinity_loss_counts, dense_transition, pair_destinations

from wsss.data.augment.rescaled_crop import CanvasCrop
from wsss.data.transforms import channels_first, normalize, resize, resize_spline
from wsss.nn.affinity_net import AffinityNet
from wsss.nn.deeplabv2_msc import DeepLabV2Msc, DeepLabV2Structure, published_name
from wsss.ops.affinity import affinity_targets, pair_loss_sums
from wsss.ops.affinity_psa import (
    STRIDE,
    UNSURE,
    feature_affinity,
    feature_pair_affinity,
    pair_index,
    pooled,
    walk_with_background,
    walked_label,
)
from wsss.stages.affinity_psa import LOSS_WEIGHTS, image_features, training_pair

FIXTURE = OwnToleranceFixture
RADIUS = 5  # of every fixture; the files do not say it


@torch.no_grad()
def check_deeplabv2(fixture: OwnToleranceFixture) -> None:
    classes = fixture.meta["outputs"]["logits_max"]["shape"][1]
    network = fixture.fill(DeepLabV2Msc(DeepLabV2Structure(), classes), partial(published_name, form="caffe"))
    x = fixture.tensor("x")
    fixture.expect("logits_max", network.eval()(x))
    for name, logits in zip(("100", "050", "075", "max_train"), network.train()(x), strict=True):
        fixture.expect(f"logits_{name}", logits)


@torch.no_grad()
def check_affinity_net(fixture: OwnToleranceFixture) -> None:
    network = fixture.fill(AffinityNet()).eval()
    features = network.feature_map(fixture.tensor("x"))
    fixture.expect("feature.mean_hw", features.mean(dim=(2, 3)))
    fixture.expect("aff", feature_pair_affinity(features, pair_index(RADIUS, tuple(features.shape[2:]))))
    fixture.expect("aff_mat", feature_affinity(features[0], RADIUS).matrix().toarray())


def check_pairs(fixture: OwnToleranceFixture) -> None:
    for name in fixture.inputs:
        case = fixture.input(name)
        index = pair_index(case["radius"], tuple(case["size"]))
        fixture.expect(f"{name}.ind_from", index.sources)
        fixture.expect(f"{name}.ind_to", pair_destinations(index).reshape(-1))


def check_labels(fixture: OwnToleranceFixture) -> None:
    image, size = fixture.input("image"), fixture.input("crop")
    crop = CanvasCrop(size, size, 0, 0)
    pixels, label = training_pair(image, fixture.input("la"), fixture.input("ha"), crop, mirrored=False)
    fixture.expect("label_map", label)
    # Summed in float32 over pixels, as the reference was: the exact mean is 1.4e-5 away from it.
    fixture.expect("image_item.mean_chw", np.ascontiguousarray(pixels.transpose(1, 2, 0)).mean(axis=(0, 1)))
    affinity = fixture.tensor("aff").requires_grad_()
    targets = affinity_targets(torch.from_numpy(label)[None], pair_index(RADIUS, label.shape), UNSURE)
    sums, counts = pair_loss_sums(affinity, targets), affinity_loss_counts(targets)
    total = torch.tensor(0.0)
    kinds = {"bg": "background_positive", "fg": "foreground_positive", "neg": "negative"}
    arrays = {"bg_pos": targets.background, "fg_pos": targets.foreground, "neg": targets.negative}
    for name, pairs in arrays.items():
        fixture.expect(name, pairs[0].to(torch.uint8))
    for short, name in kinds.items():
        loss = sums[name] / counts[name]
        fixture.expect(f"{short}_count", counts[name][None])
        fixture.expect(f"{short}_loss", loss[None])
        total = total + LOSS_WEIGHTS[name] * loss
    fixture.expect("loss", total[None])
    total.backward()
    assert affinity.grad is not None
    fixture.expect("grad_norm.aff", affinity.grad.norm()[None])


@torch.no_grad()
def check_walk(fixture: OwnToleranceFixture) -> None:
    image, cam = fixture.input("image"), fixture.input("cam")
    alpha, beta, exp_times = (fixture.input(name) for name in ("alpha", "beta", "logt"))
    affinity = feature_affinity(image_features(fixture.fill(AffinityNet()).eval(), image), RADIUS)
    fixture.expect("aff_mat_pow", affinity.matrix().toarray() ** beta)
    fixture.expect("trans_mat", dense_transition(affinity.matrix(), beta, exp_times))
    walk = walk_with_background(cam, affinity, alpha, beta, exp_times)
    full = torch.nn.functional.interpolate(
        torch.from_numpy(walk)[None], scale_factor=STRIDE, mode="bilinear", align_corners=False
    )
    fixture.expect("cam_rw", full[0])
    keys = [int(number) + 1 for number in fixture.input("present_classes")]
    fixture.expect("label", walked_label(walk, keys, image.shape[:2]))
    index = pair_index(RADIUS, (11, 13))
    destinations = pair_destinations(index)
    sources = np.broadcast_to(index.sources, destinations.shape)
    fixture.expect("indices_in_radius", np.stack([sources.reshape(-1), destinations.reshape(-1)], axis=1))


def check_data(fixture: OwnToleranceFixture) -> None:
    image, boundary = fixture.input("image"), fixture.input("boundary").astype(np.float32)
    size = tuple(fixture.input("target"))
    fixture.expect("normalized", normalize(image))
    fixture.expect("image_resized", resize(image, size, "bicubic"))
    fixture.expect("boundary_resized", resize_spline(boundary, size))
    first = boundary[: len(fixture.arrays["boundary_resized_u8"])]
    fixture.expect("boundary_resized_u8", resize_spline(first / 255, size))
    drawn = fixture.inputs["pool"]
    maps = fixture.parity.uniform("pool", tuple(drawn["shape"]), drawn["salt"]).astype(np.float32)
    fixture.expect("avgpool8", pooled(channels_first(maps)).transpose(1, 2, 0))


CHECKS = {
    "data": check_data,
    "deeplabv2": check_deeplabv2,
    "aff_net": check_affinity_net,
    "pair_indices": check_pairs,
    "aff_label": check_labels,
    "random_walk": check_walk,
}
MANIFESTS = {
    "deeplabv2_resnet101_msc": lambda: shapes(DeepLabV2Msc(DeepLabV2Structure()).published_state_dict()),
    "affinitynet": lambda: shapes(AffinityNet().state_dict()),
}
