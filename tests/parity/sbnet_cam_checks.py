"""SBNet's CAM network, its modules, its losses and two steps of its training."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tests.parity.check_parts import prose_number, set_rates, shapes
from tests.parity.fixtures import ParityError
from tests.parity.shared_fixtures import OwnToleranceFixture
from torch import Tensor, nn

from wsss.schedules import polynomial_decay
from wsss_methods.sbnet.losses import (
    aligned,
    boundary_loss,
    cam_losses,
    charbonnier,
    classification_loss,
    cross_equivariance_loss,
    differences,
    loss_weights,
    min_pooling_loss,
    normalized,
    smoothness_loss,
)
from wsss_methods.sbnet.networks import (
    LAST,
    TAPS,
    CamNetwork,
    EdgeModule,
    Maps,
    build_cam_network,
    canny_edges,
    correlation_input,
    kept_maximum,
    propagated,
    published_name,
)
from wsss_methods.sbnet.recipe import CamSettings, seam_settings
from wsss_methods.sbnet.training import CamTraining, parameter_groups

FIXTURE = OwnToleranceFixture
SBNET = CamSettings()
SEAM = seam_settings(SBNET, 8)
CLASSES = 21


def _classes(fixture: OwnToleranceFixture, output: str) -> int:
    return fixture.meta["outputs"][output]["shape"][1]


@torch.no_grad()
def check_cam_network(fixture: OwnToleranceFixture) -> None:
    network = fixture.fill(build_cam_network(SBNET, _classes(fixture, "cam")), published_name).eval()
    x = fixture.tensor("x")
    features = network.features(x)
    _, second = network.body(x, ("b3.bn_branch2a",))
    for name in (*TAPS, LAST):
        fixture.expect(f"{name}.mean_hw", features[name].mean(dim=(2, 3)))
    fixture.expect("conv2.mean_hw", second["b3.bn_branch2a"].mean(dim=(2, 3)))

    inputs: list[Tensor] = []
    handle = network.f9.register_forward_hook(lambda module, given, result: inputs.append(given[0]))
    canny = canny_edges(x, SBNET)
    cam = network.fc8(features[LAST])
    assert network.edge_layer is not None
    fixture.expect("cam_lowres", cam)
    fixture.expect("cam_refine_input", correlation_input(cam))
    fixture.expect("cam_rv_lowres", network.refine(cam, x, features))
    fixture.expect("pcm_feature", inputs[0])
    fixture.expect("canny", canny[:, 0].to(torch.uint8))
    fixture.expect(
        "semantic_edge", network.edge_layer(*(features[name] for name in ("conv1", "conv3", "conv5", "conv6")))
    )
    handle.remove()
    maps = network(x, canny)
    fixture.expect("cam", maps.cam)
    fixture.expect("cam_rv", maps.refined)
    fixture.expect("edge", maps.boundary)


@torch.no_grad()
def check_seam_network(fixture: OwnToleranceFixture) -> None:
    network = fixture.fill(build_cam_network(SEAM, _classes(fixture, "cam")), published_name).eval()
    maps = network(fixture.tensor("x"))
    assert maps.boundary is None
    fixture.expect("cam", maps.cam)
    fixture.expect("cam_rv", maps.refined)


@torch.no_grad()
def check_edge_module(fixture: OwnToleranceFixture) -> None:
    maps = [fixture.tensor(name) for name in ("x1", "x3", "x5", "x6")]
    channels = [value.shape[1] for value in maps]
    module = EdgeModule((channels[0], channels[1], channels[2], channels[3]), _classes(fixture, "edge"))
    fixture.fill(module)
    fixture.expect("edge", module(*maps))
    r = fixture.tensor("r")
    fixture.expect("rcab", module.rcab(r))
    fixture.expect("ca", module.rcab.body[3](r))


def check_correlation(fixture: OwnToleranceFixture) -> None:
    weights = fixture.meta["weights"]
    inner, outer, *_ = weights["shape"]
    layer = fixture.fill(nn.Conv2d(outer, inner, 1, bias=False), lambda name: f"f9.{name}")
    features = fixture.tensor("f").requires_grad_()
    scores = F.interpolate(fixture.tensor("cam"), features.shape[2:], mode="bilinear", align_corners=True)
    result = propagated(scores, layer(features))
    fixture.expect("cam_rv", result)
    result.square().sum().backward()
    assert layer.weight.grad is not None and features.grad is not None
    fixture.expect("grad_norm.f9.weight", layer.weight.grad.norm()[None])
    fixture.expect("grad_norm.f", features.grad.norm()[None])


def check_norms(fixture: OwnToleranceFixture) -> None:
    maps = fixture.tensor("p").requires_grad_()
    found = normalized(maps)
    fixture.expect("max_norm", found)
    fixture.expect("max_norm.grad_norm", _gradient(found.square().sum(), maps).norm()[None])
    fixture.expect("max_norm_3d", normalized(maps[0]))
    fixture.expect("max_norm_numpy_3d", _shown_norm(fixture.input("p")[0]))
    every = torch.ones(len(maps), maps.shape[1] - 1)
    pooled = min_pooling_loss(maps - 0.3, every) / len(maps)
    fixture.expect("min_pool_loss", pooled[None])
    fixture.expect("min_pool_loss.grad_norm", _gradient(pooled, maps).norm()[None])
    fixture.expect("max_onehot", kept_maximum(maps))


def _shown_norm(maps: np.ndarray) -> np.ndarray:
    """What the official program draws its maps by; nothing is computed from it."""
    maps = maps.clip(0, None)
    least, largest = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    kept = np.where(maps < least + 1e-5, 0, maps)
    return ((kept - least - 1e-5) / (largest + 1e-5)).astype(np.float32)


def _gradient(value: Tensor, of: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(value, of, retain_graph=True)
    return gradient


def _present(label: Tensor) -> Tensor:
    return torch.cat([torch.ones_like(label[:, :1]), label], dim=1)


def check_smoothness(fixture: OwnToleranceFixture) -> None:
    logits, boundary = fixture.tensor("z").requires_grad_(), fixture.tensor("ct")
    present = _present(fixture.tensor("label20"))
    loss = smoothness_loss(logits, boundary, present, SBNET) / len(logits)
    gradient = _gradient(loss, logits)
    fixture.expect("loss", loss[None])
    fixture.expect("grad_norm.z", gradient.norm()[None])
    fixture.expect("grad.z", gradient)
    probabilities = logits.detach().sigmoid()
    found = differences(probabilities.flatten(0, 1)).unflatten(0, logits.shape[:2])
    for index, name in enumerate(("sobel_x", "sobel_y", "laplacian")):
        fixture.expect(name, found[:, :, index])
    fixture.expect("charbonnier", charbonnier(logits.detach()))


def expect_losses(
    fixture: OwnToleranceFixture, views: list[Maps], boundaries: list[Tensor], label: Tensor, prefix: str = ""
) -> Tensor:
    """Compare every component with its reference under the official names; the total."""
    count, present = len(label), _present(label)

    def expect(name: str, value: Tensor) -> None:
        fixture.expect(f"{prefix}{name}", value[None])

    size = views[1].cam.shape[2:]
    maps = [(aligned(view.cam, present, size), aligned(_given(view.refined), present, size)) for view in views]
    for number, (view, boundary) in enumerate(zip(views, boundaries, strict=True), start=1):
        expect(f"loss_cls{number}", classification_loss(view.cam, label) / count)
        expect(f"loss_rvmin{number}", min_pooling_loss(_given(view.refined), label) / count)
        expect(f"loss_ct_{number}", boundary_loss(_given(view.boundary), boundary, present) / count)
        expect(f"smoothness_loss_{number}", smoothness_loss(view.cam, boundary, present, SBNET) / count)
        expect(f"loss_ecr{number}", cross_equivariance_loss(maps[2 - number][0], maps[number - 1][1]) / count)
    losses = cam_losses(views, boundaries, label, SBNET)
    weighted = {name: loss_weights(SBNET)[name] * value / count for name, value in losses.items()}
    expect("loss_cls", weighted["classification"] + weighted["min_pooling"])
    for name, own in {
        "loss_er": "equivariance",
        "loss_ecr": "cross_equivariance",
        "loss_ct": "boundary",
        "smoothness_loss": "smoothness",
    }.items():
        expect(name, weighted[own])
    total = torch.stack(list(weighted.values())).sum()
    expect("loss", total)
    return total


def _given(maps: Tensor | None) -> Tensor:
    assert maps is not None
    return maps


def check_losses(fixture: OwnToleranceFixture) -> None:
    given = {
        name: fixture.tensor(name).requires_grad_() for name in ("cam1", "cam_rv1", "edge1", "cam2", "cam_rv2", "edge2")
    }
    views = [Maps(given[f"cam{i}"], given[f"cam_rv{i}"], given[f"edge{i}"]) for i in (1, 2)]
    boundary = fixture.tensor("ct")
    smaller = F.interpolate(boundary, given["cam2"].shape[2:], mode="bilinear", align_corners=True)
    expect_losses(fixture, views, [boundary, smaller], fixture.tensor("label20")).backward()
    for name, value in given.items():
        assert value.grad is not None
        fixture.expect(f"grad_norm.{name}", value.grad.norm()[None])
        if f"grad.{name}" in fixture.outputs():
            fixture.expect(f"grad.{name}", value.grad)


def check_training_steps(fixture: OwnToleranceFixture) -> None:
    words = fixture.meta["notes"]
    settings = replace(
        SBNET,
        learning_rate=prose_number(words, r"base lr ([\d.e-]+\d)", 0.001),
        weight_decay=prose_number(words, r"wt_dec ([\d.e-]+\d)", 5e-4),
    )
    total_steps = int(prose_number(words, r"max_step (\d+)", 10))
    network = fixture.fill(build_cam_network(settings, fixture.input("ct").shape[1]), published_name)
    training = CamTraining(network, settings).train()
    for module in training.modules():
        if isinstance(module, nn.Dropout2d):
            module.eval()
    start = {name: value.clone() for name, value in network.published_state_dict().items()}
    _check_groups(fixture, network, settings)
    optimizer = torch.optim.SGD(
        parameter_groups(network, settings), lr=settings.learning_rate, momentum=settings.momentum
    )
    batch = {"image": fixture.tensor("x"), "label": fixture.tensor("label20"), "boundary": fixture.tensor("ct")}
    outputs: list[Any] = []
    network.register_forward_hook(lambda module, given, result: outputs.append(result))
    steps = sorted({name.split(".")[0] for name in fixture.outputs() if name.startswith("step")})
    for step, prefix in enumerate(steps):
        set_rates(optimizer, polynomial_decay(step, total_steps))
        rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
        # The fourth published group, biases of the new layers, is empty.
        published = [rates["backbone"], rates["edge_biases"], rates["new"], 2 * rates["new"]]
        fixture.expect(f"{prefix}.lr", np.array(published))
        outputs.clear()
        losses = training(batch, 0, step)
        smaller = training._smaller(batch["boundary"])
        total = expect_losses(fixture, outputs, [batch["boundary"], smaller], batch["label"], f"{prefix}.")
        optimizer.zero_grad()
        own = sum(loss_weights(settings)[name] * value for name, value in losses.items()) / len(batch["label"])
        assert isinstance(own, Tensor) and torch.allclose(own, total)
        own.backward()
        if step == 0:
            _check_gradients(fixture, network)
        optimizer.step()
    end = network.published_state_dict()
    for name in fixture.outputs():
        if name.startswith("delta_norm."):
            tensor = name.removeprefix("delta_norm.")
            fixture.expect(name, (end[tensor] - start[tensor]).norm()[None])


def _check_groups(fixture: OwnToleranceFixture, network: CamNetwork, settings: CamSettings) -> None:
    weights, biases, new, new_biases = fixture.input("group_sizes")
    sizes = {group["name"]: len(group["params"]) for group in parameter_groups(network, settings)}
    frozen = sum(p.dim() > 1 and not p.requires_grad for p in network.parameters())
    found = (sizes["backbone"] + sizes["edge_weights"] + frozen, sizes["edge_biases"], sizes["new"], 0)
    if found != (weights, biases, new, new_biases):
        raise ParityError(f"{fixture.name}: groups of {found} tensors, the fixture says {fixture.input('group_sizes')}")


def _check_gradients(fixture: OwnToleranceFixture, network: CamNetwork) -> None:
    parameters = {published_name(name): value for name, value in network.named_parameters()}
    for name in fixture.outputs():
        if name.startswith("grad_norm."):
            gradient = parameters[name.removeprefix("grad_norm.")].grad
            assert gradient is not None
            fixture.expect(name, gradient.norm()[None])
    without = sorted(name for name, value in parameters.items() if value.grad is None)
    if without != fixture.meta["parameters_without_gradient"]:
        raise ParityError(f"{fixture.name}: without gradient are {without}")


def check_optimizer(fixture: OwnToleranceFixture) -> None:
    names, steps, last = ("p0", "p1", "p2", "p3"), fixture.input("steps"), fixture.input("max_step")
    salt, rate = fixture.inputs["p0"]["salt"], prose_number(fixture.meta["notes"], r"20x of ([\d.e-]+\d)", 0.1)
    parameters = [nn.Parameter(fixture.tensor(name)) for name in names]
    groups = [
        {"params": [parameter], "lr": factor * rate, "weight_decay": decay}
        for parameter, factor, decay in zip(parameters, (1, 2, 10, 20), (5e-4, 0, 5e-4, 0), strict=True)
    ]
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=SBNET.momentum)
    values, rates = [], []
    for step in range(steps):
        # Behind the last step the official optimizer keeps its rate.
        rates.append(set_rates(optimizer, polynomial_decay(min(step, last - 1), last, SBNET.lr_power)))
        for index, parameter in enumerate(parameters):
            parameter.grad = fixture.parity.tensor(f"g{index}.{step}", tuple(parameter.shape), -1, 1, salt)
        optimizer.step()
        values.append(torch.stack([parameter.detach().clone() for parameter in parameters]))
    fixture.expect("params", torch.stack(values))
    fixture.expect("lr", np.array(rates))


@cache
def _manifest(settings: CamSettings) -> dict[str, list[int]]:
    with torch.device("meta"):
        network = build_cam_network(settings, CLASSES)
    return {published_name(name): shape for name, shape in shapes(network.state_dict()).items()}


CHECKS = {
    "cam_net": check_cam_network,
    "seam_net": check_seam_network,
    "edge_module": check_edge_module,
    "pcm": check_correlation,
    "norms": check_norms,
    "smoothness": check_smoothness,
    "sb_loss": check_losses,
    "sb_train_step": check_training_steps,
    "poly_optimizer": check_optimizer,
}
MANIFESTS = {
    "sbnet_cam": lambda: _manifest(SBNET),
    "seam_cam": lambda: _manifest(SEAM),
    "semantic_edge_module": lambda: shapes(EdgeModule((64, 256, 1024, 2048), CLASSES).state_dict()),
}
