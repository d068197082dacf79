"""I2CRC's stages one after the other in this process, at the smallest size: both rounds, and its switches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.methods.in_process import DemoRun

from wsss.data.dataset import load_dataset
from wsss.evaluation.confusion import confusion_matrix, miou
from wsss.pipeline import TrainStage
from wsss.recipe import load_recipe
from wsss.stages.refine import mean_subtracted, refined_steps
from wsss_methods.i2crc import METHOD
from wsss_methods.i2crc.label_refinement import pseudo_label, refined_label
from wsss_methods.i2crc.recipe import I2crcRecipe

SMALL = [
    "dataset.shapes.train=6",
    "dataset.shapes.train_aug_extra=3",
    "dataset.shapes.val=4",
    "dataset.shapes.size=48",
    "dataset.shapes.classes=3",
    "weights.resnet18=none",
    "weights.mobilenet_v2=none",
    "saliency.segments=40",
    "cam.normalization=batch",
    "cam.width=0.125",
    "cam.head_width=8",
    "cam.input_size=48",
    "cam.batch_size=4",
    "cam.num_epochs=2",
    "cam.saliency_size=24",
    "pseudo_label.min_object_ratio=0",
    "segmentation.form=torchvision",
    "segmentation.depth=18",
    "segmentation.output_stride=8",
    "segmentation.width=0.125",
    "segmentation.crop_size=49",
    "segmentation.steps=4",
    "segmentation.batch_size=4",
    "segmentation.loss_group=2",
    "crf.iterations=2",
    "crf.scored_iterations=3",
    "crf_train.iterations=2",
    "refinement.min_object_ratio=0",
]
ROUNDS = ("segmentation_round1", "segmentation")


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


def test_both_rounds_and_both_labels_have_their_numbers(case: Case) -> None:
    labels = ("cam/miou_train", "pseudo_label/miou_train", "refined_label/miou_train")
    rounds = tuple(f"{prefix}/miou_val{ending}" for prefix in ROUNDS for ending in ("", "_crf"))
    assert case.pipeline.headline == (*labels, *rounds)
    for name in (*case.pipeline.headline, "pseudo_label/miou_train_labeled", "refined_label/coverage_train"):
        assert 0 <= case.run.metrics[name] <= 1, name
    for grid in case.pipeline.grids:
        for column in grid.columns:
            assert column.array in case.artifact(column.stage).arrays(case.dataset.lists[grid.image_list][0])


def test_no_training_sees_a_mask_nor_what_was_made_with_one(case: Case) -> None:
    for stage in case.pipeline:
        if isinstance(stage, TrainStage):
            upstream = case.pipeline.upstream(stage.name)
            assert [each.name for each in upstream if "masks" in each.reads or each.chooses_by_masks] == []


def test_the_second_round_trains_on_refined_labels_from_the_same_start(case: Case) -> None:
    first, second = (case.pipeline.stage(f"{prefix}_train") for prefix in ROUNDS)
    assert first.config == second.config and first.inputs == {"label": "pseudo_label"}
    assert second.inputs == {"label": "refined_label"} and "segmentation_round1_train" not in second.inputs.values()
    losses = [case.run.histories[stage.name]["loss"] for stage in (first, second)]
    assert losses[0] != losses[1], "the labels differ"


def test_labels_are_made_of_the_maps_and_of_the_first_round(case: Case) -> None:
    """Each stage's output again from its inputs by the functions that the reference outputs are held against."""
    view = case.dataset.view({"images", "image_labels"}, "train_aug")
    differing = 0
    for name in view.names:
        maps, saliency = case.artifact("cam").arrays(name), case.artifact("saliency").arrays(name)["saliency"]
        initial = case.artifact("pseudo_label").arrays(name)["label"]
        expected = pseudo_label(maps["high_res"], maps["keys"], saliency, case.recipe.pseudo_label)
        assert maps["high_res"].dtype == np.uint8 and np.array_equal(initial, expected)
        predicted = case.artifact("segmentation_round1_labels").arrays(name)["prediction"]
        scores = case.artifact("segmentation_round1_train_scores").arrays(name)["scores"]
        probabilities = torch.nn.functional.interpolate(
            torch.from_numpy(scores)[None], size=predicted.shape, mode="bilinear", align_corners=False
        ).softmax(dim=1)[0]
        crf = case.recipe.crf_train.labels().crf
        assert crf is not None
        *_, last = refined_steps(probabilities.numpy(), mean_subtracted(view.image(name)), crf)
        assert np.array_equal(predicted, last.argmax(axis=0))
        present = np.array(view.present_classes(name))
        refined = case.artifact("refined_label").arrays(name)["label"]
        assert np.array_equal(refined, refined_label(predicted, initial, present, case.recipe.refinement))
        assert set(np.unique(refined)) <= {0, 255, *present}
        differing += not np.array_equal(refined, initial)
    assert differing


def test_unlabeled_pixels_are_counted_as_wrong(case: Case) -> None:
    view = case.dataset.view({"masks"}, "train")
    total = np.zeros((5, 5), dtype=np.int64)
    for name in view.names:
        label = case.artifact("refined_label").arrays(name)["label"]
        total += confusion_matrix(view.mask(name), np.where(label == 255, 4, label), 5)
    unlabeled = total[:, 4].sum() / total.sum()
    assert case.run.metrics["refined_label/coverage_train"] == pytest.approx(1 - unlabeled)
    counted = miou(total[:4, :4]) if not unlabeled else None
    found = case.run.metrics["refined_label/miou_train"]
    assert found <= case.run.metrics["refined_label/miou_train_labeled"] and counted in (None, pytest.approx(found))


def test_predictions_agree_with_their_numbers(case: Case) -> None:
    view = case.dataset.view({"masks"}, "val")
    for prefix in ROUNDS:
        for array, ending in (("prediction", ""), ("prediction_crf", "_crf")):
            total = np.zeros((4, 4), dtype=np.int64)
            for name in view.names:
                total += confusion_matrix(view.mask(name), case.artifact(prefix).arrays(name)[array], 4)
            assert float(miou(total, "truth")) == pytest.approx(case.run.metrics[f"{prefix}/miou_val{ending}"])


def test_without_relation_losses_the_saliency_trains_nothing(case: Case, home: Path) -> None:
    off = Case(home, ["cam.relation_losses=false"])
    assert off.pipeline.stage("cam_train").inputs == {} and "saliency" not in off.run.executed
    assert set(off.run.histories["cam_train"]) >= {"loss", "loss/classification"}
    assert off.run.histories["cam_train"]["loss"] == off.run.histories["cam_train"]["loss/classification"]
    assert off.pipeline.protocol["CAM network"].endswith("classification alone")


def test_without_refinement_the_second_round_repeats_the_first(case: Case, home: Path) -> None:
    off = Case(home, ["refinement.enabled=false"])
    assert off.run.executed[0] == "refined_label" and "segmentation_round1_labels" not in off.run.artifacts
    assert off.pipeline.headline == case.pipeline.headline
    assert off.run.metrics["refined_label/miou_train"] == off.run.metrics["pseudo_label/miou_train"]
    for ending in ("", "_crf"):
        first, second = (off.run.metrics[f"{prefix}/miou_val{ending}"] for prefix in ROUNDS)
        assert first == second, "the same labels, the same start, the same seed"


def test_constant_saliency_parts_nothing(case: Case, home: Path) -> None:
    constant = Case(home, ["saliency.source=constant"])
    assert constant.pipeline.protocol["saliency"] == "constant 31"
    values = {int(v) for name in case.dataset.names("train") for v in
              np.unique(constant.artifact("saliency").arrays(name)["saliency"])}  # fmt: skip
    assert values == {31}
    # Means under a mask and under the rest of it are the same.
    assert np.abs(constant.run.histories["cam_train"]["loss/inter"]).max() < 1e-5
    assert np.abs(case.run.histories["cam_train"]["loss/inter"]).max() > 1e-3


def test_rounds_part_where_the_recipe_says_so(home: Path) -> None:
    recipe = load_recipe(
        I2crcRecipe,
        METHOD.recipe_path("demo"),
        [
            *SMALL,
            "segmentation.selection=best_val",
            "segmentation_round1.steps=3",
            "segmentation_round1.learning_rate=0.1",
        ],
    )
    pipeline = METHOD.pipeline(recipe, load_dataset(recipe.dataset, home))
    first, second = (pipeline.stage(f"{prefix}_train").config for prefix in ROUNDS)
    assert (first.steps, first.learning_rate, first.selection) == (3, 0.1, "last")
    assert (second.steps, second.learning_rate, second.selection) == (4, recipe.segmentation.learning_rate, "best_val")
    assert {stage.name for stage in pipeline if stage.chooses_by_masks} == {"segmentation_selection"}
    plain = load_recipe(I2crcRecipe, METHOD.recipe_path("demo"), [*SMALL, "crf_train.enabled=false"])
    unrefined = METHOD.pipeline(plain, load_dataset(plain.dataset, home))
    assert unrefined.stage("segmentation_round1_labels").config.crf is None
    assert "without CRF" in unrefined.protocol["refined label"]
