"""I2CRC: the classifier, its losses and steps, its input, and its class maps as pictures."""

from __future__ import annotations

import re

import numpy as np
import torch
from tests.parity.check_parts import gradient_norms, prose_number, set_rates, shapes
from tests.parity.shared_fixtures import OwnToleranceFixture
from torch import Tensor

from wsss.data.augment.color_jitter import adjusted_color
from wsss.data.transforms import channels_first, normalize, resize
from wsss_methods.i2crc.losses import of_one_class, prototypes, relation_losses
from wsss_methods.i2crc.networks import Classifier, parameter_groups
from wsss_methods.i2crc.training import (
    RELATIONS,
    ClassifierTraining,
    classifier_input,
    quantized_maps,
    resized_saliency,
    step_decay,
)

FIXTURE = OwnToleranceFixture
# Names in the fixtures -> ours.
_TERMS = {"intra_fg": "intra_object", "intra_bg": "intra_background", "inter": "inter"}


def multi_hot(classes: list[list[int]], count: int) -> Tensor:
    """Lists of class numbers from 0 -> float32 (N, count)."""
    labels = torch.zeros(len(classes), count)
    for row, present in zip(labels, classes, strict=True):
        row[present] = 1
    return labels


@torch.no_grad()
def check_forward(fixture: OwnToleranceFixture) -> None:
    network = fixture.fill(Classifier()).eval()
    for name in fixture.inputs:
        image, number = fixture.tensor(name), name.removeprefix("image")
        maps = network(image)
        fixture.expect(f"features_mean{number}", network.backbone_maps(image).mean(dim=1))
        fixture.expect(f"cam{number}", maps)
        fixture.expect(f"logits{number}", maps.mean(dim=(2, 3)))


def check_relations(fixture: OwnToleranceFixture) -> None:
    weights = [float(number) for number in re.findall(r"\d+\.\d+", fixture.meta["what"].split("Weighted sum")[1])]
    for case in (name.removesuffix(".cam") for name in fixture.inputs if name.endswith(".cam")):
        maps = fixture.tensor(f"{case}.cam").requires_grad_()
        saliency = torch.from_numpy(fixture.input(f"{case}.sal_uint8") / 255)
        saliency = saliency.to(getattr(torch, fixture.input(f"{case}.sal_dtype")))
        labels = multi_hot(fixture.input(f"{case}.labels"), maps.shape[1])
        # The terms are computed in the wider of the two types, as published.
        wide = maps.to(torch.promote_types(maps.dtype, saliency.dtype))
        sums = relation_losses(wide, saliency, labels)
        count = of_one_class(labels).sum() * labels.shape[1]
        terms = {name: getattr(sums, own) / count.clamp(min=1) for name, own in _TERMS.items()}
        fixture.expect(f"{case}.logits", maps.mean(dim=(2, 3)))
        for name, term in terms.items():
            fixture.expect(f"{case}.{name}", term)
        if count == 0:
            continue
        for name, term in terms.items():
            (gradient,) = torch.autograd.grad(term, maps, retain_graph=True)
            fixture.expect(f"{case}.grad_norm.{name}", gradient.norm())
        total = sum(weight * term for weight, term in zip(weights, terms.values(), strict=True))
        assert isinstance(total, Tensor)
        fixture.expect(f"{case}.weighted_sum", total)
        fixture.expect(f"{case}.grad.weighted_sum", torch.autograd.grad(total, maps, retain_graph=True)[0])
        size = saliency.shape[1:]
        large = torch.nn.functional.interpolate(wide, size=size, mode="bilinear", align_corners=False).flatten(2)
        fixture.expect(f"{case}.proto_fg", prototypes(large, saliency.flatten(1)))
        fixture.expect(f"{case}.proto_bg", prototypes(large, 1 - saliency.flatten(1)))


def check_train_steps(fixture: OwnToleranceFixture) -> None:
    values = fixture.input("hyperparameters")
    text = fixture.meta["what"]
    weights = {
        "classification": 1.0,
        **{own: prose_number(text, rf"([\d.]+) {name}", 0.0) for name, own in _TERMS.items()},
    }
    outputs = fixture.meta["outputs"]
    network = fixture.fill(Classifier()).train()
    start = {name: value.clone() for name, value in network.state_dict().items()}
    module = ClassifierTraining(network, relations=True)
    head = prose_number(outputs["lr_per_epoch"]["columns"][2], r"\((\d+)x\)", 10.0)
    groups = parameter_groups(network, values["lr"], values["weight_decay"], head)
    optimizer = torch.optim.SGD(groups, lr=values["lr"], momentum=values["momentum"], nesterov=values["nesterov"])
    losses, rates = [], []
    total_steps = values["epochs"] * values["steps_per_epoch"]
    for step in range(total_steps):
        number = values["batch_order"][step % values["steps_per_epoch"]]
        image = fixture.tensor(f"batch{number}.image")
        labels = multi_hot(fixture.input(f"batch{number}.labels"), len(start["extra_convs.6.bias"]))
        batch = {"image": image, "label": labels, "saliency": fixture.tensor(f"batch{number}.sal_uint8")}
        factor = step_decay(step, total_steps, values["epochs"], values["decay_points"], values["decay_factor"])
        rates.append(set_rates(optimizer, factor))
        optimizer.zero_grad()
        counts = module.denominators(batch)
        terms = {name: value / counts[name].clamp(min=1) for name, value in module(batch, 0, step).items()}
        total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        total.backward()
        if step == 0:
            fixture.expect("first_terms", torch.stack([terms[name] for name in ("classification", *RELATIONS)]))
            fixture.expect("first_grad_norm", gradient_norms(network, outputs["first_grad_norm"]["names"]))
            for output in (name for name in fixture.outputs() if name.startswith("first_grad.")):
                fixture.expect(output, network.get_parameter(output.removeprefix("first_grad.")).grad)
        losses.append(float(total.detach()))
        optimizer.step()
    state = network.state_dict()
    fixture.expect("loss", losses)
    fixture.expect("lr_per_epoch", rates[:: values["steps_per_epoch"]])
    names = outputs["delta_norm"]["names"]
    fixture.expect("delta_norm", torch.stack([(state[name] - start[name]).norm() for name in names]))
    for output in fixture.outputs():
        if output.startswith("final."):
            fixture.expect(output, state[output.removeprefix("final.")])


@torch.no_grad()
def check_cam_pictures(fixture: OwnToleranceFixture) -> None:
    network = fixture.fill(Classifier()).eval()
    factor = prose_number(fixture.meta["weights"].get("then", ""), r"features\.0\.weight multiplied by ([\d.]+)", 1.0)
    network.get_parameter("features.0.weight").mul_(factor)
    for case in (name.removeprefix("classes_") for name in fixture.inputs if name.startswith("classes_")):
        image, present = fixture.input(f"image_{case}"), np.array(fixture.input(f"classes_{case}"))
        planes = classifier_input(image, fixture.input("input_size"))
        maps = network.infer(torch.from_numpy(planes)[None])
        fixture.expect(f"input_{case}", planes)
        fixture.expect(f"logits_{case}", maps.mean(dim=(1, 2))[None])
        fixture.expect(f"maps_{case}", maps[present])
        pictures = quantized_maps([maps], present, image.shape[:2])["high_res"]
        for number, picture in zip(present, pictures, strict=True):
            fixture.expect(f"cam_{case}_{number}", picture)


def check_input(fixture: OwnToleranceFixture) -> None:
    size, factors = fixture.input("input_size"), fixture.input("factors")
    image = resize(fixture.input("image"), (size, size), "bilinear")
    fixture.expect("resized", image)
    fixture.expect("normalised", channels_first(normalize(image)))
    factors = {**factors, "hue": int(factors["hue"] * 255)}
    for operation, amount in factors.items():
        fixture.expect(operation, adjusted_color(image, operation, amount))
    for chain in (name for name in fixture.outputs() if name.startswith("chain_")):
        changed = image
        for operation in chain.removeprefix("chain_").split("_"):
            changed = adjusted_color(changed, operation, factors[operation])
        fixture.expect(chain, changed)
    fixture.expect(
        "sal_uint8_nearest", resized_saliency(fixture.input("sal"), len(fixture.arrays["sal_uint8_nearest"]))
    )
    present = [int(number) for number in fixture.input("list_line").split()[1:]]
    fixture.expect("label", multi_hot([present], len(fixture.arrays["label"]))[0])


CHECKS = {
    "vgg_forward": check_forward,
    "vgg_relation_losses": check_relations,
    "vgg_train_steps": check_train_steps,
    "vgg_cam_png": check_cam_pictures,
    "cls_preprocess": check_input,
}
MANIFESTS = {"vgg16_classifier": lambda: shapes(Classifier().state_dict())}
