"""Checks of WS-FCN's networks, modules and losses against their reference outputs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from tests.parity.check_parts import gradient_norms, prose_number, shapes
from tests.parity.fixtures import ParityError
from tests.parity.wsfcn_baseline import CamBaseline, official_baseline_state_dict
from tests.parity.wsfcn_fixtures import DescribedFixture
from torch import Tensor, nn

from wsss.nn.norms import FrozenStatisticsBatchNorm2d
from wsss.ops.pamr import local_deviation, pamr, pamr_affinity
from wsss_methods.wsfcn.losses import (
    FocalPenalty,
    class_scores,
    classification_loss,
    denormalized,
    focal_penalty,
    foreground_share,
    label_map,
    mask_loss,
    pseudo_label,
    resized,
)
from wsss_methods.wsfcn.networks import (
    PUBLISHED_BACKBONES,
    ContextAggregation,
    FeatureFusion,
    FlowAlignment,
    StochasticGate,
    Structure,
    WsFcn,
    official_name,
    official_state_dict,
    own_name,
    parameter_groups,
    with_background,
)
from wsss_methods.wsfcn.recipe import PseudoLabelSettings

FIXTURE = DescribedFixture

_NUMBER = r"([\d.]*\d(?:e-?\d+)?)"


def focal_of(fixture: DescribedFixture) -> FocalPenalty:
    """The settings of the class scores, stated in the fixture's words where they are not the defaults."""
    default = FocalPenalty()
    return FocalPenalty(
        prose_number(fixture.what, rf"focal power {_NUMBER}", default.power),
        prose_number(fixture.what, rf"focal lambda {_NUMBER}", default.floor),
    )


def rule_of(fixture: DescribedFixture) -> PseudoLabelSettings:
    """The settings of PAMR and of the pseudo labels, likewise."""
    text, default = fixture.what, PseudoLabelSettings()
    background = prose_number(text, rf"{_NUMBER} \(background\)", default.pseudo_bg_ratio)
    return PseudoLabelSettings(
        pamr_iters=int(prose_number(text, r"(\d+) PAMR iterations", default.pamr_iters)),
        pseudo_fg_ratio=prose_number(text, rf"{_NUMBER} \(foreground\)", default.pseudo_fg_ratio),
        pseudo_bg_ratio=prose_number(text, rf"background factor {_NUMBER}", background),
        pseudo_min_score=prose_number(text, rf"floor {_NUMBER}", default.pseudo_min_score),
    )


def raw_image(fixture: DescribedFixture, image: Tensor) -> Tensor:
    """The image that PAMR sees."""
    if not fixture.recipe("image_raw").startswith("image * std + mean"):
        raise ParityError(f"{fixture.name}: no rule for image_raw: {fixture.recipe('image_raw')!r}")
    return denormalized(image)


# ---- modules ----


def channels_of(fixture: DescribedFixture, name: str) -> int:
    return fixture.meta["inputs"][name]["shape"][1]


def check_fca(fixture: DescribedFixture) -> None:
    module = ContextAggregation(channels_of(fixture, "x"), fixture.shape("y")[1])
    fixture.fill(module).eval()
    x = fixture.tensor("x")
    for number, branch in enumerate(module.branches(x), 1):
        fixture.expect(f"branch{number}", branch)
        fixture.expect(f"ca{number}", module.ca(branch)[:, :, 0, 0])
    seen: list[Any] = []
    hook = module.sa.register_forward_hook(lambda _, inputs, output: seen.append(output))
    fixture.expect("y", module(x))
    hook.remove()
    fixture.expect("sa", seen[0])
    fixture.expect("pool", module.global_avg_pool(x)[:, :, 0, 0])


def check_align(fixture: DescribedFixture) -> None:
    low, high = fixture.tensor("low"), fixture.tensor("high")
    module = fixture.fill(FlowAlignment(low.shape[1], high.shape[1], high.shape[1] // 2)).eval()
    fixture.expect("flow", module.flow(low, high))
    fixture.expect("y", module(low, high))


def check_sf2(fixture: DescribedFixture) -> None:
    left, down = fixture.tensor("left"), fixture.tensor("down")
    module = fixture.fill(FeatureFusion(left.shape[1], down.shape[1], fixture.shape("out_h")[1]))
    module.train(fixture.meta["mode"] == "train")
    shallow, deep = module(left, down)
    (shallow.square().mean() + deep.mean()).backward()
    fixture.expect("out_h", shallow)
    fixture.expect("out_v", deep)
    fixture.expect("grad_norms", gradient_norms(module, fixture.meta["grad_parameter_names"]))
    for name in fixture.outputs():
        running = re.fullmatch(r"(running_(?:mean|var))_(\w+)", name)
        if running is not None:
            fixture.expect(name, getattr(module.get_submodule(f"bn{running[2]}"), running[1]))


def check_gate(fixture: DescribedFixture) -> None:
    psi = prose_number(fixture.what, rf"psi={_NUMBER}", 0.3)
    gate = StochasticGate(psi)
    deep, shallow = fixture.tensor("deep"), fixture.tensor("shallow")
    fixture.expect("y_eval", gate.eval()(deep, shallow))
    fixture.expect("y_train", gate.mix(deep, shallow, fixture.tensor("u") >= psi))


def check_pamr(fixture: DescribedFixture) -> None:
    image = fixture.tensor("image")
    masks = fixture.tensor("logits").softmax(dim=1)
    text = fixture.what
    iterations = int(prose_number(text, r"PAMR: (\d+) iterations", 10))
    stated = re.search(r"dilations \(([\d,]+)\)", text)
    assert stated is not None
    dilations = tuple(map(int, stated[1].split(",")))
    fewer = int(prose_number(text, r"the same with (\d+) iterations", 5))
    single = re.search(r"(\d+) iterations? with dilation (\d+)", text)
    assert single is not None
    height, width = image.shape[2:]
    fixture.expect("y", pamr(image, masks, iterations, dilations))
    fixture.expect("y_iter5", pamr(image, masks, fewer, dilations))
    fixture.expect("y_single", pamr(image, masks, int(single[1]), (int(single[2]),)))
    fixture.expect("std", local_deviation(image, dilations))
    fixture.expect("weights_pixel", pamr_affinity(image, dilations)[:, :, height // 2, width // 3])
    small = resized(masks, (height // 2, width // 2))
    fixture.expect("y_from_small", pamr(image, small, iterations, dilations))


# ---- losses ----


def check_classification(fixture: DescribedFixture) -> None:
    scores = fixture.tensor("scores").requires_grad_()
    loss = classification_loss(scores, fixture.tensor("labels")).mean()
    loss.backward()
    fixture.expect("loss", loss)
    fixture.expect("grad", scores.grad)


def check_head(fixture: DescribedFixture) -> None:
    image, labels = fixture.tensor("image"), fixture.tensor("labels")
    foreground = fixture.tensor("logits_fg").requires_grad_()
    logits = with_background(foreground)
    masks = logits.softmax(dim=1)
    fixture.expect("penalty", focal_penalty(masks, focal_of(fixture)))
    classification, per_image = expect_head(fixture, logits, image, labels)
    for name, loss in (("grad_cls", classification), ("grad_mask", per_image.mean())):
        (gradient,) = torch.autograd.grad(loss, foreground, retain_graph=True)
        fixture.expect(name, gradient)


def expect_head(fixture: DescribedFixture, logits: Tensor, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Compare everything behind the logits; the mean classification loss and the mask loss of each image."""
    masks = logits.softmax(dim=1)
    scores = class_scores(logits, masks, focal_of(fixture))
    pseudo = pseudo_label(raw_image(fixture, image), masks, labels, rule_of(fixture))
    per_image = mask_loss(logits, pseudo.label, labels)
    classification = classification_loss(scores, labels).mean()
    fixture.expect("cls", scores)
    fixture.expect("cls_fg", foreground_share(masks, labels))
    present = torch.cat([torch.ones_like(labels[:, :1]), labels], dim=1)[:, :, None, None]
    fixture.expect("cam", present * resized(masks, image.shape[2:]))
    fixture.expect("dec", pseudo.refined)
    fixture.expect("pseudo_map", pseudo.label)
    fixture.expect("loss_mask", per_image)
    fixture.expect("loss_cls", classification)
    return classification, per_image


def check_pseudo(fixture: DescribedFixture) -> None:
    stated = re.match(rf"{_NUMBER} \* softmax", fixture.recipe("mask"))
    assert stated is not None
    labels = fixture.tensor("labels")
    mask = float(stated[1]) * fixture.tensor("mask_logits").softmax(dim=1)
    mask[:, 1:] *= labels[:, :, None, None]
    floor = prose_number(fixture.what, rf"default; floor {_NUMBER};", 0.1)
    other = re.search(rf"factor {_NUMBER} with floor {_NUMBER}", fixture.what)
    assert other is not None
    ratio, other_floor = float(other[1]), float(other[2])
    label = label_map(mask, PseudoLabelSettings())
    fixture.expect("pseudo_map", label)
    fixture.expect("pseudo_map_floor01", label_map(mask, PseudoLabelSettings(pseudo_min_score=floor)))
    # One factor for all foreground classes; the background keeps its own.
    other = PseudoLabelSettings(pseudo_fg_ratio=ratio, pseudo_min_score=other_floor)
    fixture.expect("pseudo_map_05_03", label_map(mask, other))
    logits = fixture.tensor("logits").requires_grad_()
    fixture.expect("loss", mask_loss(logits, label, fixture.tensor("gate_labels")))
    loss = mask_loss(logits, label, fixture.tensor("gate_labels_ok"))
    loss.sum().backward()
    fixture.expect("loss_ok", loss)
    fixture.expect("grad", logits.grad)


# ---- whole networks ----


def network_of(fixture: DescribedFixture, backbone: str) -> WsFcn:
    return fixture.fill(WsFcn(Structure(fixture.shape("cls")[-1] + 1, backbone)), official_name).eval()


def check_inference(backbone: str, fixture: DescribedFixture) -> None:
    network = network_of(fixture, backbone)
    image = fixture.tensor("image")
    with torch.no_grad():
        features = network.features(image)
        foreground = network.last_conv(features["gate"])
        logits = network(image)
    assert torch.equal(logits, with_background(foreground))
    for name, value in features.items():
        if fixture.has_output(name):
            fixture.expect(name, value)
    masks = logits.softmax(dim=1)
    fixture.expect("logits_fg", foreground)
    fixture.expect("cls", class_scores(logits, masks, focal_of(fixture)))
    fixture.expect("masks", resized(masks, image.shape[2:]))


def check_losses(backbone: str, fixture: DescribedFixture) -> None:
    network = network_of(fixture, backbone)
    image, labels = fixture.tensor("image"), fixture.tensor("labels")
    logits = network(image)
    fixture.expect("logits", logits)
    classification, per_image = expect_head(fixture, logits, image, labels)
    total = classification + per_image.mean()
    total.backward()
    fixture.expect("loss_total", total)
    names = fixture.meta["grad_parameter_names"]
    fixture.expect("grad_norms", gradient_norms(network, [own_name(name) for name in names]))
    without = [official_name(name) for name, value in network.named_parameters() if value.grad is None]
    expected = fixture.meta.get("parameters_without_gradient")
    if expected is not None and sorted(without) != sorted(expected):
        raise ParityError(f"{fixture.name}: parameters without a gradient differ: {set(without) ^ set(expected)}")


def official_multipliers(backbone: str) -> tuple[float, float, float, float]:
    """The published factors on the learning rate (WS-FCN, section 6)."""
    from wsss_methods.wsfcn.recipe import TrainSettings

    return TrainSettings().multipliers(backbone)


def check_three_steps(backbone: str, fixture: DescribedFixture) -> None:
    text = fixture.what
    network = network_of_training(fixture, backbone)
    image, labels = fixture.tensor("image"), fixture.tensor("labels")
    groups = parameter_groups(
        network,
        learning_rate=prose_number(text, rf"base LR {_NUMBER}", 1e-3),
        weight_decay=prose_number(text, rf"weight decay {_NUMBER}", 5e-4),
        multipliers=official_multipliers(backbone),
    )
    optimizer = torch.optim.SGD(groups, momentum=prose_number(text, rf"momentum {_NUMBER}", 0.9))
    rule, focal, raw = rule_of(fixture), focal_of(fixture), raw_image(fixture, image)
    state = network.state_dict()
    names = [own_name(name) for name in fixture.meta["param_change_names"]]
    before = {name: state[name].clone() for name in names}
    trace: list[Tensor] = []
    scores = torch.empty(0)
    for _ in range(fixture.shape("loss_trace")[0]):
        logits = network(image)
        masks = logits.softmax(dim=1)
        scores = class_scores(logits, masks, focal)
        classification = classification_loss(scores, labels).mean()
        mask = mask_loss(logits, pseudo_label(raw, masks, labels, rule).label, labels).mean()
        optimizer.zero_grad()
        (classification + mask).backward()
        optimizer.step()
        trace.append(torch.stack([classification, mask, classification + mask]).detach().double())
    fixture.expect("loss_trace", torch.stack(trace))
    fixture.expect("cls_last", scores)
    after = network.state_dict()
    fixture.expect_each("param_change", torch.stack([(after[name] - before[name]).norm().double() for name in names]))


def network_of_training(fixture: DescribedFixture, backbone: str) -> WsFcn:
    classes = fixture.shape("cls_last")[-1] + 1
    network = fixture.fill(WsFcn(Structure(classes, backbone)), official_name).train()
    assert "dropout p=0" in fixture.meta["mode"] and "gate eval" in fixture.meta["mode"]
    for module in network.modules():
        if isinstance(module, (nn.Dropout, nn.Dropout2d)):
            module.p = 0.0
        elif isinstance(module, StochasticGate):
            module.eval()
    return network


def check_baseline(backbone: str, fixture: DescribedFixture) -> None:
    classes = fixture.shape("cls")[-1] + 1
    background = prose_number(fixture.what, rf"background channel {_NUMBER}", 0.1)
    network = CamBaseline(backbone, classes, background=background)
    # One tensor under three names: the fill ends with the values of the last of them.
    fixture.fill(network, lambda name: "mask_branch.0.weight" if name == "fc8.weight" else official_name(name)).eval()
    image = fixture.tensor("image")
    with torch.no_grad():
        scores, maps = network(image)
        masks = network.masks(maps, (image.shape[2], image.shape[3]))
    fixture.expect("cls", scores)
    fixture.expect("logits", maps)
    fixture.expect("masks", masks)
    fixture.expect("cls_fg", foreground_share(masks, torch.ones(scores.shape)))


def _network_checks() -> dict[str, Callable[[Any], None]]:
    checks: dict[str, Callable[[Any], None]] = {}
    for backbone in PUBLISHED_BACKBONES:
        for prefix in ("net", "net_coco"):
            checks[f"{prefix}_{backbone}_infer"] = partial(check_inference, backbone)
            checks[f"{prefix}_{backbone}_losses"] = partial(check_losses, backbone)
            checks[f"{prefix}_{backbone}_train3"] = partial(check_three_steps, backbone)
        checks[f"net_cam_{backbone}_infer"] = partial(check_baseline, backbone)
    return checks


CHECKS: dict[str, Callable[[Any], None]] = {
    "mod_fca": check_fca,
    "mod_align": check_align,
    "mod_sf2": check_sf2,
    "mod_gate": check_gate,
    "mod_pamr": check_pamr,
    "loss_cls": check_classification,
    "loss_head": check_head,
    "loss_pseudo": check_pseudo,
    **_network_checks(),
}


# ---- manifests and parameter groups ----


def manifest(backbone: str, num_classes: int) -> Mapping[str, list[int]]:
    with torch.device("meta"):
        return shapes(official_state_dict(WsFcn(Structure(num_classes, backbone))))


def baseline_manifest(backbone: str, num_classes: int) -> Mapping[str, list[int]]:
    with torch.device("meta"):
        return shapes(official_baseline_state_dict(CamBaseline(backbone, num_classes)))


def check_parameter_groups(backbone: str, num_classes: int, content: dict[str, Any]) -> None:
    """Groups with their members in order, what is frozen, and which norms keep their statistics."""
    with torch.device("meta"):
        network = WsFcn(Structure(num_classes, backbone)).train()
    groups = parameter_groups(
        network,
        learning_rate=content["base_lr"],
        weight_decay=content["weight_decay"],
        multipliers=official_multipliers(backbone),
    )
    assert len(groups) == len(content["groups"])
    for ours, published in zip(groups, content["groups"], strict=True):
        assert ours["names"] == published["parameters"]
        assert ours["lr"] == published["lr"] and ours["weight_decay"] == published["weight_decay"]
    frozen = {official_name(name) for name, value in network.named_parameters() if not value.requires_grad}
    assert frozen == set(content["requires_grad_false_in_train"]) == set(content["in_no_group"])
    norms = {official_name(f"{name}."): module for name, module in network.named_modules()}
    norms = {name[:-1]: module for name, module in norms.items() if isinstance(module, nn.BatchNorm2d)}
    fixed = {name for name, module in norms.items() if isinstance(module, FrozenStatisticsBatchNorm2d)}
    assert fixed == set(content["batchnorm_in_eval_mode_during_training"])
    assert set(norms) - fixed == set(content["batchnorm_in_train_mode_during_training"])


_SETS = {"voc": 21, "coco": 81}

MANIFESTS: dict[str, Callable[[], Mapping[str, list[int]]]] = {
    f"{kind}_{backbone}_{name}": partial(function, backbone, classes)
    for kind, function in (("wsfcn", manifest), ("cam", baseline_manifest))
    for backbone in PUBLISHED_BACKBONES
    for name, classes in _SETS.items()
}

PARAMETER_GROUPS: dict[str, Callable[[dict[str, Any]], None]] = {
    f"wsfcn_{backbone}_{name}": partial(check_parameter_groups, backbone, classes)
    for backbone in PUBLISHED_BACKBONES
    for name, classes in _SETS.items()
}
