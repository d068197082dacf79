"""MSA: superpixel network, classification networks, losses, a training step."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from tests.parity.check_parts import gradient_norms, set_rates, shapes
from tests.parity.shared_fixtures import CaseFixture
from torch import Tensor, nn

from wsss.ops.feature_affinity import propagated
from wsss.ops.superpixel_affinity import (
    lifted_to_pixels,
    pooled_to_superpixels,
    refined_by_affinity,
    superpixel_affinity,
)
from wsss.schedules import polynomial_decay
from wsss.stages.segmentation import stepped_decay
from wsss_methods.msa import losses
from wsss_methods.msa.networks import (
    PlainNetwork,
    ReconstructionNetwork,
    Structure,
    aliases,
    parameter_groups,
    published_state_dict,
)
from wsss_methods.msa.recipe import ContrastSettings
from wsss_methods.msa.superpixel_network import (
    SuperpixelNetwork,
    lab_image,
    reconstruction_errors,
    scores_from_coarse_masks,
)
from wsss_methods.msa.training import CamTraining, association_of

FIXTURE = CaseFixture
NUM_CLASSES = {"voc": 21, "coco": 81}
Case = dict[str, Any]


# ---- superpixels ----


def check_superpixel_ops(fixture: CaseFixture) -> None:
    for case in fixture.cases:
        cell, feat = case["args"]["cell"], fixture.tensor(case, "feat")
        if case["operation"] == "up_one_hot":
            lifted = [lifted_to_pixels(feat, prob, cell) for prob in fixture.tensor(case, "prob")]
            fixture.expect(case, "up", torch.cat(lifted))
        elif case["operation"] == "up_1":
            fixture.expect(case, "up", lifted_to_pixels(feat, fixture.tensor(case, "prob_logits"), cell))
        else:
            feat, logits = feat.requires_grad_(), fixture.before_post(case, "prob_logits")
            association = logits.softmax(1)
            pooled = pooled_to_superpixels(feat, association, cell)
            lifted = lifted_to_pixels(pooled, association, cell)
            fixture.expect(case, "pooled", pooled)
            fixture.expect(case, "up", lifted[:, : case["args"]["up_channels_stored"]])
            (lifted * fixture.tensor(case, "r")).sum().backward()
            fixture.expect(case, "grad_norm.feat", _norm(feat))
            fixture.expect(case, "grad_norm.prob_logits", _norm(logits))


def check_superpixel_affinity(fixture: CaseFixture) -> None:
    for case in fixture.cases:
        arguments, association = case["args"], fixture.tensor(case, "prob_logits")
        if case["operation"] == "affmat":
            affinity = superpixel_affinity(association, arguments["cell"])
            fixture.expect(case, "affmat", affinity)
            refined = refined_by_affinity(fixture.tensor(case, "feat"), affinity, arguments["refine_steps"])
            fixture.expect(case, f"refined_{arguments['refine_steps']}", refined)
            continue
        scores = scores_from_coarse_masks(
            fixture.tensor(case, "labels"),
            association,
            arguments["num_classes"],
            tuple(arguments["low_size"]),
            arguments["refine_iterations"],
        )
        fixture.expect(case, "scores_mean", scores.mean(dim=(2, 3)))
        steps = tuple(slice(None, None, step) for step in arguments["scores_sub_stride"])
        fixture.expect(case, "scores_sub", scores[steps])
        fixture.expect(case, "labels_out", scores.argmax(dim=1))


def check_scn_forward(fixture: CaseFixture) -> None:
    for case in fixture.cases:
        network = fixture.fill(case, SuperpixelNetwork()).train(case["args"]["training"])
        association = network(fixture.tensor(case, "x"))
        fixture.expect(case, "prob", association)
        if case["operation"] == "forward_backward":
            (association * fixture.tensor(case, "r")).sum().backward()
            _expect_state(fixture, case, network)


def check_scn_loss(fixture: CaseFixture) -> None:
    for case in fixture.cases:
        arguments = case["args"]
        lab = np.stack([lab_image(image) for image in fixture.tensor(case, "rgb").numpy()])
        fixture.expect(case, "lab_uint8", lab, levels=1)
        # Another version of OpenCV may round a level otherwise; what follows starts from the reference's.
        stored = torch.from_numpy(fixture.arrays[f"{case['name']}/lab_uint8"]).permute(0, 3, 1, 2)
        logits = fixture.before_post(case, "prob_logits")
        association = logits.softmax(1)
        association.retain_grad()
        target = stored.float() / arguments["lab_scale"]
        color, position = reconstruction_errors(association, target, arguments["cell"])
        height, width = target.shape[2:]
        rows, columns = np.mgrid[:height, :width].astype(np.float32)
        fixture.expect(case, "xy", np.stack([columns, rows]))
        color, position = color.mean(), arguments["pos_weight"] * position.mean()
        loss = color + position
        fixture.expect(case, "loss", loss)
        fixture.expect(case, "loss_sem", color)
        fixture.expect(case, "loss_pos", position)
        loss.backward()
        fixture.expect(case, "grad_norm.prob_logits", _norm(logits))
        fixture.expect(case, "grad_norm.prob", _norm(association))
        crop = arguments["gradient_crop"]
        assert logits.grad is not None
        cut = logits.grad[crop["sample"], :, : crop["rows"], : crop["columns"]]
        fixture.expect(case, "grad.prob_logits_first_cell", cut)


# ---- classification networks ----


def hashed_name(name: str) -> str:
    """The name that decides a weight's value: the stage's, which the official module registers last."""
    for alias, canonical in aliases(_REFERENCE):
        if name.startswith(f"{canonical}."):
            return alias + name.removeprefix(canonical)
    return name


def structure_of_case(case: Case) -> Structure:
    return Structure(num_classes=case["args"]["num_classes"])


def check_cls_forward(fixture: CaseFixture) -> None:
    for case in fixture.cases:
        network = fixture.fill(case, ReconstructionNetwork(structure_of_case(case)), hashed_name)
        network.train(case["args"]["training"])
        backward = case["operation"] == "forward_backward"
        with torch.set_grad_enabled(backward):
            maps = network.features(fixture.tensor(case, "x"), fixture.tensor(case, "prob_logits"))
            pooled = maps["scores"].mean(dim=(2, 3), keepdim=True)
            fixture.expect(case, "logits_min", pooled)
            scores = maps["rebuilt"]
            for run in case["args"]["ap_runs"]:
                scores = propagated(maps["rebuilt"], maps["x4_rebuilt"], run["ap_iterations"], run["ap_threshold"])
                fixture.expect(case, run["output"], scores)
        if backward:
            ((scores * fixture.tensor(case, "r")).sum() + pooled.sum()).backward()
            _expect_state(fixture, case, network)
        else:
            _expect_maps(fixture, case, maps)


def check_dcr_module(fixture: CaseFixture) -> None:
    for case in fixture.cases:
        network = fixture.fill(case, ReconstructionNetwork(structure_of_case(case)), hashed_name)
        network.train(case["args"]["training"])
        network.model = _GivenStages(fixture.tensor(case, "x4"), fixture.tensor(case, "x5"))
        with torch.no_grad():
            association = fixture.tensor(case, "prob_logits")
            maps = network.features(association[:, :3], association)
        fixture.expect(case, "logits", maps["rebuilt"])
        fixture.expect(case, "logits_min", maps["scores"].mean(dim=(2, 3), keepdim=True))
        _expect_maps(fixture, case, maps)


class _GivenStages(nn.Module):
    """A backbone whose last two stages are given maps."""

    def __init__(self, fourth: Tensor, fifth: Tensor) -> None:
        super().__init__()
        self.stages = {3: fourth, 4: fifth}

    def stage(self, index: int, x: Tensor) -> Tensor:
        return self.stages.get(index, x)


def _expect_maps(fixture: CaseFixture, case: Case, maps: dict[str, Tensor]) -> None:
    """The intermediate maps that a case stores."""
    first = case["args"]["first_channels"]
    names = {
        "q_feat": "q",
        "dcr4_weights": "kernels4",
        "dcr5_weights": "kernels5",
        "ala1": "gate4",
        "ala2": "gate5",
        "x4": "x4",
        "x4_reconstructed": "x4_rebuilt",
        "x5": "x5",
    }
    for published, name in names.items():
        for output, value in (
            (published, maps[name]),
            (f"{published}_first{first}", maps[name][:, :first]),
            (f"{published}_channel_mean", maps[name].mean(dim=1)),
        ):
            if output in case["outputs"]:
                fixture.expect(case, output, value)


def check_cls_baseline_forward(fixture: CaseFixture) -> None:
    for case in fixture.cases:
        network = fixture.fill(case, PlainNetwork(structure_of_case(case)), hashed_name).train(case["args"]["training"])
        with torch.no_grad():
            found = network(fixture.tensor(case, "x"))
        fixture.expect(case, "logits", found.scores)
        fixture.expect(case, "logits_min", found.pooled)


def check_ap_module(fixture: CaseFixture) -> None:
    for case in fixture.cases:
        arguments, feat = case["args"], fixture.before_post(case, "feat")
        rectified, logits = feat.relu(), fixture.tensor(case, "logits").requires_grad_()
        rectified.retain_grad()
        out = propagated(logits, rectified, arguments["iterations"], arguments["threshold"])
        fixture.expect(case, "logits_out", out)
        (out * fixture.tensor(case, "r")).sum().backward()
        fixture.expect(case, "grad_norm.feat", _norm(rectified))
        fixture.expect(case, "grad.logits", logits.grad)


# ---- losses and training ----


def check_cam_ops(fixture: CaseFixture) -> None:
    for case in fixture.cases:
        if case["operation"] == "make_cam":
            x = fixture.tensor(case, "x").requires_grad_()
            cam = losses.normalized_cam(x)
            fixture.expect(case, "cam", cam)
            (cam * fixture.tensor(case, "r")).sum().backward()
            fixture.expect(case, "grad.x", x.grad)
        elif case["operation"] == "tile":
            fixture.expect(case, "tiles", losses.tiled(fixture.tensor(case, "x"), case["args"]["patch_number"]))
        else:
            probabilities = fixture.tensor(case, "probs")
            found = losses.prototypes(fixture.tensor(case, "feats"), probabilities)
            fixture.expect(case, "prototypes", found)
            fixture.expect(case, "reconstruction", losses.reconstruction(found, probabilities))


def check_cls_losses(fixture: CaseFixture) -> None:
    for case in fixture.cases:
        {"ipc_chain": _ipc_chain, "ipc_tiles": _ipc_tiles}[case["operation"]](fixture, case)


def _ipc_chain(fixture: CaseFixture, case: Case) -> None:
    arguments, image = case["args"], fixture.tensor(case, "images")
    logits, pooled = (fixture.tensor(case, name).requires_grad_() for name in ("logits", "logits_min"))
    labels = fixture.tensor(case, "tag_vector")[:, 1:]
    saliency = fixture.tensor(case, "saliency") if arguments["variant"] == "saliency" else None
    cell, patches = arguments["cell"], arguments["patch_number"]
    target = losses.contrast_target(image, saliency, fixture.tensor(case, "prob_logits"), cell)
    fixture.expect(case, "target", target)
    fixture.expect(case, "valid_mask", losses.content_mask(image, cell).to(torch.uint8))
    foreground = losses.foreground_cam(logits, labels)
    fixture.expect(case, "fg_cam", foreground[:, arguments["fg_cam_channels"]])
    tiles = losses.tiled(foreground, patches)
    fixture.expect(case, "tile_shape", np.array(tiles.shape))
    contrast, _ = losses.contrast_loss(tiles, losses.tiled(target, patches), arguments["ignore_threshold"])
    classification = losses.classification_loss(pooled, labels).mean()
    loss = classification + arguments["alpha"] * contrast
    fixture.expect(case, "cls_loss", classification)
    fixture.expect(case, "ipc_loss_weighted", arguments["alpha"] * contrast)
    fixture.expect(case, "loss", loss)
    loss.backward()
    fixture.expect(case, "grad.logits", logits.grad)
    fixture.expect(case, "grad_norm.logits", _norm(logits))
    fixture.expect(case, "grad.logits_min", pooled.grad)


def _ipc_tiles(fixture: CaseFixture, case: Case) -> None:
    arguments, foreground = case["args"], fixture.tensor(case, "fg_cam").requires_grad_()
    loss, _ = losses.contrast_loss(foreground, fixture.tensor(case, "target"), arguments["ignore_threshold"])
    fixture.expect(case, "loss", loss)
    loss.backward()
    fixture.expect(case, "grad_norm.fg_cam", _norm(foreground))
    assert foreground.grad is not None
    tile, channels = arguments["grad_tile"], arguments["grad_channels"]
    fixture.expect(case, f"grad.fg_cam_tile{tile}_first{channels}", foreground.grad[tile, :channels])


def check_cls_train_step(fixture: CaseFixture) -> None:
    for case in fixture.cases:
        _train_steps(fixture, case, case["args"])


def _train_steps(fixture: CaseFixture, case: Case, arguments: dict[str, Any]) -> None:
    network = fixture.fill(case, ReconstructionNetwork(structure_of_case(case)), hashed_name)
    superpixels = fixture.fill(case, SuperpixelNetwork(), salt="superpixel_salt").eval().requires_grad_(False)
    contrast = ContrastSettings(
        weight=arguments["alpha"],
        target=arguments["variant"],
        patches=arguments["patch_number"],
        ignore_threshold=arguments["ignore_threshold"],
        ap_iterations=arguments["ap_iterations"],
        ap_threshold=arguments["ap_threshold"],
    )
    module = CamTraining(network, superpixels, contrast).train(arguments["training"])
    groups = parameter_groups(
        network,
        learning_rate=arguments["lr"],
        head_lr_mult=arguments["group_lr_multipliers"][2],
        weight_decay=arguments["wd"],
    )
    fixture.expect(case, "group_sizes", [len(group["params"]) for group in groups])
    fixture.expect(case, "group_numel", [sum(each.numel() for each in group["params"]) for group in groups])
    assert [group["weight_decay"] for group in groups] == arguments["group_weight_decay"]
    # The official optimizer is handed its weight decay as momentum.
    optimizer = torch.optim.SGD(groups, arguments["lr"], momentum=arguments["wd"], nesterov=arguments["nesterov"])
    batch = {"image": fixture.tensor(case, "images"), "label": fixture.tensor(case, "tag_vector")[:, 1:]}
    if arguments["variant"] == "saliency":
        batch["saliency"] = fixture.tensor(case, "saliency")
    for step in range(arguments["steps"]):
        rates = set_rates(optimizer, polynomial_decay(step, arguments["max_step"], arguments["poly_power"]))
        if step == 0:
            _expect_contrast_alone(fixture, case, module, batch)
        sums = module(batch, 0, step)
        counts = module.denominators(batch)
        classification = sums["classification"] / counts["classification"]
        weighted = arguments["alpha"] * sums["contrast"] / counts["contrast"]
        fixture.expect(case, f"step{step}.cls_loss", classification)
        fixture.expect(case, f"step{step}.ipc_loss_weighted", weighted)
        fixture.expect(case, f"step{step}.loss", classification + weighted)
        fixture.expect(case, f"step{step}.lrs", rates)
        optimizer.zero_grad()
        (classification + weighted).backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), arguments["clip_norm"])
        fixture.expect(case, f"step{step}.grad_norm_before_clip", norm)
        optimizer.step()
        parameters = dict(network.named_parameters())
        for output in case["outputs"]:
            for kind in ("norm", "sum"):
                prefix = f"step{step}.{kind}."
                if output.startswith(prefix):
                    value = parameters[output.removeprefix(prefix)].detach()
                    fixture.expect(case, output, value.norm() if kind == "norm" else value.double().sum())


def _expect_contrast_alone(fixture: CaseFixture, case: Case, module: CamTraining, batch: dict[str, Tensor]) -> None:
    """Gradients of the weighted IPC loss alone, and the CAM that it sees; running statistics stay as they are."""
    arguments, alone = case["args"], copy.deepcopy(module)
    images = float(len(batch["image"]))
    (arguments["alpha"] * alone(batch, 0, 0)["contrast"] / images).backward()
    prefix = "step0.ipc_only_grad_norm."
    for output in case["outputs"]:
        if output.startswith(prefix):
            fixture.expect(case, output, gradient_norms(alone.network, [output.removeprefix(prefix)])[0])
    alone = copy.deepcopy(module)
    with torch.no_grad():
        found = alone.network(batch["image"], association_of(alone.superpixels, batch["image"]))
        scores = propagated(found.scores, found.features, arguments["ap_iterations"], arguments["ap_threshold"])
        foreground = losses.foreground_cam(scores, batch["label"])[:, arguments["fg_cam_channels"]]
    fixture.expect(case, "step0.fg_cam_mean_std", torch.stack([foreground.mean(), foreground.std()]))


def check_lr_schedules(fixture: CaseFixture) -> None:
    for case in fixture.cases:
        {"cls_schedule": _cls_schedule, "sgd_update": _sgd_update, "deeplab_poly": _deeplab_poly}[case["operation"]](
            fixture, case
        )


def _cls_schedule(fixture: CaseFixture, case: Case) -> None:
    arguments = case["args"]
    factor = partial(polynomial_decay, total_steps=arguments["max_step"], power=arguments["power"])
    # The official optimizer keeps its last rate should it be called once more.
    steps = [min(step, arguments["max_step"] - 1) for step in range(arguments["steps"])]
    fixture.expect(case, "lr", [arguments["base_lr"] * factor(step) for step in steps])
    fixture.expect(case, "sgd_momentum", arguments["weight_decay"])
    fixture.expect(case, "nesterov", int(arguments["nesterov"]))


def _sgd_update(fixture: CaseFixture, case: Case) -> None:
    arguments = case["args"]
    w = fixture.tensor(case, "w").requires_grad_()
    decay = arguments["weight_decay"]
    optimizer = torch.optim.SGD(
        [w], arguments["base_lr"], momentum=decay, weight_decay=decay, nesterov=arguments["nesterov"]
    )
    for step in range(arguments["steps"]):
        set_rates(optimizer, polynomial_decay(step, arguments["max_step"], arguments["power"]))
        optimizer.zero_grad()
        (w - arguments["target"]).square().sum().backward()
        optimizer.step()
    fixture.expect(case, "w_after", w)


def _deeplab_poly(fixture: CaseFixture, case: Case) -> None:
    arguments = case["args"]
    factor = partial(
        stepped_decay, total_steps=arguments["iter_max"], power=arguments["power"], every=arguments["step_size"]
    )
    rates = [arguments["base_lr"] * factor(step) for step in range(arguments["iter_max"])]
    fixture.expect(case, "lr_used_by_iteration", rates)


# ---- parts ----


def _norm(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad.norm()


def _expect_state(fixture: CaseFixture, case: Case, network: nn.Module) -> None:
    """Buffers after the step (`after.*`) and norms of gradients (`grad_norm.*`)."""
    state = network.state_dict()
    for output in case["outputs"]:
        kind, _, name = output.partition(".")
        if kind == "after":
            fixture.expect(case, output, state[name])
        elif kind == "grad_norm":
            fixture.expect(case, output, gradient_norms(network, [name])[0])


_REFERENCE = cast(Any, ReconstructionNetwork(Structure(num_classes=2)))
CHECKS = {
    "superpixel_ops": check_superpixel_ops,
    "superpixel_affinity": check_superpixel_affinity,
    "scn_forward": check_scn_forward,
    "scn_loss": check_scn_loss,
    "cls_forward": check_cls_forward,
    "cls_baseline_forward": check_cls_baseline_forward,
    "dcr_module": check_dcr_module,
    "ap_module": check_ap_module,
    "cam_ops": check_cam_ops,
    "cls_losses": check_cls_losses,
    "cls_train_step": check_cls_train_step,
    "lr_schedules": check_lr_schedules,
}
MANIFESTS = {
    "scn": lambda: shapes(SuperpixelNetwork().state_dict()),
    "cam_baseline_voc": lambda: shapes(published_state_dict(PlainNetwork(Structure(num_classes=21)))),
    **{
        f"sp_cam_{data}": lambda classes=classes: shapes(
            published_state_dict(ReconstructionNetwork(Structure(num_classes=classes)))
        )
        for data, classes in NUM_CLASSES.items()
    },
}
