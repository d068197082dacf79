"""Pipelines that start from a released model: what runs, and what determines it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from wsss.data.dataset import Dataset
from wsss.errors import WsssError
from wsss.method import Exporter, Method, ReleasedCheckpoint
from wsss.pipeline import ImportStage, MapStage, Pipeline, PipelineError, ReduceStage, Reduction, TrainStage, stage_keys
from wsss.released import ReleasedModelError, check_checkpoint, pipeline_of
from wsss.weights import file_digest


@dataclass(frozen=True)
class Config:
    value: int = 1


class Data:
    def digest(self, image_list: str | None, reads: frozenset[Any]) -> str:
        return f"{image_list}:{sorted(reads)}"


DATASET: Any = Data()


def unused(*arguments: Any) -> Any:
    raise AssertionError("not called")


def compute(context: object) -> Reduction:
    raise AssertionError("not called")


def build_pipeline(recipe: Any, dataset: Dataset) -> Pipeline:
    """cam -> segmentation_train -> segmentation -> scores; `segmentation` reads a map of `cam` as well."""
    return Pipeline(
        (
            TrainStage(name="cam_train", version=1, config=Config(), build=unused, seed=recipe),
            MapStage(name="cam", version=1, config=Config(), inputs={"weights": "cam_train"}, build=unused),
            ReduceStage(name="cam_evaluation", version=1, config=Config(), inputs={"scores": "cam"}, compute=compute),
            MapStage(name="superpixels", version=1, config=Config(), build=unused),
            TrainStage(
                name="segmentation_train", version=1, config=Config(), inputs={"cam": "cam"}, build=unused, seed=recipe
            ),
            MapStage(
                name="segmentation",
                version=1,
                config=Config(),
                inputs={"weights": "segmentation_train", "superpixels": "superpixels"},
                build=unused,
            ),
            ReduceStage(
                name="segmentation_evaluation",
                version=1,
                config=Config(),
                inputs={"confusions": "segmentation"},
                compute=compute,
            ),
        )
    )


def check(path: Path, recipe: Any, dataset: Dataset) -> None:
    if path.read_bytes() == b"wrong":
        raise WsssError("the weights do not fit", str(path), "another file")


RELEASED = ReleasedCheckpoint("networks", check)


def method(released: ReleasedCheckpoint | None = RELEASED, read: Any = unused) -> Method:
    return Method(
        name="example",
        title="",
        citation="",
        recipe_type=int,
        pipeline=build_pipeline,
        folder=Path(),
        exporters={"networks": Exporter("segmentation_train", "best.pth", unused, read)},
        released=released,
    )


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "best.pth"
    path.write_bytes(b"weights")
    return path


def keys(pipeline: Pipeline) -> dict[str, str]:
    return stage_keys(pipeline, DATASET, file_digest)


def test_only_what_is_behind_the_checkpoint_runs_and_what_that_needs(checkpoint):
    assert pipeline_of(method(), 0, DATASET) == build_pipeline(0, DATASET)
    pipeline = pipeline_of(method(), 0, DATASET, checkpoint)
    assert [stage.name for stage in pipeline] == [
        "segmentation_train",
        "superpixels",
        "segmentation",
        "segmentation_evaluation",
    ]
    assert isinstance(pipeline.stages[0], ImportStage) and pipeline.stages[0].kind == "import"
    with pytest.raises(PipelineError, match="no stage 'other'"):
        build_pipeline(0, DATASET).starting_with(ReduceStage(name="other", version=1, config=Config(), compute=compute))


def test_the_file_and_not_our_training_determines_the_keys(checkpoint, tmp_path):
    trained, released = keys(build_pipeline(0, DATASET)), keys(pipeline_of(method(), 0, DATASET, checkpoint))
    for name in ("segmentation_train", "segmentation", "segmentation_evaluation"):
        assert trained[name] != released[name], "a released model must never pass for our training"
    assert trained["superpixels"] == released["superpixels"]
    assert keys(pipeline_of(method(), 1, DATASET, checkpoint)) == released, "seeds of trainings do not matter"
    copy = tmp_path / "elsewhere" / "other_name.pth"
    copy.parent.mkdir()
    copy.write_bytes(checkpoint.read_bytes())
    assert keys(pipeline_of(method(), 0, DATASET, copy)) == released
    copy.write_bytes(b"other weights")
    changed = keys(pipeline_of(method(), 0, DATASET, copy))
    assert changed["segmentation"] != released["segmentation"]


def test_a_method_may_give_a_pipeline_that_asks_for_less(checkpoint):
    def small(recipe: Any, dataset: Dataset) -> Pipeline:
        return Pipeline((TrainStage(name="segmentation_train", version=1, config=Config(), build=unused, seed=0),))

    pipeline = pipeline_of(method(ReleasedCheckpoint("networks", check, small)), 0, DATASET, checkpoint)
    assert [stage.name for stage in pipeline] == ["segmentation_train"]


def test_what_cannot_be_started_from_is_refused(checkpoint, tmp_path):
    check_checkpoint(method(), 0, DATASET, checkpoint)
    with pytest.raises(ReleasedModelError, match="does not exist"):
        check_checkpoint(method(), 0, DATASET, tmp_path / "missing.pth")
    checkpoint.write_bytes(b"wrong")
    with pytest.raises(WsssError, match="do not fit"):
        check_checkpoint(method(), 0, DATASET, checkpoint)
    for refused in (method(released=None), method(ReleasedCheckpoint("other", check)), method(read=None)):
        with pytest.raises(ReleasedModelError, match="does not say"):
            pipeline_of(refused, 0, DATASET, checkpoint)
