"""SBNet: its samples, and the stages after its maps: merging, CRF, AffinityNet, walk, both segmentations, scores."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from tests.parity.check_parts import prose_number, shapes
from tests.parity.shared_fixtures import OwnToleranceFixture
from tests.references import affinity_loss_counts, dense_transition, pair_destinations

from wsss.data.augment.rescaled_crop import CanvasCrop, cam_inputs
from wsss.data.transforms import IMAGENET_MEAN, IMAGENET_STD, channels_first, normalize, resize, resize_spline
from wsss.evaluation.confusion import confusion_matrix, iou, miou
from wsss.evaluation.curves import threshold_confusions
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
    power_background_scores,
    walk_with_background,
    walked_label,
)
from wsss.ops.cam import Merge, merged_high_res, thresholded_argmax
from wsss.ops.crf import DenseCrf, DenseCrfSettings, refine_probabilities, unary_from_probabilities
from wsss.stages.affinity_psa import LOSS_WEIGHTS, crf_label, image_features, training_pair
from wsss_methods.sbnet.deeplabv1 import DeepLabV1

FIXTURE = OwnToleranceFixture
RADIUS = 5  # of every fixture; the files do not say it
_PAIRS = ((r"(\d+)x\d+ grid", 11), (r"\d+x(\d+) grid", 13), (r"radius (\d+)", RADIUS))
_SCALES = (0.5, 1.0, 1.5, 2.0)
_CRF = DenseCrfSettings(10, 3, 3, 80, 13, 10)


@torch.no_grad()
def check_deeplabv2(fixture: OwnToleranceFixture) -> None:
    classes = fixture.meta["outputs"]["logits_max"]["shape"][1]
    network = fixture.fill(DeepLabV2Msc(DeepLabV2Structure(), classes), partial(published_name, form="caffe"))
    x = fixture.tensor("x")
    fixture.expect("logits_max", network.eval()(x))
    for name, logits in zip(("100", "050", "075", "max_train"), network.train()(x), strict=True):
        fixture.expect(f"logits_{name}", logits)


@torch.no_grad()
def check_deeplabv1(fixture: OwnToleranceFixture) -> None:
    classes = fixture.meta["outputs"]["logits"]["shape"][1]
    network = fixture.fill(DeepLabV1(classes)).train(fixture.meta["mode"] == "train")
    fixture.expect("logits", network(fixture.tensor("x")))


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
    # The reference normalizes and sums in float32, where the last bit of every pixel shows in the mean.
    mean, deviation = (np.array(values, dtype=np.float32) for values in (IMAGENET_MEAN, IMAGENET_STD))
    single = (crop.apply(image, 0).astype(np.float32) / np.float32(255) - mean) / deviation
    np.testing.assert_allclose(pixels, channels_first(single), atol=1e-6)
    fixture.expect("image_item.mean_chw", single.mean(axis=(0, 1)))
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
    note = fixture.meta["outputs"]["indices_in_radius"]["note"]
    height, width, radius = (int(prose_number(note, pattern, default)) for pattern, default in _PAIRS)
    index = pair_index(radius, (height, width))
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


def check_crf(fixture: OwnToleranceFixture) -> None:
    image, scores = fixture.input("image"), fixture.input("probs")
    runs = {name: re.fullmatch(r"out_t(\d+)", name) for name in fixture.outputs()}
    longest = max((int(found[1]) for found in runs.values() if found), default=1)
    crf = DenseCrf(image, len(scores), replace(_CRF, iterations=longest))
    steps = dict(enumerate(crf.steps(unary_from_probabilities(scores)), start=1))
    for name, iterations in runs.items():
        factor = re.fullmatch(r"out_s(\d+)", name)
        if iterations:
            fixture.expect(name, steps[int(iterations[1])])
        elif factor:
            number = prose_number(fixture.meta["notes"], rf"{name}: scale_factor \d+, (\d+) iterations", 5)
            smaller = DenseCrfSettings(int(number), 3 / int(factor[1]), 3, 80 / int(factor[1]), 13, 10)
            fixture.expect(name, refine_probabilities(image, scores, smaller))


def check_merge(fixture: OwnToleranceFixture) -> None:
    """The maps of a network that is a 1x1 convolution, at all scales with their mirror images."""
    image, weight = fixture.input("image"), fixture.tensor("toy.weight")
    present = np.array(fixture.input("present_classes"))
    outputs = []
    for pair in cam_inputs(image, _SCALES):
        maps = torch.einsum("kc,nchw->nkhw", weight, torch.from_numpy(pair))[:, 1:]
        outputs.append(maps[0] + maps[1].flip(-1))
    cam = merged_high_res(outputs, present, image.shape[:2], Merge("sum", "range", stride=1))
    fixture.expect("cam", cam)
    background = prose_number(fixture.meta["notes"], r"constant background of ([\d.]*\d)", 0.26)
    fixture.expect("cam_pred", thresholded_argmax(cam, present + 1, background))
    crf = DenseCrf(image, 1 + len(cam), _CRF)
    for name in fixture.outputs():
        alpha = re.fullmatch(r"crf_([\d.]+)", name)
        if alpha:
            scores = power_background_scores(cam, float(alpha[1]))
            fixture.expect(name, crf.marginals(unary_from_probabilities(scores)))


def check_evaluation(fixture: OwnToleranceFixture) -> None:
    classes = len(fixture.arrays["png.iou"])
    thresholds = np.arange(len(fixture.arrays["cam_curve.miou"])) / 100
    labels, scores = (np.zeros((classes, classes), dtype=np.int64) for _ in range(2))
    curve = np.zeros((len(thresholds), classes, classes), dtype=np.int64)
    for number in range(sum(name.startswith("gt") for name in fixture.inputs)):
        truth, cam = fixture.input(f"gt{number}"), fixture.input(f"cam{number}")
        keys = np.array(fixture.input(f"classes{number}")) + 1
        labels = labels + confusion_matrix(truth, fixture.input(f"pred{number}"), classes)
        crf = {"keys": keys, "crf": np.concatenate([fixture.input(f"bg_score{number}")[None], cam])}
        scores = scores + confusion_matrix(truth, crf_label(crf, "crf"), classes)
        curve = curve + threshold_confusions(cam, keys, truth, thresholds, classes)
    for name, confusion in (("png", labels), ("npy_scores", scores)):
        fixture.expect(f"{name}.iou", 100 * np.nan_to_num(iou(confusion)))
        fixture.expect(f"{name}.miou", [100 * miou(confusion, "all")])
    fixture.expect("cam_curve.miou", 100 * miou(curve, "all"))


CHECKS = {
    "data": check_data,
    "deeplabv2": check_deeplabv2,
    "deeplabv1": check_deeplabv1,
    "aff_net": check_affinity_net,
    "pair_indices": check_pairs,
    "aff_label": check_labels,
    "random_walk": check_walk,
    "crf": check_crf,
    "infer_merge": check_merge,
    "evaluation": check_evaluation,
}
MANIFESTS = {
    "deeplabv2_resnet101_msc": lambda: shapes(DeepLabV2Msc(DeepLabV2Structure()).published_state_dict()),
    "deeplabv1_resnet38": lambda: shapes(DeepLabV1().state_dict()),
    "affinitynet": lambda: shapes(AffinityNet().state_dict()),
}
