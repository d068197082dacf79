"""DeepLab-v1: its training in groups of images, inference at several scales, and the stages on generated shapes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.methods.in_process import InProcessRun, run_pipeline

from wsss.data.config import DatasetConfig
from wsss.data.dataset import Dataset, load_dataset
from wsss.data.shapes import ShapesConfig
from wsss.data.transforms import channels_first, normalize
from wsss.nn.wide_resnet38 import WideResNet38
from wsss.ops.crf import refine_probabilities
from wsss.pipeline import MapStage, Pipeline, StageContext, stage_keys
from wsss.store import open_store
from wsss_methods.sbnet.deeplabv1 import (
    PUBLISHED_CRF,
    DeepLabV1,
    DeepLabV1Samples,
    DeepLabV1Settings,
    build_training,
    deeplabv1_stages,
    mean_probabilities,
    scaled_picture,
)

SMALL = DeepLabV1Settings(
    width=0.0625,
    crop_size=64,
    steps=40,
    batch_size=8,
    norm_group=4,
    norm_momentum=0.1,
    learning_rate=0.02,
    head_lr_mult=2,
    scales=(0.5, 1.0, 1.75),
)


@dataclass(frozen=True)
class NoConfig:
    """Nothing to set."""


def build_label(context: StageContext) -> Any:
    """Stands for pseudo labels: the masks."""
    return lambda name: {"label": context.data.mask(name)}


LABELS = MapStage(
    name="pseudo_label",
    version=1,
    config=NoConfig(),
    reads=frozenset({"masks"}),
    image_list="train",
    build=build_label,
)


class Case:
    def __init__(self, home: Path) -> None:
        shapes = ShapesConfig(train=16, train_aug_extra=0, val=6, size=64, classes=2)
        self.dataset: Dataset = load_dataset(DatasetConfig(name="shapes", shapes=shapes), home)
        self.pipeline = Pipeline((LABELS, *self.stages(SMALL)))
        self.run: InProcessRun = run_pipeline(self.pipeline, self.dataset, open_store(str(home / "store")))

    def stages(self, settings: DeepLabV1Settings) -> list[Any]:
        return deeplabv1_stages(
            settings, prefix="segmentation", label_stage="pseudo_label", seed=0, training_list="train"
        )


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    torch.set_num_threads(1)
    return Case(tmp_path_factory.mktemp("home"))


def test_it_learns_and_is_scored_with_and_without_the_crf(case: Case) -> None:
    losses = case.run.histories["segmentation_train"]["loss"]
    assert len(losses) == SMALL.steps and np.mean(losses[-5:]) < 0.7 * np.mean(losses[:3])
    metrics = case.run.metrics
    assert metrics["segmentation/miou_val"] > metrics["segmentation/miou_val_all_background"] + 0.05
    assert "segmentation/miou_val_crf" in metrics


def test_predictions_are_those_of_the_mean_logits_over_scales_and_mirrorings(case: Case) -> None:
    """By the definition: every input alone, its logits at its own size, mirrored back, resized to the picture."""
    name = case.dataset.lists["val"][0]
    image = case.dataset.view({"images"}, "val").image(name)
    network = DeepLabV1(3, SMALL.width).eval()
    weights = case.run.artifacts["segmentation_train"].path("network.pt")
    network.load_state_dict(torch.load(weights, weights_only=True))
    logits = []
    for scale in SMALL.scales:
        planes = channels_first(normalize(scaled_picture(image, scale)))
        for mirrored in (False, True):
            x = torch.from_numpy(planes[..., ::-1].copy() if mirrored else planes)[None]
            with torch.no_grad():
                out = network(x)
            out = out.flip(-1) if mirrored else out
            resized = torch.nn.functional.interpolate(out, image.shape[:2], mode="bilinear", align_corners=True)
            logits.append(resized[0])
    expected = torch.stack(logits).mean(dim=0).softmax(dim=0).numpy()
    found = mean_probabilities(case.run.artifacts["segmentation_scores"].arrays(name), image.shape[:2])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    arrays = case.run.artifacts["segmentation"].arrays(name)
    assert (arrays["prediction"] == expected.argmax(axis=0)).mean() > 0.999
    refined = refine_probabilities(image, expected, PUBLISHED_CRF).argmax(axis=0)
    assert (arrays["prediction_crf"] == refined).mean() > 0.999


def test_every_setting_of_the_training_changes_it_and_scales_do_not(case: Case) -> None:
    def keys(settings: DeepLabV1Settings) -> dict[str, str]:
        return stage_keys(Pipeline((LABELS, *case.stages(settings))), case.dataset, str)

    known = keys(SMALL)
    assert keys(replace(SMALL, scales=(1.0,)))["segmentation_train"] == known["segmentation_train"]
    assert keys(replace(SMALL, scales=(1.0,)))["segmentation_scores"] != known["segmentation_scores"]
    assert keys(replace(SMALL, hsv_jitter=3))["segmentation_train"] != known["segmentation_train"]


def context(tmp_path: Path | None = None, **settings: Any) -> Any:
    files = {} if tmp_path is None else {"backbone": tmp_path}
    label = np.zeros((40, 70), dtype=np.uint8)
    label[:20, :35] = 1
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 70, 3), dtype=np.uint8)
    data: Any = SimpleNamespace(num_classes=3, names=("a",), image=lambda name: image)
    artifact: Any = SimpleNamespace(arrays=lambda name: {"label": label})
    return StageContext("segmentation_train", replace(SMALL, **settings), data, {"label": artifact}, files)


def test_groups_of_images_do_not_see_each_other() -> None:
    """Any split of a batch into whole groups gives the same sum of losses and the same gradient."""
    torch.manual_seed(0)
    task = build_training(context(batch_size=4, norm_group=2))
    module: Any = task.module.double().train()
    for part in module.modules():
        if isinstance(part, (torch.nn.Dropout, torch.nn.Dropout2d)):
            part.p = 0.0
    images, labels = torch.rand(4, 3, 41, 41, dtype=torch.float64), torch.randint(0, 3, (4, 41, 41)).to(torch.uint8)
    labels[:2, 5:] = 255

    def gradient(parts: list[slice]) -> torch.Tensor:
        module.zero_grad()
        for part in parts:
            module({"image": images[part], "label": labels[part]}, 0, 0)["cross_entropy"].backward()
        return module.network.backbone.conv1a.weight.grad.clone()

    whole = gradient([slice(0, 4)])
    assert whole.norm() > 0 and task.group_size == 2
    torch.testing.assert_close(whole, gradient([slice(0, 2), slice(2, 4)]), rtol=1e-9, atol=1e-12)
    assert not torch.allclose(whole, gradient([slice(0, 1), slice(1, 4)]), rtol=1e-3)
    assert task.denominators({"label": labels})["cross_entropy"] == 2 * 41 * 41 + 2 * 5 * 41


def test_convolutions_are_trained_and_norms_keep_their_start(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = WideResNet38(SMALL.width)
    for module in source.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    torch.save(source.state_dict(), tmp_path / "resnet38.pth")
    module: Any = build_training(context(tmp_path / "resnet38.pth")).module
    network = module.network
    assert torch.equal(network.backbone.b6.bn_branch2a.weight, source.get_parameter("b6.bn_branch2a.weight"))
    body, head, bias = network.parameter_groups(0.1, 0.01, 10.0)
    assert [(group["lr"], group["weight_decay"]) for group in (body, head, bias)] == [(0.1, 0.01), (1, 0.01), (2, 0)]
    trained = {id(value) for group in (body, head, bias) for value in group["params"]}
    convolutions = [each for each in network.modules() if isinstance(each, torch.nn.Conv2d)]
    assert trained == {id(value) for each in convolutions for value in each.parameters()}
    assert id(network.backbone.conv1a.weight) in trained
    assert {each.momentum for each in network.modules() if isinstance(each, torch.nn.BatchNorm2d)} == {0.1}


def test_the_rate_does_not_reach_zero() -> None:
    schedule = build_training(context()).optimizers[0].schedule
    assert schedule(0, 100) == 1 and schedule(99, 100) == pytest.approx((2 / 101) ** 0.9)


def test_pictures_and_labels_stay_together_and_padding_is_the_mean_color() -> None:
    samples = DeepLabV1Samples(context(scale_min=1, scale_max=1, hsv_jitter=0, crop_size=96))
    sample = samples.sample(0, np.random.default_rng(3))
    inside = sample["label"] != 255
    assert inside.sum() == 40 * 70 and (sample["image"][:, ~inside] == 0).all()
    rows, columns = (np.flatnonzero(inside.any(dim=axis)) for axis in (1, 0))
    label = sample["label"][rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    image = sample["image"][:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    plain = channels_first(normalize(samples.data.image("a")))
    mirrored = bool(label[0, 0] == 0)
    np.testing.assert_allclose(image.numpy(), plain[..., ::-1] if mirrored else plain, atol=1e-6)
    jittered = DeepLabV1Samples(context(scale_min=1, scale_max=1, crop_size=96)).sample(0, np.random.default_rng(3))
    shift = jittered["image"][:, jittered["label"] != 255].mean(dim=1) - torch.from_numpy(plain).mean(dim=(1, 2))
    assert 0.01 < shift.abs().max() < 0.5
    sizes = {
        DeepLabV1Samples(context(crop_size=160)).sample(0, np.random.default_rng(s))["label"].ne(255).sum().item()
        for s in range(20)
    }
    assert min(sizes) < 0.5 * 2800 and max(sizes) > 1.5 * 2800


def test_bad_settings_are_said() -> None:
    assert "norm_group" in replace(SMALL, norm_group=3).check()[0]
    assert "scale_min" in replace(SMALL, scale_min=2.0).check()[0]
