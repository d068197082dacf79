"""Checks of WS-FCN's inputs, multi-scale merge, CRF and evaluation against their reference outputs."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from tests.parity.check_parts import prose_number
from tests.parity.fixtures import ParityError
from tests.parity.wsfcn_checks import focal_of, network_of
from tests.parity.wsfcn_fixtures import DescribedFixture

from wsss.data.augment.canvas import Placement, canvas_inputs, network_input
from wsss.data.augment.resized_crop import CropBox, resized_crop
from wsss.evaluation.confusion import confusion_matrix, iou, pixel_accuracy
from wsss.ops.crf import DenseCrfSettings, refine_probabilities
from wsss_methods.wsfcn.inference import (
    best_scores,
    content,
    label_after_crf,
    label_from_masks,
    soft_masks,
    with_power_background,
)
from wsss_methods.wsfcn.pipeline import dense_crf
from wsss_methods.wsfcn.recipe import CrfSettings

FIXTURE = DescribedFixture

PUBLISHED_ALPHA = CrfSettings().alpha
PUBLISHED_CRF = dense_crf(CrfSettings())

_NUMBER = r"([\d.]*\d)"


def check_crop(fixture: DescribedFixture) -> None:
    box, size, image = CropBox(*fixture.parameters["box"]), fixture.parameters["size"], fixture.input("image")
    fixture.expect("y", network_input(resized_crop(image, box, size, mirror=False)))
    fixture.expect("y_flip", network_input(resized_crop(image, box, size, mirror=True)))


def check_loader(fixture: DescribedFixture) -> None:
    image, truth = fixture.input("image"), fixture.input("gt")
    assert fixture.parameters["flip"]
    inputs = canvas_inputs(image, fixture.parameters["scales"], _canvas(fixture))
    places = [each.placement for each in inputs]
    assert [place.mirrored for place in places] == [index % 2 == 1 for index in range(len(places))]
    fixture.expect("inputs", np.stack([each.image for each in inputs]))
    fixture.expect("pads", np.array([[p.top, p.left, p.height, p.width] for p in places], dtype=np.float32))
    fixture.expect("image_norm", network_input(image))
    labels = np.zeros(fixture.shape("labels"), dtype=np.float32)
    labels[[value - 1 for value in np.unique(truth) if 0 < value < 255]] = 1
    fixture.expect("labels", labels)


def _canvas(fixture: DescribedFixture) -> tuple[int, int]:
    height, width = fixture.parameters["canvas"]
    return height, width


def check_merge(fixture: DescribedFixture) -> None:
    assert fixture.recipe("masks") == "softmax over channels of (logits + common)"
    image = fixture.input("image")
    size = (image.shape[0], image.shape[1])
    masks = (fixture.tensor("logits") + fixture.tensor("common")).softmax(dim=1)
    cut = [
        content(mask, Placement(*map(int, pad), mirrored=index % 2 == 1), size)
        for index, (mask, pad) in enumerate(zip(masks, fixture.input("pads"), strict=True))
    ]
    merged = torch.stack(cut).mean(dim=0).numpy()
    keys = np.flatnonzero(fixture.input("labels")[0]) + 1
    background = prose_number(fixture.what, rf"background constant {_NUMBER}", 0.25)
    alpha = prose_number(fixture.what, r"\(1 - max foreground\)\^(\d+)", PUBLISHED_ALPHA)
    _expect_predictions(fixture, image, merged[keys], keys, background, alpha, len(merged))
    probabilities = with_power_background(merged[keys], keys, alpha, len(merged))
    fixture.expect("crf_q", refine_probabilities(image, probabilities, PUBLISHED_CRF))


def check_chain(fixture: DescribedFixture) -> None:
    settings = fixture.parameters
    backbone = re.search(r"chain_(resnet38|resnet50|resnet101|vgg16)", fixture.name)
    if backbone is None:
        raise ParityError(f"{fixture.name}: the name tells no backbone")
    image = fixture.input("image")
    network = network_of(fixture, backbone[1])
    assert settings["flip"]
    soft = soft_masks(network, image, settings["scales"], _canvas(fixture), focal_of(fixture))
    fixture.expect("cls", soft.scores)
    present = best_scores(soft.scores) > settings["fp_cut_score"]
    fixture.expect("labels", present.astype(np.uint8))
    keys = np.flatnonzero(present) + 1
    alpha = settings["crf_alpha"]
    _expect_predictions(
        fixture, image, soft.masks[keys - 1], keys, settings["bg_score"], alpha, network.structure.num_classes
    )


def _expect_predictions(
    fixture: DescribedFixture,
    image: np.ndarray,
    masks: np.ndarray,
    keys: np.ndarray,
    background: float,
    alpha: float,
    classes: int,
) -> None:
    merged = np.zeros((classes, *image.shape[:2]), dtype=np.float32)
    merged[0], merged[keys] = background, masks
    fixture.expect("merged", merged)
    fixture.expect("pred", label_from_masks(masks, keys, background))
    fixture.expect("pred_crf", label_after_crf(image, masks, keys, classes, alpha, PUBLISHED_CRF))


def check_crf(fixture: DescribedFixture) -> None:
    stated = re.match(rf"softmax over channels of {_NUMBER} \* logits", fixture.recipe("probs"))
    assert stated is not None
    settings = fixture.parameters
    assert settings["unary"] == "-log(clip(p, 1e-5, 1))"
    image = fixture.input("image")
    probabilities = (float(stated[1]) * fixture.tensor("logits")[0]).softmax(dim=0).numpy()
    few = int(prose_number(fixture.what, r"and (\d+) iteration\b", 1))
    refined: dict[int, np.ndarray] = {}
    for iterations in (settings["iterations"], few):
        crf = DenseCrfSettings(
            iterations=iterations,
            gaussian_sxy=settings["gaussian"]["sxy"],
            gaussian_compat=settings["gaussian"]["compat"],
            bilateral_sxy=settings["bilateral"]["sxy"],
            bilateral_srgb=settings["bilateral"]["srgb"],
            bilateral_compat=settings["bilateral"]["compat"],
        )
        refined[iterations] = refine_probabilities(image, probabilities, crf)
    fixture.expect("q", refined[settings["iterations"]])
    fixture.expect("q_iter1", refined[few])
    fixture.expect("label", refined[settings["iterations"]].argmax(axis=0).astype(np.uint8))


def check_evaluation(fixture: DescribedFixture) -> None:
    classes = fixture.shape("conf_mat")[0]
    total = np.zeros((classes, classes), dtype=np.int64)
    number = 0
    while fixture.has_input(f"gt{number}"):
        truth = _drawn_truth(fixture, f"gt{number}")
        total += confusion_matrix(truth, _drawn_prediction(fixture, f"pred{number}", truth), classes)
        number += 1
    percent = 100 * np.nan_to_num(iou(total))
    fixture.expect("conf_mat", total.astype(np.float64))
    fixture.expect("iou", percent)
    means = np.array([percent[1:].mean(), percent.mean()])
    fixture.expect("miou_without_with_bg_full", means)
    # The official script prints two decimals.
    fixture.expect("miou_without_with_bg", np.round(means, 2))
    fixture.expect("pixel_acc", np.round(100 * pixel_accuracy(total), 2))


def _drawn_truth(fixture: DescribedFixture, name: str) -> np.ndarray:
    text = fixture.recipe(name)
    rule = re.fullmatch(
        r"floor\((\d+) \* parity\.uniform\('([\w.]+)', \((\d+),\s?(\d+)\), salt=(\d+)\)\), "
        r"value (\d+) becomes (\d+)",
        text,
    )
    if rule is None:
        raise ParityError(f"{fixture.name}: no rule for {name}: {text!r}")
    levels, tensor, height, width, salt, marked, value = rule.groups()
    uniform = fixture.parity.uniform(tensor, (int(height), int(width)), int(salt))
    drawn = np.floor(int(levels) * uniform).astype(np.int64)
    return np.where(drawn == int(marked), int(value), drawn)


def _drawn_prediction(fixture: DescribedFixture, name: str, truth: np.ndarray) -> np.ndarray:
    text = fixture.recipe(name)
    rule = re.match(
        r"floor\((\d+) \* parity\.uniform\('([\w.]+)', \.\.\.\)\); "
        r"where parity\.uniform\('([\w.]+)', \.\.\.\) < ([\d.]+) "
        r"and gt < (\d+) it is replaced by gt \(same shape and salt\)",
        text,
    )
    salt = re.search(r"salt=(\d+)", fixture.recipe(name.replace("pred", "gt")))
    if rule is None or salt is None:
        raise ParityError(f"{fixture.name}: no rule for {name}: {text!r}")
    levels, tensor, chooser, share, marked = rule.groups()
    drawn = np.floor(int(levels) * fixture.parity.uniform(tensor, truth.shape, int(salt[1]))).astype(np.int64)
    replaced = (fixture.parity.uniform(chooser, truth.shape, int(salt[1])) < float(share)) & (truth < int(marked))
    return np.where(replaced, truth, drawn)


CHECKS: dict[str, Callable[[Any], None]] = {
    "post_crop": check_crop,
    "post_loader": check_loader,
    "post_merge": check_merge,
    "post_chain": check_chain,
    "post_crf": check_crf,
    "post_eval": check_evaluation,
}
