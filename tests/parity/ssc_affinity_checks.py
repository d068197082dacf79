"""Parity checks of SSC's affinity network, random walk, pseudo label and confidence mask."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from tests.parity.check_parts import gradient_norms, prose_number, set_rates, shapes
from tests.parity.fixtures import Fixture
from tests.parity.instance import centroid_clusters, refined_centroids
from tests.references import (
    affinity_loss_counts,
    affinity_losses,
    dense_transition,
    edge_walk_in_form,
    grid_affinity,
    padded_pair_affinity,
    pair_destinations,
)

from wsss.data.augment.rescaled_crop import (
    quartered_label,
)
from wsss.data.transforms import channels_first, normalize
from wsss.nn.checkpoint import official_state_dict
from wsss.nn.irn import AffinityNetwork, build_affinity_network, training_buffers
from wsss.ops.affinity import (
    LOSS_WEIGHTS,
    affinity_targets,
    displacement_target,
    pair_affinity,
    pair_displacement,
)
from wsss.ops.affinity_path import path_index
from wsss.ops.confidence import confidence_mask
from wsss.ops.random_walk import random_walk
from wsss.schedules import polynomial_decay
from wsss.stages.affinity_irn import (
    AffinityConfig,
    IrLabelConfig,
    affinity_optimizer,
    ir_label,
    padded_affinity_forward,
)
from wsss.stages.pseudo_label import pseudo_label_of_walk


def _affinity_network(fixture: Fixture) -> AffinityNetwork:
    return fixture.fill(build_affinity_network(), "irn")


# ---- affinity network ----


def check_ir_label(fixture: Fixture) -> None:
    given = fixture.settings
    crf = given["crf"]
    assert not crf.get("zero_unsure", False)
    settings = replace(
        IrLabelConfig(),
        conf_fg_thres=given["conf_fg_thres"],
        conf_bg_thres=given["conf_bg_thres"],
        crf_iterations=crf["iterations"],
        crf_gt_prob=crf["gt_prob"],
        crf_gaussian_sxy=crf["gaussian"]["sxy"],
        crf_gaussian_compat=crf["gaussian"]["compat"],
        crf_bilateral_sxy=crf["bilateral"]["sxy"],
        crf_bilateral_srgb=crf["bilateral"]["srgb"],
        crf_bilateral_compat=crf["bilateral"]["compat"],
    )
    keys = np.array(given["keys"]) + 1
    steps = ir_label(fixture.input("image"), fixture.input("high_res"), keys, settings)
    fixture.expect("fg_argmax", steps.foreground_argmax)
    fixture.expect("fg_crf", steps.foreground_crf)
    fixture.expect("label", steps.label)


def check_path_index(fixture: Fixture) -> None:
    radii = sorted({int(m[1]) for name in fixture.outputs() if (m := re.match(r"r(\d+)_", name))})
    for radius in radii:
        prefix = f"r{radius}_"
        index = path_index(radius, tuple(fixture.meta[f"{prefix}default_size"]))
        bounds = [0, *index.group_ends]
        groups = [index.paths[start:end] for start, end in pairwise(bounds)]
        fixture.expect(f"{prefix}search_dst", index.directions)
        fixture.expect(
            f"{prefix}path_lengths", np.array([(len(group[0]), len(group)) for group in groups], dtype=np.int64)
        )
        fixture.expect(f"{prefix}src", index.sources)
        fixture.expect(f"{prefix}dst_shape", np.array(pair_destinations(index).shape))
        fixture.equal(f"{prefix}dst_crc32", _crc32(pair_destinations(index)), fixture.meta[f"{prefix}dst_crc32"])
        sums = [_crc32(index.flat_paths(group)) for group in groups]
        fixture.equal(f"{prefix}path_crc32", sums, fixture.meta[f"{prefix}path_crc32"])
        for number, group in enumerate(groups):
            if f"{prefix}paths{number}" in fixture.outputs():
                fixture.expect(f"{prefix}paths{number}", np.stack(group))


def _crc32(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array.astype("<i8")).tobytes())


def check_affinity_labels(fixture: Fixture) -> None:
    index = path_index(fixture.settings["radius"], tuple(fixture.settings["size"]))
    targets = affinity_targets(fixture.tensor("label")[None], index)
    fixture.expect("bg_pos", targets.background[0])
    fixture.expect("fg_pos", targets.foreground[0])
    fixture.expect("neg", targets.negative[0])


def check_irn_pairwise(fixture: Fixture) -> None:
    index = path_index(fixture.settings["radius"], tuple(fixture.settings["feature_size"]))
    logits = fixture.tensor("edge_logits").requires_grad_()
    field = fixture.tensor("dp").requires_grad_()
    affinity = pair_affinity(torch.sigmoid(logits), index)
    difference = pair_displacement(field, index)
    # With every pair taken for every kind, the losses are plain means.
    everything = affinity_targets(torch.zeros(logits.shape[0], *index.size, dtype=torch.int64), index)
    everything = replace(everything, foreground=everything.background.clone(), negative=everything.background.clone())
    losses = affinity_losses(logits, field, everything, index)
    means = {
        "pos_mean": losses["background_positive"],
        "neg_mean": losses["negative"],
        "fg_mean": losses["displacement_foreground"],
        "bg_mean": losses["displacement_background"],
    }
    torch.stack(list(means.values())).sum().backward()
    fixture.expect("affinity", affinity)
    fixture.expect("pair_displacement", fixture.sampled("pair_displacement", difference))
    fixture.expect("disp_target", displacement_target(index))
    for name, value in means.items():
        fixture.expect(name, value)
    fixture.expect("grad_edge", logits.grad)
    fixture.expect("grad_dp", field.grad)


def check_irn_forward(fixture: Fixture) -> None:
    network = _affinity_network(fixture).eval()
    with torch.no_grad():
        edge, displacement = network(fixture.tensor("x"))
    fixture.expect("edge", edge)
    fixture.expect("dp", displacement)
    edge, displacement = padded_affinity_forward(network, fixture.tensor("y")[0], fixture.settings["crop_size"])
    fixture.expect("wrapper_edge", edge)
    fixture.expect("wrapper_dp", displacement)


def check_irn_loss(fixture: Fixture) -> None:
    settings = fixture.settings
    network = _affinity_network(fixture).train()
    reduced = np.stack([quartered_label(label) for label in fixture.input("label")])
    fixture.equal("in_reduced_label", reduced.tolist(), fixture.input("reduced_label").tolist())
    index = path_index(settings["radius"], tuple(settings["feature_size"]))
    targets = affinity_targets(torch.from_numpy(reduced), index)
    config = AffinityConfig(
        learning_rate=settings["lr"],
        dp_lr_mult=settings["dp_lr_mult"],
        momentum=settings["sgd_momentum"],
        weight_decay=settings["weight_decay"],
    )
    optimizer = affinity_optimizer(network, config)
    set_rates(optimizer, polynomial_decay(settings["step"], settings["total_steps"], power=settings["poly_power"]))
    logits, field = network(fixture.tensor("x"))
    losses = affinity_losses(logits, field, targets, index)
    total = torch.stack([LOSS_WEIGHTS[name] * value for name, value in losses.items()]).sum()
    total.backward()
    positive = losses["background_positive"] / 2 + losses["foreground_positive"] / 2
    fixture.expect(
        "losses",
        torch.stack(
            [
                losses["background_positive"],
                losses["foreground_positive"],
                positive,
                losses["negative"],
                losses["displacement_foreground"],
                losses["displacement_background"],
                total,
            ]
        ),
    )
    counts = affinity_loss_counts(targets)
    fixture.expect(
        "counts",
        torch.stack([counts[name] for name in ("background_positive", "foreground_positive", "negative")]),
    )
    fixture.expect("grad_norms", gradient_norms(network, fixture.names_in("grad_norms")))
    parameters = dict(network.named_parameters())
    for name in fixture.outputs():
        if name.startswith("grad_fc_"):
            gradient = parameters[_affinity_parameter(name.removeprefix("grad_"))].grad
            fixture.expect(name, _squeezed(fixture, name, gradient))
    has_gradient = any(p.grad is not None for name, p in parameters.items() if not name.startswith("fc_"))
    fixture.equal("backbone_gets_gradient", has_gradient, fixture.meta["backbone_gets_gradient"])
    optimizer.step()
    for name in fixture.outputs():
        if name.startswith("fc_"):
            value = parameters[_affinity_parameter(name.removesuffix("_weight"))]
            fixture.expect(name, _squeezed(fixture, name, value))


def _affinity_parameter(name: str) -> str:
    """`fc_dp7_3` is `fc_dp7.3.weight`, `fc_edge6` is `fc_edge6.weight`."""
    return re.sub(r"(?<=\d)_(?=\d)", ".", name) + ".weight"


def _squeezed(fixture: Fixture, name: str, value: Any) -> np.ndarray:
    return value.detach().numpy().reshape(fixture.reference(name).shape)


# ---- random walk, pseudo label, confidence ----


def check_random_walk(fixture: Fixture) -> None:
    settings = fixture.settings
    x, edge = fixture.input("x"), fixture.input("edge")[0]
    radius, beta = settings["radius"], settings["beta"]
    affinity = grid_affinity(edge, radius)
    transition = dense_transition(affinity, beta, settings["exp_times"])
    fixture.expect("sparse_affinity", fixture.sampled("sparse_affinity", padded_pair_affinity(edge, radius)))
    fixture.expect("dense_affinity", affinity.toarray())
    fixture.expect("transition_column_sums", transition.sum(axis=0))
    rows = len(fixture.reference("transition_first_rows"))
    fixture.expect("transition_first_rows", transition[:rows])
    short = int(prose_number(fixture.what("rw_short"), r"exp_times (\d+)", 2))
    for name, exp_times in (("rw", settings["exp_times"]), ("rw_short", short)):
        for method in ("dense", "sparse", "chebyshev"):
            walked = edge_walk_in_form(method, x, edge, radius, beta, exp_times)
            fixture.expect(name, walked[:, None])


def check_sem_seg_label(fixture: Fixture) -> None:
    settings = fixture.settings
    network = _affinity_network(fixture).eval()
    image, keys = fixture.input("image"), np.array(settings["keys"]) + 1
    planes = torch.from_numpy(channels_first(normalize(image)))
    edge = padded_affinity_forward(network, planes, settings["crop_size"])[0].numpy()
    walk = random_walk(fixture.input("cam"), edge[0], settings["radius"], settings["beta"], settings["exp_times"])
    result = pseudo_label_of_walk(walk, keys, (image.shape[0], image.shape[1]), settings["sem_seg_bg_thres"])
    fixture.expect("edge", edge)
    fixture.expect("score", result.score)
    fixture.expect("label", result.label)
    fixture.expect("keys", result.keys)
    fixture.expect("mask", confidence_mask(result.score, result.label, settings["mask_ratio"]))


def check_confidence_mask(fixture: Fixture) -> None:
    ratio_kept = fixture.settings.get("mask_ratio", 0.5)
    fixture.expect("mask", confidence_mask(fixture.input("score"), fixture.input("pred"), ratio_kept))


def check_instance_parts(fixture: Fixture) -> None:
    field = fixture.input("dp")
    centroids = refined_centroids(field)
    fixture.expect("centroids", centroids)
    fixture.expect("clusters", centroid_clusters(centroids, field))


CHECKS: dict[str, Callable[[Fixture], None]] = {
    "affinity_labels": check_affinity_labels,
    "confidence_mask": check_confidence_mask,
    "instance_parts": check_instance_parts,
    "ir_label": check_ir_label,
    "irn_forward": check_irn_forward,
    "irn_loss": check_irn_loss,
    "irn_pairwise": check_irn_pairwise,
    "path_index": check_path_index,
    "random_walk": check_random_walk,
    "sem_seg_label": check_sem_seg_label,
}


# ---- state dicts ----


def _affinity_network_shapes(with_aliases: bool) -> dict[str, list[int]]:
    network = build_affinity_network()
    return shapes(official_state_dict(network, network.aliases() if with_aliases else ()))


MANIFESTS: dict[str, Callable[[], Mapping[str, list[int]]]] = {
    "irn": lambda: _affinity_network_shapes(True),
    "irn.canonical": lambda: _affinity_network_shapes(False),
    "irn_training_extra": lambda: shapes(training_buffers(10, (128, 128))),
}
