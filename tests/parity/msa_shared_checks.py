"""MSA: its training samples, and its segmentation network, DeepLabV2 with multi-scale inputs."""

from __future__ import annotations

from functools import partial
from typing import Any

import cv2
import torch
from tests.parity.check_parts import gradient_norms, shapes
from tests.parity.shared_fixtures import CaseFixture

from wsss.data.augment.rescaled_crop import CanvasCrop, cropped_image, cropped_map
from wsss.data.transforms import channels_first, resize_long
from wsss.nn.deeplabv2_msc import DeepLabV2Msc, DeepLabV2Structure, published_name
from wsss.stages.segmentation import cross_entropy_sums, shrunk_label

FIXTURE = CaseFixture
CLASSES = {"deeplabv2_voc": 21, "deeplabv2_coco": 81}


def check_deeplab(fixture: CaseFixture) -> None:
    for case in fixture.cases:
        arguments = case["args"]
        structure = DeepLabV2Structure(scales=tuple(arguments["msc_scales"]))
        network = DeepLabV2Msc(structure, arguments["num_classes"])
        fixture.fill(case, network, partial(published_name, form="caffe"))
        {"forward": _forward, "train": _train}[case["operation"]](fixture, case, network)


@torch.no_grad()
def _forward(fixture: CaseFixture, case: dict[str, Any], network: DeepLabV2Msc) -> None:
    fixture.expect(case, "logits", network.eval()(fixture.tensor(case, "x")))


def _train(fixture: CaseFixture, case: dict[str, Any], network: DeepLabV2Msc) -> None:
    network.train()
    labels, total = fixture.tensor(case, "labels").to(torch.uint8), torch.tensor(0.0)
    for number, logits in enumerate(network(fixture.tensor(case, "x"))):
        sums, counts = cross_entropy_sums(logits, labels)
        loss = sums.sum() / counts.sum()
        fixture.expect(case, f"logits{number}", logits)
        fixture.expect(case, f"labels{number}", shrunk_label(labels, (logits.shape[2], logits.shape[3])))
        fixture.expect(case, f"loss{number}", loss)
        total = total + loss
    fixture.expect(case, "loss_sum", total)
    (total / case["args"]["loss_divisor"]).backward()
    own = {published_name(name, "caffe"): name for name in network.state_dict()}
    for output in case["outputs"]:
        if output.startswith("grad_norm."):
            norm = gradient_norms(network, [own[output.removeprefix("grad_norm.")]])
            fixture.expect(case, output, norm[0])


def check_augment(fixture: CaseFixture) -> None:
    for case in fixture.cases:
        drawn, arguments = case["drawn"], case["args"]
        image, second = (fixture.tensor(case, name).numpy() for name in ("rgb", "mask"))
        size, scaled = arguments["crop"], (drawn["resized_height"], drawn["resized_width"])
        image = resize_long(image, drawn["size"], arguments["image_resample"])
        second = resize_long(second, drawn["size"], arguments["mask_resample"])
        assert image.shape[:2] == second.shape[:2] == scaled
        offsets = (drawn["vertical_offset"], drawn["horizontal_offset"])
        crop = CanvasCrop(size, size, *(-o if side > size else o for o, side in zip(offsets, scaled, strict=True)))
        mean, std = tuple(case["mean"]), tuple(case["std"])
        fixture.expect(case, "image", channels_first(cropped_image(image, drawn["flip"], crop, mean, std)))
        second = cropped_map(second, drawn["flip"], crop, arguments["mask_fill"])
        fixture.expect(case, "mask", second)
        if "lab_uint8" in case["outputs"]:
            fixture.expect(case, "lab_uint8", cv2.cvtColor(second, cv2.COLOR_RGB2LAB))


CHECKS = {"augment": check_augment, "deeplab": check_deeplab}
MANIFESTS = {
    name: lambda classes=classes: shapes(DeepLabV2Msc(DeepLabV2Structure(), classes).published_state_dict())
    for name, classes in CLASSES.items()
}
