"""What the classifier is trained on, its schedule, and the pictures that are made of its class maps."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from wsss.data.transforms import channels_first, normalize, resize
from wsss.pipeline import StageContext
from wsss.stages.cam import CamConfig, read_high_res
from wsss_methods.i2crc.recipe import CamSettings
from wsss_methods.i2crc.training import (
    ClassifierSamples,
    active_cam_settings,
    build_cam,
    build_cam_training,
    build_classifier,
    quantized_maps,
    resized_saliency,
    step_decay,
)

SIZE = (40, 56)
CONFIG = CamSettings(width=0.125, head_width=8, input_size=48, saliency_size=24, batch_size=2, num_epochs=6)


def context_of(config: Any, tmp_path: Path | None = None) -> StageContext:
    rng = np.random.default_rng(0)
    image, saliency = (rng.integers(0, 256, shape, dtype=np.uint8) for shape in ((*SIZE, 3), SIZE))
    data = SimpleNamespace(
        names=("a", "b", "c"),
        num_classes=5,
        image=lambda name: image,
        image_labels=lambda name: np.array([0.0, 1.0, 0.0, 1.0], dtype=np.float32),
    )
    artifacts = {
        "saliency": SimpleNamespace(arrays=lambda name: {"saliency": saliency}),
        "weights": SimpleNamespace(path=lambda name: cast(Path, tmp_path) / name),
    }
    return StageContext(stage="cam", config=config, data=cast(Any, data), inputs=cast(Any, artifacts), files={})


def test_samples_are_squeezed_and_only_colors_are_random() -> None:
    context = context_of(CONFIG)
    sample = ClassifierSamples(context).sample(0, np.random.default_rng(0))
    assert sample["image"].shape == (3, 48, 48) and sample["image"].dtype == torch.float32
    assert sample["label"].tolist() == [0, 1, 0, 1]
    saliency = context.inputs["saliency"].arrays("a")["saliency"]
    # floor(i * 40 / 24) and floor(i * 56 / 24)
    rows, columns = np.arange(24) * 40 // 24, np.arange(24) * 56 // 24
    assert np.array_equal(sample["saliency"], saliency[rows][:, columns])
    plain = CamSettings(input_size=48, color_jitter=0.0, relation_losses=False)
    fixed = [ClassifierSamples(context_of(plain)).sample(0, np.random.default_rng(seed)) for seed in (0, 1)]
    assert set(fixed[0]) == {"image", "label"}, "saliency is read for the relation losses alone"
    expected = channels_first(normalize(resize(context.data.image("a"), (48, 48), "bilinear")))
    assert all(np.array_equal(each["image"], expected) for each in fixed)
    assert not np.array_equal(sample["image"], expected)


def test_the_saliency_of_a_square_of_its_own_size_is_itself() -> None:
    saliency = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert np.array_equal(resized_saliency(saliency, 8), saliency)


def test_the_rate_falls_after_the_given_epochs() -> None:
    factors = [step_decay(step, 24, epochs=6, decay_epochs=(2, 3), factor=0.1) for step in range(24)]
    assert factors == pytest.approx([1.0] * 8 + [0.1] * 4 + [0.01] * 12)
    assert step_decay(5, 10, epochs=2, decay_epochs=(), factor=0.1) == 1


def test_the_task_of_the_recipe() -> None:
    task = build_cam_training(context_of(CONFIG))
    assert task.keep_last and task.steps_per_epoch() == 2 and task.total_steps() == 12
    (plan,) = task.optimizers
    assert plan.optimizer.defaults["nesterov"] and plan.schedule(10, 12) == pytest.approx(0.1)
    assert task.loss_weights == {"classification": 1, "intra_object": 0.01, "intra_background": 0.025, "inter": 0.1}


def test_settings_of_relation_losses_that_are_off_enter_no_key() -> None:
    changed = {"saliency_size": 64, "loss_weight_inter": 0.5, "loss_weight_intra_object": 0.0, "learning_rate": 0.1}
    active = active_cam_settings(CamSettings(relation_losses=False, **changed))
    assert active == CamSettings(relation_losses=False, learning_rate=0.1)
    assert active_cam_settings(CamSettings(**changed)) == CamSettings(**changed)


def test_maps_are_cut_to_8_bits_before_they_are_resized() -> None:
    maps = torch.tensor([[[-1.0, 2.0], [1.0, 0.5]], [[-3.0, -1.0], [-2.0, -1.0]], [[0.0, 4.0], [4.0, 4.0]]])
    pictures = quantized_maps([maps], np.array([0, 1]), (2, 2))["high_res"]
    # 127.5 is cut; a map without a positive value is zero.
    assert pictures.tolist() == [[[0, 255], [127, 63]], [[0, 0], [0, 0]]]
    large = quantized_maps([maps], np.array([2]), (9, 12))["high_res"]
    assert large.shape == (1, 9, 12) and large.dtype == np.uint8
    assert large.min() == 0 and large.max() == 255, "bicubic overshoots are cut off"
    assert quantized_maps([maps], np.array([], dtype=np.int64), (9, 12))["high_res"].shape == (0, 9, 12)


def test_class_maps_of_the_present_classes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build_classifier(CONFIG, 5)
    torch.save(network.state_dict(), tmp_path / "network.pt")
    context = context_of(CamConfig(CONFIG, (1.0,)), tmp_path)
    arrays = build_cam(context)("a")
    assert arrays["keys"].tolist() == [2, 4]
    image = channels_first(normalize(resize(context.data.image("a"), (48, 48), "bilinear")))
    expected = quantized_maps([network.infer(torch.from_numpy(image)[None])], np.array([1, 3]), SIZE)["high_res"]
    assert np.array_equal(arrays["high_res"], expected) and expected.max() > 0
    assert read_high_res(arrays).shape == (2, *SIZE) and read_high_res(arrays).max() <= 1
