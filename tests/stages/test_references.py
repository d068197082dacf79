"""The same network on other labels: which stages, what they learn from, and that the method's own stay as they are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.methods.in_process import run_pipeline
from tests.stages.test_segmentation import SMALL, label_stage

from wsss.data.config import DatasetConfig
from wsss.data.dataset import Dataset, load_dataset
from wsss.data.shapes import ShapesConfig
from wsss.pipeline import GridColumn, Pipeline, SampleGrid, Stage, StageContext, TrainStage, stage_keys
from wsss.stages.cam import cam_stages
from wsss.stages.references import (
    BOX_STAGE,
    PLAIN_CAM,
    CamReferenceSettings,
    ReferenceSettings,
    beside,
    is_of_reference,
    with_references,
)
from wsss.stages.segmentation import segmentation_stages
from wsss.store import open_store
from wsss.weights import file_digest

QUICK = replace(SMALL, steps=3)
BOTH = ReferenceSettings(upper_bound=True, image_boxes=True)


@dataclass(frozen=True)
class Plain:
    parts: bool


def nothing(context: StageContext) -> Any:
    raise AssertionError("nothing runs here")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    config = DatasetConfig(name="shapes", shapes=ShapesConfig(train=8, train_aug_extra=0, val=4, size=64))
    return load_dataset(config, tmp_path_factory.mktemp("home"))


def method_pipeline(label: str | None = "pseudo_label") -> Pipeline:
    stages = segmentation_stages(QUICK, prefix="segmentation", label_stage=label, seed=3, training_list="train")
    return Pipeline(
        stages=(label_stage(), *stages),
        headline=("pseudo_label/miou_train", "segmentation/miou_val"),
        grids=(SampleGrid("val", (GridColumn("prediction", "segmentation", "prediction", "labels"),)),),
    )


def test_the_methods_own_stages_keep_their_keys(shapes: Dataset) -> None:
    own, more = method_pipeline(), with_references(method_pipeline(), BOTH)
    keys = stage_keys(own, shapes, file_digest)
    with_both = stage_keys(more, shapes, file_digest)
    assert {name: with_both[name] for name in keys} == keys
    added = [stage.name for stage in more if stage.name not in keys]
    assert added == [
        *(
            "upper_bound_train",
            "upper_bound_scores",
            "upper_bound_predictions",
            "upper_bound",
            "upper_bound_evaluation",
        ),
        *(BOX_STAGE, "image_boxes_train", "image_boxes_scores", "image_boxes_predictions"),
        *("image_boxes", "image_boxes_evaluation"),
    ]
    assert all(is_of_reference(name) for name in added) and not any(is_of_reference(name) for name in keys)
    assert more.headline[-2:] == ("upper_bound/miou_val", "image_boxes/miou_val")
    assert [column.title for column in more.grids[0].columns] == [
        "prediction",
        "trained on masks",
        "trained on image boxes",
    ]
    assert with_references(own, ReferenceSettings()) == own


def test_the_upper_bound_is_the_network_on_the_masks(shapes: Dataset, tmp_path: Path) -> None:
    """To the last digit what the same stages give when the masks are their labels."""
    store = open_store(str(tmp_path))
    run = run_pipeline(with_references(method_pipeline(), BOTH), shapes, store)
    supervised = run_pipeline(method_pipeline(label=None), shapes, open_store(str(tmp_path / "other")))
    assert run.histories["upper_bound_train"] == supervised.histories["segmentation_train"]
    assert run.metrics["upper_bound/miou_val"] == supervised.metrics["segmentation/miou_val"]
    histories = [run.histories[f"{name}_train"] for name in ("segmentation", "upper_bound", "image_boxes")]
    assert histories[0] != histories[1] != histories[2] != histories[0]
    assert {"segmentation/miou_val", "image_boxes/miou_val"} < set(run.metrics)


def test_image_boxes_are_bands_of_the_present_classes(shapes: Dataset, tmp_path: Path) -> None:
    run = run_pipeline(with_references(method_pipeline(), BOTH), shapes, open_store(str(tmp_path)), [BOX_STAGE])
    view = shapes.view(frozenset({"images", "image_labels"}), "train")
    several = 0
    for name in view.names:
        label, present = run.artifacts[BOX_STAGE].arrays(name)["label"], view.present_classes(name)
        assert label.dtype == np.uint8 and label.shape == view.image_size(name)
        assert tuple(np.unique(label)) == present, "no background, every class"
        assert (label == label[0]).all() and list(label[0]) == sorted(label[0])
        widths = [int((label[0] == present_class).sum()) for present_class in present]
        assert max(widths) - min(widths) <= 1
        several += len(present) > 1
    assert several, "no picture has several classes"


def test_a_plain_cam_stands_under_its_own_name_and_changes_no_key(shapes: Dataset) -> None:
    def stages(config: Plain) -> list[Stage]:
        training = TrainStage(
            name="cam_train",
            version=1,
            config=config,
            image_list="train",
            reads=frozenset({"images", "image_labels"}),
            build=nothing,
            seed=3,
        )
        return cam_stages(training, (1.0,), 0.2, nothing)

    own = Pipeline(
        stages=tuple(stages(Plain(parts=True))),
        headline=("cam/miou_train", "segmentation/miou_val"),
        grids=(SampleGrid("train", (GridColumn("CAM", "cam", "high_res", "cam"),)),),
    )
    more = with_references(own, CamReferenceSettings(plain_cam=True), stages(Plain(parts=False)))
    keys, with_plain = (stage_keys(each, shapes, file_digest) for each in (own, more))
    assert {name: with_plain[name] for name in keys} == keys
    added = [stage.name for stage in more if stage.name not in keys]
    assert added == ["plain_cam_train", "plain_cam", "plain_cam_score", "plain_cam_evaluation"]
    assert all(is_of_reference(name, PLAIN_CAM) for name in added)
    assert more.stage("plain_cam").inputs == {"weights": "plain_cam_train"}
    assert more.stage("plain_cam_train").config == Plain(parts=False)
    assert more.stage("plain_cam_evaluation").config.prefix == "plain_cam"
    assert more.headline == (*own.headline, "plain_cam/miou_train")
    assert [column.title for column in more.grids[0].columns] == ["CAM", "plain CAM"]
    assert beside("plain_cam/miou_train_low", PLAIN_CAM) == "cam/miou_train_low"
