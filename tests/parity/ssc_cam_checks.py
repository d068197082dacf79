"""Parity checks of SSC's first half: CAM training to pseudo label (SSC, sections 3 to 6)."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from tests.parity.fixtures import Fixture, ParityError
from torch import Tensor, nn

from wsss.data.transforms import CropBox, normalize, rescale
from wsss.evaluation.confusion import confusion_matrix, intersections_and_totals, iou, miou
from wsss.nn.checkpoint import official_state_dict
from wsss.nn.irn import AffinityNetwork, training_buffers
from wsss.nn.suppression import DiscriminativeRegionSuppression
from wsss.nn.vgg import Vgg19Slices
from wsss.ops.affinity import (
    LOSS_WEIGHTS,
    affinity_loss_counts,
    affinity_losses,
    affinity_targets,
    displacement_target,
    pair_affinity,
    pair_displacement,
)
from wsss.ops.affinity_path import path_index
from wsss.ops.cam import strided_size, strided_up_size, thresholded_argmax
from wsss.ops.confidence import confidence_mask
from wsss.ops.instance import centroid_clusters, refined_centroids
from wsss.ops.random_walk import dense_transition, grid_affinity, padded_pair_affinity, random_walk
from wsss_methods.ssc.cam_transforms import (
    cam_inputs,
    cropped_image,
    cropped_map,
    padded_superpixel_ids,
    quartered_label,
)
from wsss_methods.ssc.losses import (
    alignment_loss,
    alignment_terms,
    classification_loss,
    perceptual_levels,
    perceptual_loss,
    ratio,
)
from wsss_methods.ssc.networks import (
    CamNetwork,
    ReconstructionDecoder,
    SampleNorm,
    build_affinity_network,
    class_scores,
)
from wsss_methods.ssc.optimizers import (
    affinity_optimizer,
    cam_optimizer,
    decoder_optimizer,
    polynomial_schedule,
)
from wsss_methods.ssc.pseudo_label import (
    infer_cam,
    ir_label_steps,
    irn_edge_and_displacement,
    merged_class_maps,
    padded_affinity_forward,
    pseudo_label_scores,
)
from wsss_methods.ssc.recipe import IrLabelSettings


def _number(text: str, pattern: str, default: float) -> float:
    """A number in a fixture's prose, for settings that it states nowhere else."""
    match = re.search(pattern, text)
    return float(match[1]) if match else default


def _drs_delta(fixture: Fixture) -> float:
    if "drs_delta" in fixture.settings:
        return float(fixture.settings["drs_delta"])
    prose = " ".join([*fixture.meta.get("notes", []), *(fixture.what(name) for name in fixture.outputs())])
    return _number(prose, r"delta (0?\.\d+|1(?:\.0*)?)", 0.55)


def _cam_network(fixture: Fixture) -> CamNetwork:
    return fixture.fill(CamNetwork(drs_delta=_drs_delta(fixture)), "cam_net")


def _hashed_decoder_name(name: str) -> str:
    return re.sub(r"\.beta$", ".bias", re.sub(r"\.gamma$", ".weight", name))


def _decoder(fixture: Fixture) -> ReconstructionDecoder:
    return fixture.fill(ReconstructionDecoder(), "decoder", _hashed_decoder_name)


def _affinity_network(fixture: Fixture) -> AffinityNetwork:
    return fixture.fill(build_affinity_network(), "irn")


def _gradient_norms(module: nn.Module, names: list[str]) -> Tensor:
    parameters = dict(module.named_parameters())
    norms = []
    for name in names:
        gradient = parameters[name].grad
        if gradient is None:
            raise ParityError(f"{name} has no gradient")
        norms.append(gradient.norm())
    return torch.stack(norms)


def _set_rates(optimizer: torch.optim.Optimizer, factor: float) -> list[float]:
    """What the training loop does before every step; the rates of all groups."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
    return [group["lr"] for group in optimizer.param_groups]


# ---- networks and losses of the CAM stage ----


def check_cam_net_train_forward(fixture: Fixture) -> None:
    network = _cam_network(fixture).train()
    stages = network.stages(fixture.tensor("x"))
    scores = class_scores(stages.maps)
    loss = ratio(classification_loss(scores, fixture.tensor("label")))
    loss.backward()
    fixture.expect("logits", scores)
    fixture.expect("x_int", stages.maps)
    fixture.expect("stage2_mean", stages.stage2.mean(dim=1))
    fixture.expect("stage2_suppressed_mean", stages.stage2_suppressed.mean(dim=1))
    fixture.expect("stage3_mean", stages.stage3.mean(dim=1))
    fixture.expect("stage4_mean", stages.stage4.mean(dim=1))
    for name in fixture.outputs():
        if re.fullmatch(r"stage4_first\d+", name):
            fixture.expect(name, stages.stage4[:, : fixture.reference(name).shape[1]])
    fixture.expect("loss_cls", loss)
    fixture.expect("grad_norms", _gradient_norms(network, fixture.names_in("grad_norms")))
    without = {
        name.split(".")[1]
        for name, parameter in network.named_parameters()
        if parameter.grad is None and name.startswith("resnet50.")
    }
    fixture.equal("parameters_without_gradient", sorted(without), fixture.meta["parameters_without_gradient"])


def check_cam_net_infer_forward(fixture: Fixture) -> None:
    network = _cam_network(fixture).eval()
    x = fixture.tensor("x")
    fixture.expect("cam", network.infer(torch.cat([x, x.flip(-1)])))


def check_drs(fixture: Fixture) -> None:
    suppression = DiscriminativeRegionSuppression(_drs_delta(fixture))
    for variant, first in (("relu", torch.relu), ("norelu", lambda x: x)):
        x = fixture.tensor("x").requires_grad_()
        out = suppression(first(x))
        (out * fixture.tensor("w")).sum().backward()
        fixture.expect(f"out_{variant}", out)
        fixture.expect(f"grad_{variant}", x.grad)


def check_decoder_forward(fixture: Fixture) -> None:
    decoder = _decoder(fixture)
    code = fixture.tensor("code").requires_grad_()
    image = decoder(code)
    image.square().mean().backward()
    fixture.expect("image", image)
    fixture.expect("grad_code", code.grad)
    fixture.expect("grad_norms", _gradient_norms(decoder, fixture.names_in("grad_norms")))
    norm = SampleNorm(fixture.input("ln_x").shape[1])
    norm.load_state_dict({"gamma": fixture.tensor("ln_gamma"), "beta": fixture.tensor("ln_beta")})
    fixture.expect("ln_out", norm(fixture.tensor("ln_x")))


def check_perceptual_loss(fixture: Fixture) -> None:
    network = fixture.fill(Vgg19Slices(), "vgg19_slices").eval()
    image = fixture.tensor("image")
    reconstruction = fixture.tensor("reconstruction").requires_grad_()
    loss = ratio(perceptual_loss(network, reconstruction, image))
    loss.backward()
    gradient = reconstruction.grad
    assert gradient is not None
    levels = perceptual_levels(network, reconstruction, image)
    fixture.expect("level_l1", torch.stack([level.mean() for level in levels]))
    fixture.expect("loss", loss)
    fixture.expect("grad_norm", gradient.norm())
    fixture.expect("grad", fixture.sampled("grad", gradient))
    with torch.no_grad():
        for number, level in enumerate(network(image), 1):
            name = f"image_level{number}_mean"
            fixture.expect(name, fixture.sampled(name, level.mean(dim=1)))


def check_alignment_loss(fixture: Fixture) -> None:
    maps = fixture.tensor("pred").requires_grad_()
    labels, superpixels = fixture.tensor("label"), fixture.tensor("spixel")
    loss = ratio(alignment_loss(maps, labels, superpixels))
    loss.backward()
    fixture.expect("loss", loss)
    fixture.expect("grad_pred", maps.grad)
    activation, target = alignment_terms(maps, labels, superpixels)
    assert not target.requires_grad
    fixture.expect("original", activation[: len(fixture.reference("original"))])
    fixture.expect("target", target[: len(fixture.reference("target"))])


def check_cam_train_steps(fixture: Fixture) -> None:
    settings = fixture.settings
    network, decoder = _cam_network(fixture).train(), _decoder(fixture).train()
    vgg = fixture.fill(Vgg19Slices(), "vgg19_slices").eval()
    adam = settings["decoder_adam"]
    cam_sgd = cam_optimizer(
        network,
        settings["cam_lr"],
        settings["classifier_lr_mult"],
        settings["sgd_momentum"],
        settings["weight_decay"],
    )
    decoder_adam = decoder_optimizer(decoder, adam["lr"], *adam["betas"])
    schedule = polynomial_schedule(settings["poly_power"])
    before = {name: value.clone() for name, value in _trained(network, decoder).items()}
    weights = settings["loss_weights"]

    rows, rates = [], []
    for step in range(len(fixture.reference("losses"))):
        factor = schedule(settings["start_step"] + step, settings["total_steps"])
        rates.append([*_set_rates(cam_sgd, factor), *_set_rates(decoder_adam, factor)])
        x, labels = fixture.tensor(f"x{step}"), fixture.tensor(f"label{step}")
        maps = network(x)
        losses = (
            ratio(classification_loss(class_scores(maps), labels)),
            ratio(perceptual_loss(vgg, decoder(maps), x)),
            ratio(alignment_loss(maps, labels, fixture.tensor(f"spixel{step}"))),
        )
        total = sum((weight * loss for weight, loss in zip(weights, losses, strict=True)), torch.zeros(()))
        for optimizer in (cam_sgd, decoder_adam):
            optimizer.zero_grad(set_to_none=True)
        total.backward()
        for optimizer in (cam_sgd, decoder_adam):
            optimizer.step()
        rows.append(torch.stack([*losses, total]).detach())
    fixture.expect("losses", torch.stack(rows))
    fixture.expect("lrs", np.array(rates))

    after = _trained(network, decoder)
    for name in fixture.outputs():
        if name in ("losses", "lrs"):
            continue
        if name == "update_norms":
            changes = [after[key] - before[key] for key in _listed_parameters(fixture, name, after)]
            fixture.expect(name, torch.stack([change.norm() for change in changes]))
            continue
        value = after[_parameter_of_output(name, after)]
        fixture.expect(name, value.norm() if name.endswith("_norm") else fixture.sampled(name, value))


def _trained(network: nn.Module, decoder: nn.Module) -> dict[str, Tensor]:
    """Parameters of both networks; the decoder's names begin with `decoder.`."""
    named = {name: parameter.detach() for name, parameter in network.named_parameters()}
    return named | {f"decoder.{name}": parameter.detach() for name, parameter in decoder.named_parameters()}


def _listed_parameters(fixture: Fixture, output: str, parameters: Mapping[str, Tensor]) -> list[str]:
    names = fixture.names_in(output)
    return [name if name in parameters else f"decoder.{name}" for name in names]


def _parameter_of_output(output: str, parameters: Mapping[str, Tensor]) -> str:
    """`layer3_0_conv1_weight` (or `..._norm`) is the parameter whose dotted name ends that way."""
    wanted = output.removesuffix("_norm").replace("decoder_last_conv", "decoder_upsample_4_4")
    for name in parameters:
        flat = name.replace(".", "_")
        if flat == wanted or (not name.startswith("decoder.") and flat.endswith(f"_{wanted}")):
            return name
    raise ParityError(f"no parameter for output {output}")


# ---- data of the CAM stage ----


def check_cam_train_crop(fixture: Fixture) -> None:
    settings = fixture.settings
    given, size = settings["box"], settings["crop"]
    box = CropBox(
        size,
        size,
        canvas_top=given["cont_top"],
        canvas_bottom=given["cont_bottom"],
        canvas_left=given["cont_left"],
        canvas_right=given["cont_right"],
        image_top=given["img_top"],
        image_bottom=given["img_bottom"],
        image_left=given["img_left"],
        image_right=given["img_right"],
    )
    image = cropped_image(fixture.input("image"), settings["mirror"], box)
    fixture.expect("image_out", fixture.sampled("image_out", image))
    fixture.expect("spixel_out", cropped_map(fixture.input("spixel"), settings["mirror"], box, fill=0))


def check_superpixel_decode(fixture: Fixture) -> None:
    ids = padded_superpixel_ids(fixture.input("rgb"))
    fixture.expect("ids", ids)
    for name in fixture.outputs():
        if name.startswith("rescaled_"):
            fixture.expect(name, rescale(ids, float(name.removeprefix("rescaled_")), "nearest"))


def check_cam_inputs(fixture: Fixture) -> None:
    image = fixture.input("image")
    size = (image.shape[0], image.shape[1])
    for name in fixture.outputs():
        if name.startswith("rescaled_"):
            scale = float(name.removeprefix("rescaled_"))
            resized = rescale(image, scale, "bicubic")
            fixture.expect(name, resized)
            (pair,) = cam_inputs(image, [scale])
            expected = normalize(resized).transpose(2, 0, 1)
            assert np.array_equal(pair[0], expected) and np.array_equal(pair[1], expected[..., ::-1])
    (pair,) = cam_inputs(image, [1.0])
    fixture.expect("normalised", fixture.sampled("normalised", pair[0].transpose(1, 2, 0)))
    strides = [int(number) for number in re.findall(r"\((\d+)\)", fixture.what("strided_sizes"))] or [4, 16]
    fixture.expect("strided_sizes", np.array([strided_size(size, strides[0]), strided_up_size(size, strides[1])]))


# ---- class maps ----


def _image_size(fixture: Fixture) -> tuple[int, int]:
    """(H, W), the size of the full-resolution map."""
    height, width = fixture.reference("high_res").shape[1:]
    return height, width


def check_cam_merge(fixture: Fixture) -> None:
    names = [name for name in fixture.input_names() if name.startswith("out_")]
    outputs = [fixture.tensor(name).clamp_min(0) for name in names]
    maps = merged_class_maps(outputs, fixture.input("label"), _image_size(fixture))
    fixture.expect("keys", maps.keys - 1)
    fixture.expect("cam", maps.cam)
    fixture.expect("high_res", maps.high_res)


def check_make_cam_end_to_end(fixture: Fixture) -> None:
    network = _cam_network(fixture).eval()
    scales = fixture.settings.get("scales", (1.0, 0.5, 1.5, 2.0))
    maps = infer_cam(network, fixture.input("image"), fixture.input("label"), scales)
    fixture.expect("keys", maps.keys - 1)
    fixture.expect("cam", maps.cam)
    fixture.expect("high_res", maps.high_res)


def _numbered(fixture: Fixture, stem: str) -> list[np.ndarray]:
    """Inputs stem0, stem1, ... in order."""
    names = [name for name in fixture.input_names() if re.fullmatch(rf"{stem}\d+", name)]
    return [fixture.input(name) for name in sorted(names, key=lambda name: int(name.removeprefix(stem)))]


def check_eval_cam(fixture: Fixture) -> None:
    threshold = fixture.settings["cam_eval_thres"]
    classes = len(fixture.reference("iou"))
    cams, truths = _numbered(fixture, "cam"), _numbered(fixture, "gt")
    total = np.zeros((classes, classes), dtype=np.int64)
    for cam, truth, keys in zip(cams, truths, fixture.settings["keys"], strict=True):
        prediction = thresholded_argmax(cam, np.array(keys) + 1, threshold)
        total += confusion_matrix(truth, prediction, classes)
    values = iou(total)
    fixture.equal("iou_has_nan", np.flatnonzero(np.isnan(values)).tolist(), fixture.meta.get("iou_has_nan", []))
    fixture.expect("iou", np.where(np.isnan(values), -1.0, values))
    fixture.expect("miou", miou(total))


def check_eval_sem_seg(fixture: Fixture) -> None:
    classes = len(fixture.reference("iou"))
    total = np.zeros((classes, classes), dtype=np.int64)
    for prediction, truth in zip(_numbered(fixture, "pred"), _numbered(fixture, "gt"), strict=True):
        total += confusion_matrix(truth, prediction, classes, prediction_ignore_to=0)
    values = iou(total)
    undefined = np.nan if np.isnan(fixture.reference("iou")).any() else -1.0
    fixture.expect("iou", np.where(np.isnan(values), undefined, values))
    fixture.expect("miou", miou(total))
    right, in_truth, predicted = intersections_and_totals(total)
    union = (in_truth + predicted - right).astype(np.float64)
    first, second = 1 - in_truth / union, 1 - predicted / union
    fixture.expect("fp_fn", np.array([first[0], second[0], np.nanmean(first[1:]), np.nanmean(second[1:])]))


# ---- affinity network ----


def check_ir_label(fixture: Fixture) -> None:
    given = fixture.settings
    crf = given["crf"]
    assert not crf.get("zero_unsure", False)
    settings = replace(
        IrLabelSettings(),
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
    steps = ir_label_steps(fixture.input("image"), fixture.input("high_res"), keys, settings)
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
        fixture.expect(f"{prefix}dst_shape", np.array(index.destinations.shape))
        fixture.equal(f"{prefix}dst_crc32", _crc32(index.destinations), fixture.meta[f"{prefix}dst_crc32"])
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
    optimizer = affinity_optimizer(
        network, settings["lr"], settings["dp_lr_mult"], settings["sgd_momentum"], settings["weight_decay"]
    )
    _set_rates(optimizer, polynomial_schedule(settings["poly_power"])(settings["step"], settings["total_steps"]))
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
    fixture.expect("grad_norms", _gradient_norms(network, fixture.names_in("grad_norms")))
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
    short = int(_number(fixture.what("rw_short"), r"exp_times (\d+)", 2))
    for name, exp_times in (("rw", settings["exp_times"]), ("rw_short", short)):
        for method in ("dense", "sparse", "chebyshev"):
            walked = random_walk(x, edge, radius, beta, exp_times, method)
            fixture.expect(name, walked[:, None])


def check_sem_seg_label(fixture: Fixture) -> None:
    settings = fixture.settings
    network = _affinity_network(fixture).eval()
    image, keys = fixture.input("image"), np.array(settings["keys"]) + 1
    edge, _ = irn_edge_and_displacement(network, image, settings["crop_size"])
    result = pseudo_label_scores(
        fixture.input("cam"),
        keys,
        edge,
        (image.shape[0], image.shape[1]),
        radius=settings["radius"],
        beta=settings["beta"],
        exp_times=settings["exp_times"],
        background=settings["sem_seg_bg_thres"],
    )
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
    "alignment_loss": check_alignment_loss,
    "cam_inputs": check_cam_inputs,
    "cam_merge": check_cam_merge,
    "cam_net_infer_forward": check_cam_net_infer_forward,
    "cam_net_train_forward": check_cam_net_train_forward,
    "cam_train_crop": check_cam_train_crop,
    "cam_train_steps": check_cam_train_steps,
    "confidence_mask": check_confidence_mask,
    "decoder_forward": check_decoder_forward,
    "drs": check_drs,
    "eval_cam": check_eval_cam,
    "eval_sem_seg": check_eval_sem_seg,
    "instance_parts": check_instance_parts,
    "ir_label": check_ir_label,
    "irn_forward": check_irn_forward,
    "irn_loss": check_irn_loss,
    "irn_pairwise": check_irn_pairwise,
    "make_cam_end_to_end": check_make_cam_end_to_end,
    "path_index": check_path_index,
    "perceptual_loss": check_perceptual_loss,
    "random_walk": check_random_walk,
    "sem_seg_label": check_sem_seg_label,
    "superpixel_decode": check_superpixel_decode,
}


# ---- state dicts ----


def _shapes(state: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in state.items()}


def _cam_network_shapes(with_aliases: bool) -> dict[str, list[int]]:
    network = CamNetwork()
    return _shapes(official_state_dict(network, network.aliases() if with_aliases else ()))


def _affinity_network_shapes(with_aliases: bool) -> dict[str, list[int]]:
    network = build_affinity_network()
    return _shapes(official_state_dict(network, network.aliases() if with_aliases else ()))


MANIFESTS: dict[str, Callable[[], Mapping[str, list[int]]]] = {
    "cam_net": lambda: _cam_network_shapes(True),
    "cam_net.canonical": lambda: _cam_network_shapes(False),
    "decoder": lambda: _shapes(ReconstructionDecoder().state_dict()),
    "irn": lambda: _affinity_network_shapes(True),
    "irn.canonical": lambda: _affinity_network_shapes(False),
    "irn_training_extra": lambda: _shapes(training_buffers(10, (128, 128))),
    "vgg19_slices": lambda: _shapes(Vgg19Slices().state_dict()),
}
