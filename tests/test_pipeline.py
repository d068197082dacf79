"""Pipelines: wiring, the label firewall at definition time, and what enters a key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from wsss.pipeline import (
    GridColumn,
    MapStage,
    Pipeline,
    PipelineError,
    ReduceStage,
    Reduction,
    SampleGrid,
    Stage,
    TrainStage,
    stage_keys,
)
from wsss.recipe import setting


@dataclass(frozen=True)
class Config:
    value: int = setting(1)
    path: str = setting("here", in_key=False)


class Data:
    def __init__(self, **contents: str) -> None:
        self.contents = contents

    def digest(self, image_list: str | None, reads: frozenset[Any]) -> str:
        return "|".join(f"{read}:{self.contents.get(read, '')}" for read in sorted(reads)) + f"@{image_list}"


def build(context: object) -> Any:
    raise AssertionError("not called")


def compute(context: object) -> Reduction:
    raise AssertionError("not called")


def pipeline(**changes: Any) -> Pipeline:
    cam_train = TrainStage(
        name="cam_train",
        version=changes.get("version", 1),
        config=changes.get("train_config", Config()),
        reads=frozenset({"images", "image_labels"}),
        image_list="train",
        build=build,
        seed=changes.get("seed", 0),
        files=changes.get("files", {}),
    )
    cam = MapStage(
        name="cam",
        version=1,
        config=changes.get("cam_config", Config()),
        inputs={"network": "cam_train"},
        reads=frozenset({"images"}),
        image_list="train",
        build=build,
    )
    score = ReduceStage(
        name="score",
        version=1,
        config=Config(),
        inputs={"cam": "cam"},
        reads=frozenset({"masks"}),
        image_list="train",
        compute=compute,
    )
    return Pipeline((cam_train, cam, score))


def keys(data: Data | None = None, **changes: Any) -> dict[str, str]:
    return stage_keys(pipeline(**changes), data or Data(), lambda path: f"digest of {path.name}")


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before if before[name] != after[name]}


ALL = {"cam_train", "cam", "score"}


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: keys(), set()),
        (lambda: keys(train_config=Config(value=2)), ALL),
        (lambda: keys(train_config=Config(path="there")), set()),
        (lambda: keys(cam_config=Config(value=2)), {"cam", "score"}),
        (lambda: keys(version=2), ALL),
        (lambda: keys(seed=1), ALL),
        (lambda: keys(files={"backbone": Path("r50.pth")}), ALL),
        (lambda: keys(Data(masks="other")), {"score"}),
        (lambda: keys(Data(image_labels="other")), ALL),
    ],
)
def test_a_key_changes_with_what_determines_the_output_and_nothing_else(
    make: Callable[[], dict[str, str]], expected: set[str]
) -> None:
    assert changed(keys(), make()) == expected


def test_the_place_of_a_file_does_not_matter() -> None:
    one = keys(files={"backbone": Path("a/r50.pth")})
    assert one == keys(files={"backbone": Path("b/r50.pth")})


def test_training_stages_can_not_declare_masks() -> None:
    stage = pipeline().stages[0]
    with pytest.raises(PipelineError, match="must not read masks"):
        Pipeline((replace(stage, reads=frozenset({"images", "masks"})),))
    Pipeline((replace(stage, reads=frozenset({"images", "masks"}), fully_supervised=True),))  # type: ignore[call-arg]


def test_inputs_must_come_before() -> None:
    train, cam, score = pipeline().stages
    with pytest.raises(PipelineError, match="does not come before"):
        Pipeline((cam, train, score))
    with pytest.raises(PipelineError, match="two stages are named"):
        Pipeline((train, train))


def test_upstream_is_what_a_stage_depends_on_in_order() -> None:
    assert [stage.name for stage in pipeline().upstream("score")] == ["cam_train", "cam", "score"]
    assert [stage.name for stage in pipeline().upstream("cam")] == ["cam_train", "cam"]


def test_upstream_stops_where_it_is_told_to_and_asks_once() -> None:
    asked: list[str] = []

    def stop(name: str) -> bool:
        asked.append(name)
        return name == "cam"

    assert [stage.name for stage in pipeline().upstream("score", "cam", stop=stop)] == ["score"]
    assert asked == ["score", "cam"]
    assert pipeline().upstream("cam_train", "score", stop=lambda name: name == "cam")[0].name == "cam_train"


def test_downstream() -> None:
    assert pipeline().downstream("cam") == {"cam", "score"}
    with pytest.raises(PipelineError, match="stages: cam_train, cam, score"):
        pipeline().stage("crf")


def test_kinds() -> None:
    found: list[Stage] = list(pipeline())
    assert [stage.kind for stage in found] == ["train", "map", "reduce"]


def test_columns_of_a_grid_have_titles_of_their_own() -> None:
    columns = (GridColumn("label", "a", "label", "labels"), GridColumn("label", "b", "label", "labels"))
    with pytest.raises(PipelineError, match="titled 'label'"):
        SampleGrid("train", columns)
    with pytest.raises(PipelineError, match="titled 'truth'"):
        SampleGrid("train", (GridColumn("truth", "a", "label", "labels"),))
