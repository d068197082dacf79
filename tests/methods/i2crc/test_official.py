"""The official files of I2CRC: what is written comes back, and what does not fit is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.methods.i2crc.test_stages import Case
from torch import Tensor

from wsss.errors import WsssError
from wsss.nn.checkpoint import CheckpointError
from wsss.official import LayoutError
from wsss.recipe import load_recipe
from wsss.released import pipeline_of
from wsss.store import Artifact
from wsss_methods.i2crc import METHOD
from wsss_methods.i2crc.official import check_released_network
from wsss_methods.i2crc.recipe import I2crcRecipe


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    torch.set_num_threads(1)
    return Case(tmp_path_factory.mktemp("home"))


def names_of(case: Case, stage: str) -> tuple[str, ...]:
    image_list = case.pipeline.stage(stage).image_list
    return case.dataset.names(image_list) if image_list else ()


def taken_in(case: Case, stage: str, source: Path, key: str = "imported") -> Artifact:
    read: Any = METHOD.exporters[stage].read
    writer = case.store.writer(stage, key)
    read(source, case.dataset, names_of(case, stage), writer)
    return writer.publish({})


def written(case: Case, stage: str, folder: Path) -> int:
    return METHOD.exporters[stage].write(case.artifact(stage), case.dataset, folder)


@pytest.mark.parametrize(
    ("stage", "mode"),
    [
        ("saliency", "L"),
        ("cam", "L"),
        ("pseudo_label", "P"),
        ("segmentation_round1_labels", "P"),
        ("refined_label", "P"),
    ],
)
def test_folders_of_pictures_go_out_and_come_back(case: Case, tmp_path: Path, stage: str, mode: str) -> None:
    count = written(case, stage, tmp_path)
    files = sorted(tmp_path.glob("*.png"))
    assert count == len(files)
    for path in files:
        with Image.open(path) as picture:
            assert picture.mode == mode
    imported = taken_in(case, stage, tmp_path, f"imported_{stage}")
    for name in names_of(case, stage):
        expected, found = case.artifact(stage).arrays(name), imported.arrays(name)
        assert set(found) == set(expected)
        for array, values in expected.items():
            assert np.array_equal(found[array], values) and found[array].dtype == values.dtype


def test_class_maps_count_their_classes_from_0(case: Case, tmp_path: Path) -> None:
    written(case, "cam", tmp_path)
    view = case.dataset.view({"image_labels"}, "train_aug")
    expected = {f"{name}_{key - 1}.png" for name in view.names for key in view.present_classes(name)}
    assert {path.name for path in tmp_path.iterdir()} == expected
    name = view.names[0]
    maps = case.artifact("cam").arrays(name)
    with Image.open(tmp_path / f"{name}_{maps['keys'][0] - 1}.png") as picture:
        assert np.array_equal(np.array(picture), maps["high_res"][0])


def test_class_maps_that_do_not_fit_are_named(case: Case, tmp_path: Path) -> None:
    written(case, "cam", tmp_path)
    view = case.dataset.view({"images", "image_labels"}, "train_aug")
    name = next(name for name in view.names if view.present_classes(name) == (1,))
    original = (tmp_path / f"{name}_0.png").read_bytes()
    height, width = view.image_size(name)

    def refused(change: Callable[[Path], object]) -> str:
        change(tmp_path / f"{name}_0.png")
        with pytest.raises(LayoutError) as error:
            taken_in(case, "cam", tmp_path, "refused")
        for path in tmp_path.glob(f"{name}_*.png"):
            path.unlink()
        (tmp_path / f"{name}_0.png").write_bytes(original)
        assert name in str(error.value)
        return str(error.value)

    text = refused(lambda path: (tmp_path / f"{name}_2.png").write_bytes(original))
    assert "maps of the classes [0, 2], the picture's labels are [0]" in text and case.dataset.classes[1] in text
    assert "there are maps of the classes []" in refused(lambda path: path.unlink())
    assert "counts from 0" in refused(lambda path: path.rename(tmp_path / f"{name}_1.png"))
    smaller = np.zeros((height - 1, width), dtype=np.uint8)
    text = refused(lambda path: Image.fromarray(smaller).save(path))
    assert f"class 0 is {(height - 1, width)}, the picture {(height, width)}" in text
    assert "mode is RGB" in refused(lambda path: Image.new("RGB", (width, height)).save(path))
    assert "cannot be decoded" in refused(lambda path: path.write_bytes(b"no picture"))


def test_labels_and_saliency_that_do_not_fit_are_named(case: Case, tmp_path: Path) -> None:
    view = case.dataset.view({"images", "image_labels"}, "train_aug")
    name = next(name for name in view.names if view.present_classes(name) == (1,))
    for stage, value, message in (
        ("pseudo_label", 2, r"labels \[2\] in 3 pixels are not among the picture's labels \[1\]"),
        ("refined_label", 9, r"labels \[9\] in 3 pixels[\s\S]*classes go from 0 to 3"),
        ("segmentation_round1_labels", 255, "labels are up to 255"),
    ):
        written(case, stage, tmp_path / stage)
        label = np.array(Image.open(tmp_path / stage / f"{name}.png"))
        label[0, :3] = value
        Image.fromarray(label).save(tmp_path / stage / f"{name}.png")
        with pytest.raises(LayoutError, match=message) as error:
            taken_in(case, stage, tmp_path / stage, "refused")
        assert f"{name}.png" in str(error.value)
    written(case, "saliency", tmp_path / "saliency")
    height, width = view.image_size(name)
    Image.new("P", (width, height)).save(tmp_path / "saliency" / f"{name}.png")
    with pytest.raises(LayoutError, match=rf"mode is P, expected L[\s\S]*{name}\.png"):
        taken_in(case, "saliency", tmp_path / "saliency", "refused")


def test_the_classifier_goes_out_with_the_official_prefix_and_comes_back(case: Case, tmp_path: Path) -> None:
    written(case, "cam_train", tmp_path)
    content = torch.load(tmp_path / "pascal_voc_epoch_last.pth", weights_only=True)
    own = torch.load(case.artifact("cam_train").path("network.pt"), weights_only=True)
    assert set(content["state_dict"]) == {f"module.{name}" for name in own}
    official = {"epoch": 29, "global_counter": 7, "state_dict": content["state_dict"], "optimizer": {"state": {}}}
    torch.save(official, tmp_path / "pascal_voc_epoch_29.pth")
    imported = torch.load(
        taken_in(case, "cam_train", tmp_path / "pascal_voc_epoch_29.pth").path("network.pt"), weights_only=True
    )
    assert set(imported) == set(own) and all(torch.equal(imported[name], own[name]) for name in own)
    with pytest.raises(CheckpointError, match=r"no tensor 'extra_convs\.6\.bias'"):
        torch.save({"features.0.bias": torch.zeros(3)}, tmp_path / "other.pth")
        taken_in(case, "cam_train", tmp_path / "other.pth", "refused")
    torch.save({"extra_convs.6.bias": torch.zeros(20)}, tmp_path / "voc.pth")
    with pytest.raises(CheckpointError, match="has 20 values, data set shapes needs 3"):
        taken_in(case, "cam_train", tmp_path / "voc.pth", "refused")


@pytest.mark.parametrize("stage", ["segmentation_round1_train", "segmentation_train"])
@pytest.mark.parametrize("layout", ["plain", "module", "without_counters"])
def test_the_network_of_a_round_is_a_plain_state_dict(case: Case, tmp_path: Path, stage: str, layout: str) -> None:
    written(case, stage, tmp_path)
    state = torch.load(tmp_path / "checkpoint_final.pth", weights_only=True)
    assert all(name.startswith(("base.features.", "base.classifier.conv2d_list.")) for name in state)
    content: dict[str, Any] = dict(state)
    if layout == "module":
        content = {"state_dict": {f"module.{name}": value for name, value in state.items()}}
    elif layout == "without_counters":
        content = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    path = tmp_path / "checkpoint_69.3.pth"
    torch.save(content, path)
    check_released_network(path, case.recipe, case.dataset)
    imported = torch.load(taken_in(case, stage, path, f"from_{layout}").path("network.pt"), weights_only=True)
    assert all(torch.equal(imported[name], state[name]) for name in imported) and "base.features.bn1.weight" in imported


def test_a_network_that_does_not_fit_is_refused(case: Case, tmp_path: Path) -> None:
    written(case, "segmentation_train", tmp_path)
    state = torch.load(tmp_path / "checkpoint_final.pth", weights_only=True)

    def refused(content: dict[str, Tensor], match: str) -> None:
        torch.save(content, tmp_path / "wrong.pth")
        with pytest.raises(CheckpointError, match=match):
            check_released_network(tmp_path / "wrong.pth", case.recipe, case.dataset)

    name = "base.classifier.conv2d_list.0.weight"
    refused({key: value for key, value in state.items() if key != name}, r"missing: base\.aspp\.c0\.weight")
    refused({**state, name: torch.zeros(21, *state[name].shape[1:])}, r"wrong shape: base\.aspp\.c0\.weight \(21")
    refused({**state, "base.layer1.conv1.conv.weight": torch.zeros(1)}, "unexpected: base.layer1.conv1.conv.weight")
    torch.save({**state, name.replace("weight", "bias"): torch.zeros(21)}, tmp_path / "voc.pth")
    with pytest.raises(CheckpointError, match="has 21 values, data set shapes needs 4"):
        taken_in(case, "segmentation_train", tmp_path / "voc.pth", "refused")


def test_a_released_model_runs_the_last_round_alone(case: Case, tmp_path: Path) -> None:
    written(case, "segmentation_train", tmp_path)
    recipe = load_recipe(I2crcRecipe, METHOD.recipe_path("paper"), ["dataset.name=shapes"])
    assert not recipe.weights.allow_random, "the paper recipe asks for ImageNet weights, a released model for none"
    pipeline = pipeline_of(METHOD, recipe, case.dataset, tmp_path / "checkpoint_final.pth")
    assert [stage.name for stage in pipeline] == [
        "segmentation_train",
        "segmentation_scores",
        "segmentation_predictions",
        "segmentation",
        "segmentation_evaluation",
    ]
    assert pipeline.protocol["segmentation network"] == "DeepLabV2 on ResNet-101 (torchvision), released weights"
    assert pipeline.headline == tuple(f"segmentation/miou_val{ending}" for ending in ("", "_crf", "_crf_raw"))


def test_scores_and_predictions_go_out(case: Case, tmp_path: Path) -> None:
    for stage in ("segmentation_round1_train_scores", "segmentation_scores"):
        assert written(case, stage, tmp_path / stage) == len(names_of(case, stage))
        imported = taken_in(case, stage, tmp_path / stage / "logit", f"imported_{stage}")
        for name in names_of(case, stage):
            assert np.array_equal(imported.arrays(name)["scores"], case.artifact(stage).arrays(name)["scores"])
    written(case, "segmentation", tmp_path / "predictions")
    for name in names_of(case, "segmentation"):
        with Image.open(tmp_path / "predictions" / f"{name}.png") as picture:
            assert picture.mode == "P"
            expected = case.artifact("segmentation").arrays(name)["prediction_crf"]
            assert np.array_equal(np.array(picture), expected)
    (tmp_path / "segmentation_scores" / "logit" / f"{names_of(case, 'segmentation_scores')[0]}.npy").unlink()
    with pytest.raises(WsssError, match="1 of 4 images have no file"):
        taken_in(case, "segmentation_scores", tmp_path / "segmentation_scores" / "logit", "refused")
