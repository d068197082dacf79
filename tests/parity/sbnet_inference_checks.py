"""SBNet: class maps of the whole network at several scales, as the stage that makes them merges them."""

from __future__ import annotations

import numpy as np
import torch
from tests.parity.shared_fixtures import OwnToleranceFixture

from wsss.data.augment.rescaled_crop import cam_inputs
from wsss.ops.cam import merged_high_res
from wsss_methods.sbnet.networks import build_cam_network, published_name
from wsss_methods.sbnet.pipeline import MERGE
from wsss_methods.sbnet.recipe import CamInferenceSettings, CamSettings

FIXTURE = OwnToleranceFixture
CLASSES = 21


@torch.no_grad()
def check_class_maps(fixture: OwnToleranceFixture) -> None:
    image, present = fixture.input("image"), np.array(fixture.input("present_classes"))
    network = fixture.fill(build_cam_network(CamSettings(), CLASSES), published_name).eval()
    inputs = cam_inputs(image, CamInferenceSettings().scales)
    outputs = [network.infer(torch.from_numpy(pair)) for pair in inputs]
    fixture.expect("cam", merged_high_res(outputs, present, image.shape[:2], MERGE))


CHECKS = {"infer_cam": check_class_maps}
