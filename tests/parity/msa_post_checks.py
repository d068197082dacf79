"""MSA downstream of its networks: the CAM of both evaluators, their scores, and the CRF that nothing calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from tests.parity.msa_checks import hashed_name, structure_of_case
from tests.parity.shared_fixtures import CaseFixture
from torch import Tensor

from wsss.evaluation.confusion import (
    confusion_matrix,
    intersections_and_totals,
    iou,
    mean_accuracy,
    miou,
    pixel_accuracy,
)
from wsss.ops.cam import thresholded_argmax
from wsss.ops.crf import DenseCrfSettings, refine_labels, refine_probabilities
from wsss.ops.feature_affinity import propagated
from wsss_methods.msa import inference
from wsss_methods.msa.networks import (
    ReconstructionNetwork,
)
from wsss_methods.msa.recipe import InferenceSettings
from wsss_methods.msa.superpixel_network import (
    SuperpixelNetwork,
)

FIXTURE = CaseFixture
NUM_CLASSES = {"voc": 21, "coco": 81}
Case = dict[str, Any]


# ---- CAM and scores ----


@dataclass(frozen=True)
class _GivenScales(InferenceSettings):
    """The recipe's section with any order of scales and mirrored scales."""

    given: tuple[float, ...] = ()

    @property
    def signed_scales(self) -> tuple[float, ...]:
        return self.given


def _settings(arguments: dict[str, Any]) -> InferenceSettings:
    return _GivenScales(
        merged_at="last_scale" if arguments["variant"] == "image" else "image",
        ap_iterations=arguments.get("ap_iterations", 0),
        ap_threshold=arguments.get("ap_threshold", 0.6),
        given=tuple(arguments["scales"]),
    )


def check_cam_merge(fixture: CaseFixture) -> None:
    for case in fixture.cases:
        settings, size = _settings(case["args"]), tuple(case["image_size"])
        common = inference.common_size(size, settings, superpixels=True)
        maps = [
            inference.lifted(
                fixture.tensor(case, f"logits_s{number}"),
                fixture.tensor(case, f"prob_logits_s{number}"),
                settings.refine_steps,
                common,
                scale < 0,
            )
            for number, scale in enumerate(settings.signed_scales)
        ]
        _expect_cam(fixture, case, inference.merged(maps, size))


def check_cam_multiscale(fixture: CaseFixture) -> None:
    for case in fixture.cases:
        arguments, settings, size = case["args"], _settings(case["args"]), tuple(case["image_size"])
        network = fixture.fill(case, ReconstructionNetwork(structure_of_case(case)), hashed_name)
        superpixels = fixture.fill(case, SuperpixelNetwork(), salt="superpixel_salt").eval()
        network.train(arguments["training"])
        image, every = fixture.tensor(case, "image"), torch.arange(arguments["num_classes"])
        sizes = [inference.padded_size(size, scale) for scale in settings.signed_scales]
        fixture.expect(case, "scale_sizes", np.array(sizes))
        with torch.no_grad():
            maps = inference.scale_maps(network, superpixels, image, every, settings)
            _expect_cam(fixture, case, inference.merged(maps, size))
            # The official evaluator leaves the network in training mode, and the maps before normalization were
            # taken from it afterwards: the new layers then use the statistics of the one image.
            network.train()
            first, for_superpixels = inference.network_inputs(image, settings.signed_scales[0])
            found = network(first, superpixels(for_superpixels))
            scores = propagated(found.scores, found.features, settings.ap_iterations, settings.ap_threshold)
            raw = cast(Tensor, sum(inference.scale_maps(network, superpixels, image, every, settings)))
        fixture.expect(case, "first_scale_logits", scores)
        fixture.expect(case, "merged_size", np.array(raw.shape[2:]))
        fixture.expect(case, "merged_mean_per_class", raw.mean(dim=(0, 2, 3)))


def _expect_cam(fixture: CaseFixture, case: Case, maps: Tensor) -> None:
    """Merged maps of all channels (1, C, H, W) against the stored ones, their labels and their scores."""
    arguments = case["args"]
    cam = (maps * fixture.tensor(case, "tag_vector")[:, :, None, None])[0].numpy()
    channels = arguments["cam_channels"]
    fixture.expect(case, "cam", cam[channels])
    others = np.setdiff1d(np.arange(len(cam)), [0, *channels])
    outputs = {"cam_channel0_mean": cam[0].mean(), "cam_other_max": cam[others].max()}
    keys = np.array(case["tags"])
    labels = np.stack([thresholded_argmax(cam[keys], keys, threshold) for threshold in arguments["thresholds"]])
    truth = fixture.tensor(case, "gt")[0].numpy()
    confusions = [
        confusion_matrix(truth, label, arguments["num_classes"], arguments["ignore_label"]) for label in labels
    ]
    scores = 100 * miou(np.stack(confusions), "all")
    outputs |= {"labels": labels, "miou": scores}
    outputs["best_threshold"] = arguments["thresholds"][int(scores.argmax())]
    for name, value in outputs.items():
        if name in case["outputs"]:
            fixture.expect(case, name, value)


def check_miou(fixture: CaseFixture) -> None:
    for case in fixture.cases:
        truth, prediction = (fixture.tensor(case, name).numpy() for name in ("gt", "pred"))
        confusion = confusion_matrix(truth, prediction, case["args"]["num_classes"], case["args"]["ignore_label"])
        classes = np.nan_to_num(iou(confusion))
        right, in_truth, predicted = intersections_and_totals(confusion)
        union = np.maximum(in_truth + predicted - right, 1)
        fixture.expect(case, "miou", 100 * miou(confusion, "all"))
        fixture.expect(case, "miou_foreground", 100 * classes[1:].mean())
        fixture.expect(case, "iou", 100 * classes)
        fixture.expect(case, "fp", ((predicted - right) / union).mean())
        fixture.expect(case, "fn", ((in_truth - right) / union).mean())
        fixture.expect(case, "scn_metric_miou", miou(confusion))
        fixture.expect(case, "deeplab_miou", miou(confusion, "truth"))
        fixture.expect(case, "deeplab_pixel_acc", pixel_accuracy(confusion))
        fixture.expect(case, "deeplab_mean_acc", mean_accuracy(confusion))


def check_crf(fixture: CaseFixture) -> None:
    for case in fixture.cases:
        arguments, image = case["args"], fixture.tensor(case, "image").numpy()
        settings = _crf_settings(case["operation"], arguments)
        if case["operation"] == "label_crf_optional":
            given = fixture.tensor(case, "labels_in").numpy()
            fixture.expect(case, "labels_in", given)
            (labels,) = refine_labels(image, [given], arguments["num_labels"], arguments["gt_prob"], settings)
            fixture.expect(case, "labels", labels)
            continue
        refined = refine_probabilities(image, fixture.tensor(case, "prob").numpy(), settings)
        fixture.expect(case, "labels", refined.argmax(axis=0))
        if case["operation"] == "deeplab_crf":
            fixture.expect(case, "prob", refined)
        else:
            fixture.expect(case, "prob_mean", refined.mean(axis=(1, 2)))


def _crf_settings(operation: str, arguments: dict[str, Any]) -> DenseCrfSettings:
    names = ("iterations", "gauss_sxy", "gauss_compat", "bilateral_sxy", "bilateral_srgb", "bilateral_compat")
    if operation == "deeplab_crf":
        names = ("iter_max", "pos_xy_std", "pos_w", "bi_xy_std", "bi_rgb_std", "bi_w")
    return DenseCrfSettings(*(arguments[name] for name in names))


CHECKS = {
    "cam_merge": check_cam_merge,
    "cam_multiscale": check_cam_multiscale,
    "miou": check_miou,
    "crf": check_crf,
}
