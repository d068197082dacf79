"""References that give a method's numbers their meaning: the same networks, without the method or on other labels.

`plain_cam`: the classifier of the method trained by its classification loss alone, without the method's parts; same
backbone, samples and schedule, its maps scored like those of the method. The method hands its own CAM stages, made of
settings whose parts are off; they stand under the name `plain_cam` in the place of `cam`.

`upper_bound`, `image_boxes`: what a pipeline does from its training `segmentation_train` on is done once more on other
labels: `upper_bound_train` to `upper_bound_evaluation` with `upper_bound/miou_val`. Network, schedule, samples,
inference and CRF are those of the method. The training's `build` must do with what a reference hands it: label maps of
an artifact in role `LABEL`, or, without one, the masks (`reads` holds "masks" then).

A training whose network, schedule and start two methods share is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from wsss.metric_name import MetricName
from wsss.pipeline import (
    Arrays,
    MapStage,
    Pipeline,
    ReduceStage,
    SampleGrid,
    Stage,
    StageContext,
    TrainStage,
)
from wsss.recipe import setting

REFERENCES_SECTION = "references"  # of every recipe
LABEL = "label"  # role of the label maps that a reference trains on
PLAIN_CAM, UPPER_BOUND, IMAGE_BOXES = "plain_cam", "upper_bound", "image_boxes"
BOX_STAGE = f"{IMAGE_BOXES}_label"
# What is done again: the class maps, or everything from this training on. Names of stages and numbers begin with it.
CAM, SEGMENTATION = "cam", "segmentation"
_TRAINING = f"{SEGMENTATION}_train"
# Reference -> what its numbers stand beside.
STANDS_BESIDE = {PLAIN_CAM: CAM, UPPER_BOUND: SEGMENTATION, IMAGE_BOXES: SEGMENTATION}
REFERENCE_TITLES = {
    PLAIN_CAM: "plain CAM",
    UPPER_BOUND: "trained on masks",
    IMAGE_BOXES: "trained on image boxes",
}
_IN_WORDS = {
    PLAIN_CAM: "the classifier trained by its classification loss alone, without the method's parts",
    UPPER_BOUND: "the segmentation network trained on the masks of the training list: full supervision, no result of "
    "the method",
    IMAGE_BOXES: "the segmentation network trained on boxes as large as the picture, one for each of its classes",
}


@dataclass(frozen=True)
class ReferenceSettings:
    """Which references are computed beside a method without class maps; they change none of its numbers."""

    upper_bound: bool = setting(
        False, help="train the segmentation network on the masks as well, with full supervision: upper_bound/miou_val"
    )
    image_boxes: bool = setting(
        False, help="train it also on boxes of a picture's classes, each as large as the picture: image_boxes/miou_val"
    )

    @property
    def wanted(self) -> tuple[str, ...]:
        """Names of the references."""
        return tuple(name for name in REFERENCE_TITLES if getattr(self, name, False))


@dataclass(frozen=True)
class CamReferenceSettings(ReferenceSettings):
    """Which references are computed beside a method with class maps."""

    plain_cam: bool = setting(
        False, help="train the classifier also without the method's parts and score its maps: plain_cam/miou_train"
    )


@dataclass(frozen=True)
class BoxConfig:
    """Boxes have nothing to set."""


def with_references(pipeline: Pipeline, settings: ReferenceSettings, plain_cam: Sequence[Stage] = ()) -> Pipeline:
    """The pipeline with the stages of the wanted references behind its own, their numbers in the headline, and a
    column for each in the image grids.

    plain_cam: the stages from `cam_train` to `cam_evaluation` with the method's parts off.
    """
    stages, headline, grids, protocol = list(pipeline.stages), [*pipeline.headline], pipeline.grids, {}
    for name in settings.wanted:
        copied = plain_cam if name == PLAIN_CAM else _behind_training(pipeline)
        if name == IMAGE_BOXES:
            stages.append(_box_stage(pipeline))
        stages += [_as_reference(stage, copied, name) for stage in copied]
        own = [metric for metric in pipeline.headline if MetricName.parse(metric).scored == STANDS_BESIDE[name]]
        headline += [_renamed(metric, name) for metric in own]
        grids = tuple(_with_column(grid, copied, name) for grid in grids)
        protocol[name.replace("_", " ")] = _IN_WORDS[name]
    return replace(
        pipeline,
        stages=tuple(stages),
        headline=tuple(headline),
        grids=grids,
        protocol={**pipeline.protocol, **protocol},
    )


def build_box_labels(context: StageContext) -> Callable[[str], Arrays]:
    """Map function (config BoxConfig): "label" uint8 (H, W) of boxes as large as the picture.

    Boxes of several classes would cover each other whole: the picture is cut into upright bands of the same width,
    one for each class, in the order of the class ids. There is no background.
    """

    def boxes(name: str) -> Arrays:
        height, width = context.data.image_size(name)
        present = np.array(context.data.present_classes(name), dtype=np.uint8)
        line = present[np.arange(width) * len(present) // width] if len(present) else np.zeros(width, dtype=np.uint8)
        return {LABEL: np.broadcast_to(line, (height, width)).copy()}

    return boxes


def given_label(context: StageContext, name: str) -> np.ndarray | None:
    """The label map uint8 (H, W) that a reference trains on; None in a training of the method itself."""
    if LABEL in context.inputs:
        return context.arrays(LABEL, name)[LABEL]
    return context.data.mask(name) if "masks" in context.data.reads else None


def is_of_reference(name: str, *references: str) -> bool:
    """Whether a stage, or what a number scores, belongs to one of the references; to any of them if none is given."""
    return any(name == each or name.startswith(f"{each}_") for each in references or REFERENCE_TITLES)


def beside(metric: str, reference: str) -> str:
    """Name of the method's number that a reference's number stands beside: "cam/miou_train"."""
    return STANDS_BESIDE[reference] + metric.removeprefix(reference)


def _behind_training(pipeline: Pipeline) -> list[Stage]:
    behind = pipeline.downstream(_TRAINING)
    return [stage for stage in pipeline if stage.name in behind]


def _as_reference(stage: Stage, copied: Sequence[Stage], reference: str) -> Stage:
    """A copy of one of the `copied` stages, under the reference's name and on its inputs."""
    names = {each.name for each in copied}
    changes: dict[str, Any] = {
        "name": _renamed(stage.name, reference),
        "inputs": {
            role: _renamed(upstream, reference) if upstream in names else upstream
            for role, upstream in stage.inputs.items()
        },
    }
    if stage.name == _TRAINING:
        changes |= _on_other_labels(stage, reference)
    if isinstance(stage, ReduceStage):
        changes["metrics"] = tuple(_renamed(metric, reference) for metric in stage.metrics)
    if getattr(stage.config, "prefix", None) == STANDS_BESIDE[reference]:
        changes["config"] = replace(stage.config, prefix=reference)
    return replace(stage, **changes)


def _on_other_labels(training: Stage, reference: str) -> Mapping[str, Any]:
    assert isinstance(training, TrainStage)
    if reference == IMAGE_BOXES:
        return {"inputs": {LABEL: BOX_STAGE}}
    return {"inputs": {}, "reads": training.reads | {"masks"}, "fully_supervised": True}


def _box_stage(pipeline: Pipeline) -> MapStage:
    return MapStage(
        name=BOX_STAGE,
        version=1,
        config=BoxConfig(),
        reads=frozenset({"images", "image_labels"}),
        image_list=pipeline.stage(_TRAINING).image_list,
        build=build_box_labels,
    )


def _renamed(name: str, reference: str) -> str:
    return reference + name.removeprefix(STANDS_BESIDE[reference])


def _with_column(grid: SampleGrid, copied: Sequence[Stage], reference: str) -> SampleGrid:
    """The grid with the reference behind the last column that shows what is done again for it, if one does."""
    names = {stage.name for stage in copied}
    own = [column for column in grid.columns if column.stage in names]
    if not own:
        return grid
    column = replace(own[-1], title=REFERENCE_TITLES[reference], stage=_renamed(own[-1].stage, reference))
    place = grid.columns.index(own[-1]) + 1
    while place < len(grid.columns) and is_of_reference(grid.columns[place].stage):
        place += 1
    return replace(grid, columns=(*grid.columns[:place], column, *grid.columns[place:]))
