"""SBNet's stages one after the other in this process, at the smallest size: what they hand on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from tests.methods.in_process import DemoRun

from wsss.data.dataset import load_dataset
from wsss.evaluation.confusion import confusion_matrix, miou
from wsss.ops.cam import thresholded_argmax
from wsss.recipe import load_recipe
from wsss.stages.cam import read_high_res
from wsss_methods.sbnet import METHOD
from wsss_methods.sbnet.boundaries import contours
from wsss_methods.sbnet.recipe import SbnetRecipe

SMALL = [
    "dataset.shapes.train=6",
    "dataset.shapes.train_aug_extra=2",
    "dataset.shapes.val=4",
    "dataset.shapes.size=64",
    "dataset.shapes.classes=3",
    "weights.mobilenet_v2=none",
    "cam.width=0.0625",
    "cam.normalization=batch",
    "cam.crop_size=64",
    "cam.resize_long_min=56",
    "cam.resize_long_max=72",
    "cam.batch_size=4",
    "cam.num_epochs=2",
    "cam_inference.scales=[1.0,0.5]",
    "affinity.backbone=resnet38",
    "affinity.width=0.0625",
    "affinity.normalization=batch",
    "affinity.crop_size=64",
    "affinity.batch_size=4",
    "affinity.num_epochs=1",
    "segmentation.crop_size=65",
    "segmentation.steps=2",
    "segmentation.batch_size=4",
    "segmentation.loss_group=4",
    "crf.image=both",
    "baseline.num_epochs=1",
    "references.plain_cam=true",
    "evaluation.on_val=true",
]


class Case(DemoRun):
    """One finished run and what it ran on."""

    def __init__(self, home: Path, overrides: Sequence[str] = ()) -> None:
        super().__init__(METHOD, home, [*SMALL, *overrides])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def case(home: Path) -> Case:
    return Case(home)


def test_every_stage_ran_and_a_second_run_has_nothing_to_do(case: Case) -> None:
    case.assert_complete()


def test_headline_numbers_exist(case: Case) -> None:
    for split in ("train", "val"):
        for scored in ("cam", "seam_cam", "plain_cam", "crf_low", "crf_high", "pseudo_label"):
            assert f"{scored}/miou_{split}" in case.pipeline.headline
    for name in case.pipeline.headline:
        assert 0 <= case.run.metrics[name] <= 1, name
    for grid in case.pipeline.grids:
        for shown in grid.columns:
            assert shown.array in case.artifact(shown.stage).arrays(case.dataset.lists[grid.image_list][0])


def test_only_sbnet_has_the_losses_of_boundaries_and_plain_has_the_classification_alone(case: Case) -> None:
    losses = {
        stage: {name.removeprefix("loss/") for name in case.run.histories[stage] if name.startswith("loss/")}
        for stage in ("plain_cam_train", "seam_cam_train", "cam_train")
    }
    assert losses["plain_cam_train"] == {"classification"}
    assert losses["plain_cam_train"] < losses["seam_cam_train"] < losses["cam_train"]
    assert losses["cam_train"] - losses["seam_cam_train"] == {"boundary", "smoothness"}


def test_boundaries_are_the_contours_of_seam_after_the_crf(case: Case) -> None:
    for name in case.dataset.lists["train_aug"]:
        scores, arrays = case.artifact("boundary_crf").arrays(name), case.artifact("boundary").arrays(name)
        keys = case.artifact("seam_cam").arrays(name)["keys"]
        assert arrays["keys"].tolist() == keys.tolist() == list(case.dataset.image_labels[name])
        label = np.array([0, *keys])[scores["crf"].argmax(axis=0)]
        assert np.array_equal(arrays["boundary"], contours(label, np.array([0, *keys]), case.recipe.boundary.thickness))


def test_the_score_of_the_cam_is_that_of_its_maps(case: Case) -> None:
    for stage, split in (("cam", "train"), ("cam_val", "val")):
        view = case.dataset.view({"masks"}, split)
        total = np.zeros((case.dataset.num_classes,) * 2, dtype=np.int64)
        for name in view.names:
            arrays = case.artifact(stage).arrays(name)
            label = thresholded_argmax(
                read_high_res(arrays), arrays["keys"], case.recipe.cam_inference.background_score
            )
            total += confusion_matrix(view.mask(name), label, len(total))
        assert float(miou(total)) == pytest.approx(case.run.metrics[f"cam/miou_{split}"], abs=1e-12)
    curve = case.artifact("cam_evaluation").json("tables.json")["curve"]
    assert [row["threshold"] for row in curve] == [round(0.01 * step, 2) for step in range(96)]


@pytest.mark.parametrize(
    ("override", "first", "untouched"),
    [
        ("cam_inference.background_score=0.7", ["seam_cam_evaluation"], ["cam", "crf", "segmentation_train"]),
        ("boundary.thickness=2", ["boundary"], ["seam_cam_train", "boundary_crf", "plain_cam_train"]),
        ("random_walk.alpha=16", ["random_walk"], ["affinity", "crf", "cam_train"]),
        ("crf.image=raw", ["segmentation_predictions"], ["segmentation_scores", "pseudo_label"]),
    ],
)
def test_a_changed_setting_leaves_what_is_upstream(
    case: Case, override: str, first: list[str], untouched: list[str]
) -> None:
    from wsss.pipeline import stage_keys
    from wsss.weights import file_digest

    recipe = load_recipe(SbnetRecipe, METHOD.recipe_path("demo"), [*SMALL, override])
    pipeline = METHOD.pipeline(recipe, case.dataset)
    keys, before = (stage_keys(each, case.dataset, file_digest) for each in (pipeline, case.pipeline))
    changed = [name for name in before if keys.get(name) != before[name]]
    assert changed[0] == first[0] and not set(untouched) & set(changed)


def test_without_losses_of_boundaries_there_is_no_first_cam(home: Path) -> None:
    off = ["cam.boundary_loss_weight=0", "cam.smoothness_loss_weight=0"]
    off += ["baseline.seam=false", "references.plain_cam=false"]
    recipe = load_recipe(SbnetRecipe, METHOD.recipe_path("demo"), [*SMALL, *off])
    names = [stage.name for stage in METHOD.pipeline(recipe, load_dataset(recipe.dataset, home))]
    assert names[0] == "cam_train" and not any("boundary" in name or "seam" in name for name in names)


def test_boundaries_of_the_masks_rest_on_masks(home: Path) -> None:
    recipe = load_recipe(SbnetRecipe, METHOD.recipe_path("demo"), [*SMALL, "boundary.source=ground_truth"])
    pipeline = METHOD.pipeline(recipe, load_dataset(recipe.dataset, home))
    choosers = [stage.name for stage in pipeline if stage.chooses_by_masks]
    assert choosers == ["boundary"] and {"cam_evaluation", "segmentation_evaluation"} <= pipeline.downstream("boundary")
    assert "not weakly supervised" in pipeline.protocol["boundary maps"]


def test_the_other_segmentation_network_has_the_same_stages(case: Case, home: Path) -> None:
    other = ["retraining.network=deeplabv1_resnet38", "deeplabv1.width=0.0625", "deeplabv1.steps=1"]
    small = ["deeplabv1.crop_size=65", "deeplabv1.batch_size=2", "deeplabv1.norm_group=2", "deeplabv1.scales=[1.0]"]
    again = Case(home, [*other, *small])
    assert [stage.name for stage in again.pipeline] == [stage.name for stage in case.pipeline]
    assert again.run.executed == [name for name in again.run.artifacts if name.startswith("segmentation")], (
        "class maps and pseudo labels are those of before"
    )
    assert (
        "segmentation/miou_val_crf" in again.run.metrics
        and "DeepLabV1" in again.pipeline.protocol["segmentation network"]
    )
