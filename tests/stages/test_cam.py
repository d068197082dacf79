"""CAM of any network: what is kept of its outputs, and the full-resolution maps that come of it."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wsss.evaluation.confusion import EvaluationError
from wsss.ops.cam import Merge, merged_high_res
from wsss.pipeline import Pipeline, StageContext, TrainStage
from wsss.stages.cam import CamConfig, build_cam, cam_stages, full_resolution, raw_scales, read_high_res

SIZE = (20, 28)


class Colours(nn.Module):
    """Three classes, one a colour channel, at the given stride; `infer` adds the maps of a mirrored pair."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(stride)
        self.gain = nn.Parameter(torch.ones(3))

    def aliases(self) -> tuple[tuple[str, str], ...]:
        return (("factor", "gain"),)

    @torch.no_grad()
    def infer(self, x: Tensor, /) -> Tensor:
        maps = self.pool(x) * self.gain[:, None, None]
        return maps[0] + maps[1].flip(-1)


def pairs(image: np.ndarray, scales: Any) -> list[np.ndarray]:
    planes = image.transpose(2, 0, 1).astype(np.float32) / 255
    enlarged = [planes.repeat(int(scale), axis=1).repeat(int(scale), axis=2) for scale in scales]
    return [np.stack([each, each[..., ::-1]]) for each in enlarged]


@pytest.fixture
def context(tmp_path: Any) -> StageContext:
    """Trained weights that double class 3, and one image of classes 1 and 3."""
    torch.save({"gain": torch.tensor([1.0, 1.0, 2.0])}, tmp_path / "cam_network.pt")
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    data = SimpleNamespace(
        num_classes=4, image=lambda name: image, image_labels=lambda name: np.array([1.0, 0.0, 1.0], dtype=np.float32)
    )
    weights = SimpleNamespace(path=lambda name: tmp_path / name)
    return StageContext(
        stage="cam",
        config=CamConfig(4, (1.0, 2.0)),
        data=cast(Any, data),
        inputs=cast(Any, {"weights": weights}),
        files={},
    )


def exact(context: StageContext, stride: int, merge: Merge) -> np.ndarray:
    network = Colours(stride)
    network.load_state_dict({"gain": torch.tensor([1.0, 1.0, 2.0])})
    outputs = [network.infer(torch.from_numpy(x)) for x in pairs(context.data.image("a"), context.config.scales)]
    return merged_high_res(outputs, np.array([0, 2]), SIZE, merge)


def test_raw_maps_of_every_scale_rebuild_the_full_resolution(context: StageContext) -> None:
    arrays = build_cam(context, build_network=lambda config, classes: Colours(config), inputs=pairs, keep=raw_scales)(
        "a"
    )
    assert arrays["keys"].tolist() == [1, 3] and arrays["cam"].shape == (2, 5, 7)
    assert arrays["scale_0"].shape == (2, 5, 7) and arrays["scale_1"].shape == (2, 10, 14)
    rebuilt = read_high_res(arrays)
    assert rebuilt.shape == (2, *SIZE) and np.abs(rebuilt - exact(context, 4, Merge())).max() < 1e-3


def test_a_network_at_full_size_keeps_its_merged_maps(context: StageContext) -> None:
    merge = Merge("maximum", "range", stride=1)
    keep = full_resolution(merge)
    arrays = build_cam(context, build_network=lambda config, classes: Colours(1), inputs=pairs, keep=keep)("a")
    assert set(arrays) == {"keys", "high_res"}
    assert np.abs(read_high_res(arrays) - exact(context, 1, merge)).max() < 1e-3


def test_levels_of_8_bits_are_read_as_shares_of_the_largest() -> None:
    maps = read_high_res({"high_res": np.array([[[0, 51, 255]]], dtype=np.uint8)})
    assert maps.dtype == np.float32 and np.allclose(maps, [[[0, 0.2, 1]]])


def test_a_baseline_is_another_training_with_the_same_stages() -> None:
    def stages(name: str) -> list[Any]:
        train = TrainStage(name=name, version=1, config=name, image_list="train", build=cast(Any, None), seed=0)
        return cam_stages(train, (1.0,), 0.2, cast(Any, None))

    assert [stage.name for stage in stages("plain_cam_train")] == [
        "plain_cam_train",
        "plain_cam",
        "plain_cam_score",
        "plain_cam_evaluation",
    ]
    for own, plain in zip(stages("cam_train")[1:], stages("plain_cam_train")[1:], strict=True):
        assert plain.name == f"plain_{own.name}" and type(plain) is type(own)
        assert set(plain.inputs.values()) == {f"plain_{upstream}" for upstream in own.inputs.values()}


def test_a_further_list_has_maps_and_a_score_of_its_own() -> None:
    train = TrainStage(name="cam_train", version=1, config="x", image_list="train_aug", build=cast(Any, None), seed=0)
    stages = cam_stages(train, (1.0,), 0.2, cast(Any, None), (0.0, 0.3), ("train", "val"))
    assert [(stage.name, stage.image_list) for stage in stages] == [
        ("cam_train", "train_aug"),
        ("cam", "train_aug"),
        ("cam_score", "train"),
        ("cam_evaluation", None),
        ("cam_val", "val"),
        ("cam_val_score", "val"),
        ("cam_val_evaluation", None),
    ]
    pipeline = Pipeline(stages=tuple(stages))
    assert pipeline.stage("cam_val_score").config.thresholds == (0.0, 0.2, 0.3)
    assert pipeline.stage("cam_val_score").inputs == {"cam": "cam_val"}
    assert str(pipeline.stage("cam_val_evaluation").config.name) == "cam/miou_val"


def test_a_flat_map_stays_finite_and_other_values_that_are_not_are_refused() -> None:
    flat = [torch.ones(1, *SIZE)]
    arrays = full_resolution(Merge(normalize="range", stride=1))(flat, np.array([0]), SIZE)
    assert read_high_res(arrays).max() < -65_000, "as the official normalization makes it, cut to half precision"
    with pytest.raises(EvaluationError, match="not finite"):
        read_high_res({"high_res": np.full((1, *SIZE), np.nan, dtype=np.float16)})
