"""Parity checks of SSC's segmentation half: networks, co-training, final inference, metrics and schedules.

Shapes, salts, settings, slices and tolerances are read from the fixture, so the checks run on any variant of a kind.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from tests.parity.check_parts import final_scores
from tests.parity.fixtures import Fixture
from torch import Tensor, nn

from wsss.data.augment.photometric import PhotometricDraw, augment_photometric
from wsss.data.augment.resized_crop import CropBox, resized_image, resized_label, training_sample
from wsss.evaluation.confusion import confusion_matrix, intersections_and_totals, smoothed_miou
from wsss.nn.deeplabv2 import DeepLabV2
from wsss.nn.deeplabv3plus import DeepLabV3Plus
from wsss.nn.segformer import SegFormer
from wsss.ops.crf import DenseCrfSettings
from wsss.schedules import polynomial_decay
from wsss.stages.refine import class_probabilities, mean_subtracted, multiscale_maximum, predicted_label, refined_steps
from wsss_methods.ssc.cotraining import (
    CoTraining,
    CoTrainingSettings,
    boundary_map,
    cotraining_denominators,
)
from wsss_methods.ssc.segmentation import base_scores


class FixedLogits(nn.Module):
    """The fixture's stand-in for a network: the same logits for any images.

    In evaluation mode (on-line labels) it is given the batch before mixing, whose images the platform holds in
    another order than the fixture; `order` says which of the fixture's images each one is.
    """

    def __init__(self, logits: Tensor, order: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.order = order

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.logits if self.training else self.logits[self.order]
        return logits, logits


def expect(fixture: Fixture, name: str, value: Tensor | np.ndarray | float) -> None:
    """Compare the part of an output that the fixture stores."""
    fixture.expect(name, fixture.sampled(name, value))


def num_classes(fixture: Fixture, output: str = "pre_logits", axis: int = 1) -> int:
    """Length of an axis of a reference output that runs over the classes."""
    return fixture.reference(output).shape[axis]


def check_deeplabv2(fixture: Fixture) -> None:
    network = DeepLabV2(num_classes(fixture)).eval()
    fixture.fill(network, "deeplabv2_r101")
    x = fixture.tensor("x")
    with torch.no_grad():
        pre_logits, logits = network(x)
        layer4 = network.backbone(x)[-1]
    expect(fixture, "pre_logits", pre_logits)
    expect(fixture, "logits", logits)
    expect(fixture, "layer4_mean", layer4.mean(dim=1))

    network.train()
    y = fixture.tensor("y")
    target = (num_classes(fixture) * fixture.tensor("target_u")).floor().long()
    pre_logits, logits = network(y)
    loss = F.cross_entropy(logits, target)
    loss.backward()
    expect(fixture, "train_pre_logits", pre_logits)
    state = network.state_dict()
    expect(fixture, "running_mean_stem", state["backbone.stem_layer.bn1.running_mean"])
    (norm,) = fixture.names_in("running_var_layer4")
    expect(fixture, "running_var_layer4", state[f"{norm}.running_var"])
    expect(fixture, "loss", loss)
    parameters = dict(network.named_parameters())
    gradients = [parameters[name].grad for name in fixture.names_in("grad_norms")]
    expect(fixture, "grad_norms", np.array([float(gradient.norm()) for gradient in gradients if gradient is not None]))


def check_deeplabv3plus(fixture: Fixture) -> None:
    network = DeepLabV3Plus(num_classes(fixture)).eval()
    fixture.fill(network, "deeplabv3plus_r101")
    x = fixture.tensor("x")
    with torch.no_grad():
        pre_logits, logits = network(x)
        features = network.backbone(x)
    expect(fixture, "pre_logits", pre_logits)
    expect(fixture, "logits", logits)
    expect(fixture, "layer1_mean", features[1].mean(dim=1))
    expect(fixture, "layer4_mean", features[-1].mean(dim=1))


def check_segformer(fixture: Fixture) -> None:
    network = SegFormer(num_classes(fixture)).eval()
    fixture.fill(network, "segformer_b2")
    x = fixture.tensor("x")
    with torch.no_grad():
        pre_logits, logits = network(x)
        features = network.backbone(x)
        embeddings = network.decoder(features)
    for i, feature in enumerate(features):
        expect(fixture, f"stage{i + 1}", feature)
    expect(fixture, "embeddings", embeddings)
    expect(fixture, "pre_logits", pre_logits)
    expect(fixture, "logits", logits)


def check_seg_transform(fixture: Fixture) -> None:
    settings = fixture.settings
    image, label, mask = fixture.input("image"), fixture.input("label"), fixture.input("mask")
    size = tuple(settings["size"])
    sample = training_sample(image, label, mask, CropBox(**settings["box"]), size, settings["mirror"])
    expect(fixture, "image_out", sample.image)
    expect(fixture, "label_out", sample.label)
    expect(fixture, "mask_out", sample.mask[None])
    expect(fixture, "val_image", resized_image(image, size))
    expect(fixture, "val_label", resized_label(label, size))
    tolerance = fixture.meta["atol_photometric"]
    for name, draw in (("identity", PhotometricDraw()), ("grey", PhotometricDraw(grey=True))):
        output = f"photometric_{name}"
        augmented = augment_photometric(torch.from_numpy(sample.image)[None], [draw])[0].numpy()
        fixture.expect(output, fixture.sampled(output, augmented), atol=tolerance)


def check_cotrain_losses(fixture: Fixture) -> None:
    settings = fixture.settings
    peak = float(re.search(r"\+ ([\d.]+) \* one_hot", " ".join(fixture.meta["notes"])).group(1))  # type: ignore[union-attr]
    assert settings["photometric_augmentation"] == "off"
    images = fixture.tensor("img")
    count = len(images)
    region = fixture.tensor("net_region").long()
    seeds = torch.arange(count)
    halves = {
        "image": images,
        "label": fixture.tensor("labels"),
        "mask": fixture.tensor("masks"),
        "pair_seed": seeds,
        "photometric_seed": seeds,
    }
    # The fixture pairs the halves of the batch; the platform keeps the images of a pair next to each other.
    order = torch.arange(count).reshape(2, -1).T.reshape(-1)
    consecutive = {name: value[order] for name, value in halves.items()}
    for case, epoch in (("warmup", 0), ("mixed", CoTrainingSettings().warmup_epochs)):
        cotraining = CoTrainingSettings(
            mix_probability=settings["mix_prob"][case],
            mix_ignore_background=settings["ignore_bg"],
            online_confidence=settings["highres_t"],
            boundary_size=settings["bdry_size"],
            boundary_weight_supervised=(settings["bdry_weight"], settings["bdry_weight"]),
            photometric=None,
        )
        logits = []
        for k in (1, 2):
            base = fixture.tensor(f"logits{k}_u")
            logits.append(base + peak * F.one_hot(region, base.shape[1]).movedim(-1, 1))
        first, second = (FixedLogits(values, order) for values in logits)
        module = CoTraining(first, second, cotraining).train()
        mixed = module.augmented(consecutive, epoch)
        expect(fixture, f"{case}_labels", mixed.targets.labels)
        expect(fixture, f"{case}_masks", mixed.targets.masks)
        expect(fixture, f"{case}_bdry", mixed.boundary)
        expect(fixture, f"{case}_img_mean", mixed.images.mean(dim=1))

        denominators = cotraining_denominators(consecutive)
        losses = {name: value / denominators[name] for name, value in module(consecutive, epoch, 0).items()}
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        expect(fixture, f"{case}_loss", total)
        first_network = torch.stack([losses["supervised_1"], losses["cotrain_1"]])
        expect(fixture, f"{case}_ce1_cot1", first_network)
        for k, network in enumerate((first, second), start=1):
            assert network.logits.grad is not None
            expect(fixture, f"{case}_grad{k}_norm", network.logits.grad.norm())
        expect(fixture, f"{case}_grad1", first.logits.grad)  # type: ignore[arg-type]


def check_boundary_map(fixture: Fixture) -> None:
    mask = fixture.tensor("mask")[None]
    sizes = sorted({int(re.match(r"size(\d+)_", name).group(1)) for name in fixture.outputs()})  # type: ignore[union-attr]
    for size in sizes:
        band, inside = boundary_map(mask, size)
        expect(fixture, f"size{size}_bdry", band)
        expect(fixture, f"size{size}_inside", inside)


def check_multiscale_test(fixture: Fixture) -> None:
    classes = num_classes(fixture, "scores", axis=0)
    networks = [fixture.fill(DeepLabV2(classes), entry["network"]).eval() for entry in fixture.meta["weights"]]
    x = fixture.tensor("x")
    expect(fixture, "base", base_scores(networks, x)[0])
    expect(fixture, "scores", multiscale_maximum(partial(base_scores, networks), x, fixture.settings["scales"])[0])


def check_dense_crf_test(fixture: Fixture) -> None:
    settings = fixture.settings
    factor = re.search(r"multiplied by ([\d.]+)", " ".join(fixture.meta.get("notes", [])))
    scores = fixture.tensor("scores").numpy() * np.float32(factor.group(1) if factor else 1)
    image = fixture.input("image")
    crf = DenseCrfSettings(
        iterations=settings["iterations"],
        gaussian_sxy=settings["gaussian"]["sxy"],
        gaussian_compat=settings["gaussian"]["compat"],
        bilateral_sxy=settings["bilateral"]["sxy"],
        bilateral_srgb=settings["bilateral"]["srgb"],
        bilateral_compat=settings["bilateral"]["compat"],
    )
    crf_image = image if settings.get("crf_on_raw_image", False) else mean_subtracted(image)
    probabilities = class_probabilities(scores, image.shape[:2])
    *_, refined = refined_steps(probabilities, crf_image, crf)
    expect(fixture, "crf_image", crf_image)
    expect(fixture, "prob", probabilities)
    expect(fixture, "q", refined)
    expect(fixture, "label", predicted_label(refined))
    expect(fixture, "label_without_crf", predicted_label(probabilities))


def check_seg_metrics(fixture: Fixture) -> None:
    classes = num_classes(fixture, "train_iou", axis=0)
    confusion = confusion_matrix(fixture.input("gt"), fixture.input("pred"), classes)
    right, in_truth, predicted = intersections_and_totals(confusion)
    # What the pipeline does not use stands here by its formula: accuracies with an epsilon, and a weighted IoU.
    epsilon = 1e-5
    recall, precision = right / (in_truth + epsilon), right / (predicted + epsilon)
    accuracies = [
        right.sum() / (in_truth.sum() + epsilon),
        recall[in_truth > 0].mean(),
        precision[predicted > 0].mean(),
    ]
    expect(fixture, "train_metric", np.array([*accuracies, smoothed_miou(confusion, epsilon)]))
    expect(fixture, "train_iou", right / (in_truth + predicted - right + epsilon))
    expect(fixture, "test_metric", np.array(final_scores(confusion)))


def check_schedules(fixture: Fixture) -> None:
    def base(name: str, default: float) -> float:
        stated = re.search(r"base ([\d.e-]+)", fixture.what(name))
        return float(stated.group(1).rstrip(",.")) if stated else default

    segmentation, cam = fixture.settings["segmentation"], fixture.settings["cam"]
    rate = base("segmentation", 0.01)
    factors = [
        polynomial_decay(step, segmentation["total"], segmentation["power"], segmentation["min_lr"] / rate)
        for step in segmentation["iterations"]
    ]
    expect(fixture, "segmentation", rate * np.array(factors))
    # The fixture does not hold the base rates: these are the official program's defaults.
    for name, default in (("cam_sgd", 0.1), ("decoder_adam", 5e-4)):
        factors = [polynomial_decay(step, cam["total"], cam["power"]) for step in cam["steps"]]
        expect(fixture, name, base(name, default) * np.array(factors))


CHECKS: dict[str, Callable[[Fixture], None]] = {
    "deeplabv2_forward": check_deeplabv2,
    "deeplabv3plus_forward": check_deeplabv3plus,
    "segformer_forward": check_segformer,
    "seg_transform": check_seg_transform,
    "cotrain_losses": check_cotrain_losses,
    "boundary_map": check_boundary_map,
    "multiscale_test": check_multiscale_test,
    "dense_crf_test": check_dense_crf_test,
    "seg_metrics": check_seg_metrics,
    "schedules": check_schedules,
}


def _shapes(module: nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in module.state_dict().items()}


MANIFESTS: dict[str, Callable[[], Mapping[str, list[int]]]] = {
    "deeplabv2_r101": lambda: _shapes(DeepLabV2()),
    "deeplabv3plus_r101": lambda: _shapes(DeepLabV3Plus()),
    "segformer_b2": lambda: _shapes(SegFormer()),
}
