"""I2CRC: what the platform has of its segmentation (DeepLabV2 on torchvision's ResNet, its stage)."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tests.parity.check_parts import final_scores, set_rates, shapes
from tests.parity.shared_fixtures import OwnToleranceFixture

from wsss.data.augment.scale_crop import ScaleCrop, caffe_input, scale_crop
from wsss.evaluation.confusion import confusion_matrix, iou
from wsss.nn.deeplabv2 import DilatedClassifiers
from wsss.nn.deeplabv2_msc import DeepLabV2Msc, DeepLabV2Structure, parameter_groups, published_name
from wsss.ops.crf import DenseCrfSettings
from wsss.stages.refine import class_probabilities, mean_subtracted, predicted_label, refined_steps
from wsss.stages.segmentation import SegmentationTraining, cross_entropy_sums, shrunk_label, stepped_decay

FIXTURE = OwnToleranceFixture
STRUCTURE = DeepLabV2Structure(form="torchvision", freeze_norm=False)
_published = partial(published_name, form="torchvision")


def network_of(fixture: OwnToleranceFixture) -> DeepLabV2Msc:
    """The filled network in the fixture's mode."""
    return fixture.fill(DeepLabV2Msc(STRUCTURE), _published).train(fixture.meta["mode"] == "train")


def images_of(fixture: OwnToleranceFixture) -> dict[str, torch.Tensor]:
    """Number in the input's name -> image."""
    return {name.removeprefix("image"): fixture.tensor(name) for name in fixture.inputs}


@torch.no_grad()
def check_classifier(fixture: OwnToleranceFixture) -> None:
    feature = fixture.tensor("feature")
    head = DilatedClassifiers(feature.shape[1], fixture.meta["outputs"]["logits"]["shape"][1])
    fixture.fill(head, lambda name: f"conv2d_list.{name.removeprefix('c')}")
    fixture.expect("logits", head(feature))


@torch.no_grad()
def check_base(fixture: OwnToleranceFixture) -> None:
    base = network_of(fixture).base
    for number, image in images_of(fixture).items():
        fixture.expect(f"features_mean{number}", base.backbone(image)[-1].mean(dim=1))
        fixture.expect(f"logits{number}", base(image))


@torch.no_grad()
def check_eval(fixture: OwnToleranceFixture) -> None:
    network = network_of(fixture)
    for number, image in images_of(fixture).items():
        fixture.expect(f"logits{number}", network(image))


@torch.no_grad()
def check_train(fixture: OwnToleranceFixture) -> None:
    network = network_of(fixture)
    for scale, logits in zip(
        ("scale100", "scale050", "scale075", "max"), network(fixture.tensor("image")), strict=True
    ):
        fixture.expect(f"logits_{scale}", logits)
    state = network.published_state_dict()
    for name in fixture.outputs():
        if name in state:
            fixture.expect(name, state[name][:64] if state[name].dim() else state[name])


def check_loss(fixture: OwnToleranceFixture) -> None:
    label, scales = fixture.tensor("label"), ("scale100", "scale050", "scale075", "max")
    logits = [fixture.tensor(f"logits_{scale}").requires_grad_() for scale in scales]
    total = torch.tensor(0.0)
    for scale, values in zip(scales, logits, strict=True):
        sums, counts = cross_entropy_sums(values, label)
        loss = sums.sum() / counts.sum()
        fixture.expect(f"label_{scale}", shrunk_label(label, (values.shape[2], values.shape[3])))
        fixture.expect(f"loss_{scale}", loss)
        total = total + loss
    fixture.expect("total", total)
    (total / 2).backward()
    fixture.expect("grad_norm_half_total", torch.stack([values.grad.norm() for values in logits]))  # type: ignore
    ignored = fixture.tensor("all_ignored.logits").requires_grad_()
    sums, counts = cross_entropy_sums(ignored, torch.full((len(ignored), *ignored.shape[2:]), 255, dtype=torch.uint8))
    # The stage counts such a loss as 0; the mean itself is 0 / 0, as published.
    fixture.expect("all_ignored.loss_is_nan", (sums.sum() / counts.sum()).isnan())
    (sums / counts.clamp(min=1)).sum().backward()
    fixture.expect("all_ignored.max_abs_grad", ignored.grad.abs().max())  # type: ignore


def check_rate(fixture: OwnToleranceFixture) -> None:
    values = fixture.input("params")
    iterations = fixture.arrays["iteration"]
    factors = [
        stepped_decay(int(iteration) - 1, values["iter_max"], values["power"], values["lr_decay_every"])
        for iteration in iterations
    ]
    fixture.expect("iteration", iterations)
    fixture.expect("lr", values["base_lr"] * np.array(factors))


def check_preprocess(fixture: OwnToleranceFixture) -> None:
    image, label = np.ascontiguousarray(fixture.input("image_bgr")[..., ::-1]), fixture.input("label")
    fixture.expect("plain.image", caffe_input(image))
    fixture.expect("plain.label", label)
    size = fixture.input("crop_size")
    for name in fixture.inputs:
        if name.endswith(".draws"):
            drawn, case = fixture.input(name), name.removesuffix(".draws")
            crop = ScaleCrop(drawn["scale"], drawn["start_h"], drawn["start_w"], drawn["flip_draw"] < 0.5)
            pixels, labels = scale_crop(image, label, crop, size)
            fixture.expect(f"{case}.image", pixels)
            fixture.expect(f"{case}.label", labels)


def check_train_steps(fixture: OwnToleranceFixture) -> None:
    values = fixture.input("hyperparameters")
    network = network_of(fixture)
    start = network.published_state_dict()
    start = {name: value.clone() for name, value in start.items()}
    groups = parameter_groups(network, values["lr"], values["weight_decay"], head_factor=1)
    optimizer = torch.optim.SGD(groups, lr=values["lr"], momentum=values["momentum"], nesterov=values["nesterov"])
    losses, accumulation = [], values["accumulation"]
    for iteration in range(values["iterations"]):
        optimizer.zero_grad()
        set_rates(optimizer, stepped_decay(iteration, values["iter_max"], values["power"], values["lr_decay_every"]))
        losses.append(0.0)
        for number in range(iteration * accumulation, (iteration + 1) * accumulation):
            batch = {part: fixture.tensor(f"batch{number}.{part}") for part in ("image", "label")}
            parts = SegmentationTraining(network, len(batch["image"]))(batch, 0, iteration)
            total = torch.stack(list(parts.values())).sum() / accumulation
            total.backward()
            losses[-1] += float(total.detach())
        optimizer.step()
    state = network.published_state_dict()
    fixture.expect("loss", losses)
    names = fixture.meta["outputs"]["delta_norm"]["names"]
    fixture.expect("delta_norm", torch.stack([(state[name] - start[name]).norm() for name in names]))
    for output in fixture.outputs():
        if output.startswith("final."):
            fixture.expect(output, state[output.removeprefix("final.")][:64])
    fixture.expect("num_batches_tracked", state["base.features.bn1.num_batches_tracked"])


def crf_of(values: dict[str, float]) -> DenseCrfSettings:
    names = ("iter_max", "pos_xy_std", "pos_w", "bi_xy_std", "bi_rgb_std", "bi_w")
    return DenseCrfSettings(*(values[name] for name in names))  # type: ignore[arg-type]


def check_crf(fixture: OwnToleranceFixture) -> None:
    image, logits = fixture.input("image"), fixture.tensor("logits")
    size = tuple(logits.shape[1:])
    coarse = F.interpolate(fixture.tensor("coarse"), size=size, mode="bilinear", align_corners=False)[0]
    probabilities = (0.5 * logits + coarse).softmax(dim=0).numpy()
    fixture.expect("probability", predicted_label(probabilities))
    for name in fixture.inputs:
        if name.endswith(".params"):
            *_, last = refined_steps(probabilities, image, crf_of(fixture.input(name)))
            case = name.removesuffix(".params")
            fixture.expect(f"{case}.label", predicted_label(last))
            fixture.expect(f"{case}.q_max", last.max(axis=0))


@torch.no_grad()
def check_test(fixture: OwnToleranceFixture) -> None:
    network = network_of(fixture)
    factor = re.search(r"base\.classifier\.\* multiplied by ([\d.]+)", fixture.meta["weights"]["then"])
    assert factor is not None
    for value in network.base.aspp.state_dict().values():
        value.mul_(float(factor[1]))
    published = crf_of({"iter_max": 10, "pos_xy_std": 1, "pos_w": 3, "bi_xy_std": 67, "bi_rgb_std": 3, "bi_w": 4})
    confusions: dict[str, Any] = {"scores": 0, "scores_crf": 0}
    for case in (name.removeprefix("gt_") for name in fixture.inputs if name.startswith("gt_")):
        image, truth = np.ascontiguousarray(fixture.input(f"image_bgr_{case}")[..., ::-1]), fixture.input(f"gt_{case}")
        logits = network(torch.from_numpy(caffe_input(image))[None])[0]
        fixture.expect(f"logit_{case}", logits)
        probabilities = class_probabilities(logits.numpy(), truth.shape)
        seen = mean_subtracted(image)
        *_, last = refined_steps(probabilities, seen, published)
        fixture.expect(f"crf_image_{case}", seen[..., ::-1])
        labels = {"scores": predicted_label(probabilities), "scores_crf": predicted_label(last)}
        fixture.expect(f"label_{case}", labels["scores"])
        fixture.expect(f"label_crf_{case}", labels["scores_crf"])
        for name, label in labels.items():
            confusions[name] = confusions[name] + confusion_matrix(truth, label, len(probabilities), 255)
    for name, confusion in confusions.items():
        fixture.expect(name, np.array(final_scores(np.asarray(confusion))))


def check_miou(fixture: OwnToleranceFixture) -> None:
    numbers = sorted(name.removeprefix("gt") for name in fixture.inputs if name.startswith("gt"))
    classes = len(fixture.arrays["class_present"])
    confusion = np.sum(
        [confusion_matrix(fixture.input(f"gt{n}"), fixture.input(f"pred{n}"), classes, 255) for n in numbers], axis=0
    )
    names = ("Pixel Accuracy", "Mean Accuracy", "Frequency Weighted IoU", "Mean IoU")
    for name, value in zip(names, final_scores(confusion), strict=True):
        fixture.expect(name, value)
    per_class = iou(confusion)
    fixture.expect("class_present", ~np.isnan(per_class))
    fixture.expect("class_iou_nan_as_minus1", np.nan_to_num(per_class, nan=-1.0))


CHECKS = {
    "crf_dense": check_crf,
    "seg_test_crf": check_test,
    "miou": check_miou,
    "seg_loss": check_loss,
    "seg_lr": check_rate,
    "seg_preprocess": check_preprocess,
    "seg_train_steps": check_train_steps,
    "deeplab_classifier": check_classifier,
    "deeplab_base_forward": check_base,
    "deeplab_msc_eval": check_eval,
    "deeplab_msc_train": check_train,
}
MANIFESTS = {"deeplabv2_resnet101_msc": lambda: shapes(DeepLabV2Msc(STRUCTURE).published_state_dict())}
