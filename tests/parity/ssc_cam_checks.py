"""Parity checks of SSC's CAM stage: networks, losses, samples, class maps and their score."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from tests.parity.check_parts import gradient_norms, prose_number, set_rates, shapes
from tests.parity.fixtures import Fixture, ParityError
from torch import Tensor, nn

from wsss.data.augment.rescaled_crop import (
    CanvasCrop,
    cam_inputs,
    cropped_image,
    cropped_map,
)
from wsss.data.superpixels import rgb_to_ids
from wsss.data.transforms import normalize, rescale
from wsss.evaluation.confusion import confusion_matrix, intersections_and_totals, iou, miou
from wsss.nn.checkpoint import official_state_dict
from wsss.nn.suppression import DiscriminativeRegionSuppression
from wsss.nn.vgg import Vgg19Slices
from wsss.ops.cam import merged_cam, merged_high_res, strided_size, strided_up_size, thresholded_argmax
from wsss.schedules import polynomial_decay
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
    class_scores,
)
from wsss_methods.ssc.training import cam_optimizer, decoder_optimizer


def _drs_delta(fixture: Fixture) -> float:
    if "drs_delta" in fixture.settings:
        return float(fixture.settings["drs_delta"])
    prose = " ".join([*fixture.meta.get("notes", []), *(fixture.what(name) for name in fixture.outputs())])
    return prose_number(prose, r"delta (0?\.\d+|1(?:\.0*)?)", 0.55)


def _cam_network(fixture: Fixture) -> CamNetwork:
    return fixture.fill(CamNetwork(drs_delta=_drs_delta(fixture)), "cam_net")


def _hashed_decoder_name(name: str) -> str:
    return re.sub(r"\.beta$", ".bias", re.sub(r"\.gamma$", ".weight", name))


def _decoder(fixture: Fixture) -> ReconstructionDecoder:
    return fixture.fill(ReconstructionDecoder(), "decoder", _hashed_decoder_name)


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
    fixture.expect("grad_norms", gradient_norms(network, fixture.names_in("grad_norms")))
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
    fixture.expect("grad_norms", gradient_norms(decoder, fixture.names_in("grad_norms")))
    norm = SampleNorm(fixture.input("ln_x").shape[1])
    norm.load_state_dict({"gamma": fixture.tensor("ln_gamma"), "beta": fixture.tensor("ln_beta")})
    fixture.expect("ln_out", norm(fixture.tensor("ln_x")))


def check_perceptual_loss(fixture: Fixture) -> None:
    # In double precision: in single precision some activations lie so near to a rectifier's edge or to their target
    # that the processor's order of summation decides on which side, and with it the gradient.
    network = fixture.fill(Vgg19Slices(), "vgg19_slices").eval().double()
    image = fixture.tensor("image").double()
    reconstruction = fixture.tensor("reconstruction").double().requires_grad_()
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
    schedule = partial(polynomial_decay, power=settings["poly_power"])
    before = {name: value.clone() for name, value in _trained(network, decoder).items()}
    weights = settings["loss_weights"]

    rows, rates = [], []
    for step in range(len(fixture.reference("losses"))):
        factor = schedule(settings["start_step"] + step, settings["total_steps"])
        rates.append([*set_rates(cam_sgd, factor), *set_rates(decoder_adam, factor)])
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
    crop = CanvasCrop(size, size, given["cont_top"] - given["img_top"], given["cont_left"] - given["img_left"])
    image = cropped_image(fixture.input("image"), settings["mirror"], crop)
    fixture.expect("image_out", fixture.sampled("image_out", image))
    fixture.expect("spixel_out", cropped_map(fixture.input("spixel"), settings["mirror"], crop, fill=0))


def check_superpixel_decode(fixture: Fixture) -> None:
    ids = rgb_to_ids(fixture.input("rgb")) + np.int32(1)  # 0 is free for padding
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
    _expect_maps(fixture, outputs, _image_size(fixture))


def check_make_cam_end_to_end(fixture: Fixture) -> None:
    network = _cam_network(fixture).eval()
    scales = fixture.settings.get("scales", (1.0, 0.5, 1.5, 2.0))
    image = fixture.input("image")
    outputs = [network.infer(torch.from_numpy(pair)) for pair in cam_inputs(image, scales)]
    _expect_maps(fixture, outputs, (image.shape[0], image.shape[1]))


def _expect_maps(fixture: Fixture, outputs: list[Tensor], size: tuple[int, int]) -> None:
    present = np.flatnonzero(fixture.input("label") > 0)
    fixture.expect("keys", present)
    fixture.expect("cam", merged_cam(outputs, present, size))
    fixture.expect("high_res", merged_high_res(outputs, present, size))


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


CHECKS: dict[str, Callable[[Fixture], None]] = {
    "alignment_loss": check_alignment_loss,
    "cam_inputs": check_cam_inputs,
    "cam_merge": check_cam_merge,
    "cam_net_infer_forward": check_cam_net_infer_forward,
    "cam_net_train_forward": check_cam_net_train_forward,
    "cam_train_crop": check_cam_train_crop,
    "cam_train_steps": check_cam_train_steps,
    "decoder_forward": check_decoder_forward,
    "drs": check_drs,
    "eval_cam": check_eval_cam,
    "eval_sem_seg": check_eval_sem_seg,
    "make_cam_end_to_end": check_make_cam_end_to_end,
    "perceptual_loss": check_perceptual_loss,
    "superpixel_decode": check_superpixel_decode,
}


# ---- state dicts ----


def _cam_network_shapes(with_aliases: bool) -> dict[str, list[int]]:
    network = CamNetwork()
    return shapes(official_state_dict(network, network.aliases() if with_aliases else ()))


MANIFESTS: dict[str, Callable[[], Mapping[str, list[int]]]] = {
    "cam_net": lambda: _cam_network_shapes(True),
    "cam_net.canonical": lambda: _cam_network_shapes(False),
    "decoder": lambda: shapes(ReconstructionDecoder().state_dict()),
    "vgg19_slices": lambda: shapes(Vgg19Slices().state_dict()),
}
