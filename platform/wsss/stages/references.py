"""References that give a segmentation number its meaning: the same network, trained on other labels.

What a pipeline does from its training `segmentation_train` on is done once more for each reference, under another
name: `upper_bound_train` to `upper_bound_evaluation` with `upper_bound/miou_val`, and likewise `image_boxes`. Network,
schedule, samples, inference and CRF are those of the method; the labels alone differ. A training whose network,
schedule and start two methods share is computed once.

The training's `build` must do with what a reference hands it: label maps of an artifact in role `LABEL`, or, without
one, the masks (`reads` holds "masks" then).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from wsss.metric_name import MetricName
from wsss.pipeline import (
    Arrays,
    GridColumn,
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
UPPER_BOUND, IMAGE_BOXES = "upper_bound", "image_boxes"
BOX_STAGE = f"{IMAGE_BOXES}_label"
# What is done again: everything from this training on. Names of its stages and numbers begin with the first word.
SEGMENTATION = "segmentation"
_TRAINING = f"{SEGMENTATION}_train"
REFERENCE_TITLES = {UPPER_BOUND: "trained on masks", IMAGE_BOXES: "trained on image boxes"}
_IN_WORDS = {
    UPPER_BOUND: "the segmentation network trained on the masks of the training list: full supervision, no result of "
    "the method",
    IMAGE_BOXES: "the segmentation network trained on boxes as large as the picture, one for each of its classes",
}


@dataclass(frozen=True)
class ReferenceSettings:
    """Which references are computed beside the method; they change none of its numbers."""

    upper_bound: bool = setting(
        False, help="train the segmentation network on the masks as well, with full supervision: upper_bound/miou_val"
    )
    image_boxes: bool = setting(
        False, help="train it also on boxes of a picture's classes, each as large as the picture: image_boxes/miou_val"
    )

    @property
    def wanted(self) -> tuple[str, ...]:
        """Names of the references."""
        return tuple(name for name in (UPPER_BOUND, IMAGE_BOXES) if getattr(self, name))


@dataclass(frozen=True)
class BoxConfig:
    """Boxes have nothing to set."""


def with_references(pipeline: Pipeline, settings: ReferenceSettings) -> Pipeline:
    """The pipeline with the stages of the wanted references behind its own, their numbers in the headline, and a
    column for each in the image grids."""
    stages, headline, grids, protocol = list(pipeline.stages), [*pipeline.headline], pipeline.grids, {}
    for name in settings.wanted:
        if name == IMAGE_BOXES:
            stages.append(_box_stage(pipeline))
        stages += _stages_on(pipeline, name)
        headline += [_renamed(metric, name) for metric in pipeline.headline if _is_of_segmentation(metric)]
        grids = tuple(_with_column(pipeline, grid, name) for grid in grids)
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


def is_of_reference(stage: str, *references: str) -> bool:
    """Whether a stage belongs to one of the references, by its name; to any of them if none is given."""
    return any(stage == name or stage.startswith(f"{name}_") for name in references or REFERENCE_TITLES)


def _stages_on(pipeline: Pipeline, reference: str) -> list[Stage]:
    behind = pipeline.downstream(_TRAINING)
    stages: list[Stage] = []
    for stage in pipeline:
        if stage.name not in behind:
            continue
        changes: dict[str, Any] = {
            "name": _renamed(stage.name, reference),
            "inputs": {
                role: _renamed(upstream, reference) if upstream in behind else upstream
                for role, upstream in stage.inputs.items()
            },
        }
        if stage.name == _TRAINING:
            changes |= _on_other_labels(stage, reference)
        if isinstance(stage, ReduceStage):
            changes["metrics"] = tuple(_renamed(metric, reference) for metric in stage.metrics)
        if getattr(stage.config, "prefix", None) == SEGMENTATION:
            changes["config"] = replace(stage.config, prefix=reference)
        stages.append(replace(stage, **changes))
    return stages


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
    return reference + name.removeprefix(SEGMENTATION)


def _is_of_segmentation(metric: str) -> bool:
    return MetricName.parse(metric).scored == SEGMENTATION


def _with_column(pipeline: Pipeline, grid: SampleGrid, reference: str) -> SampleGrid:
    """The grid with the reference beside what the last training of the method predicts, where it shows that."""
    behind = pipeline.downstream(_TRAINING)
    own: Sequence[GridColumn] = [column for column in grid.columns if column.stage in behind]
    if not own:
        return grid
    column = replace(own[-1], title=REFERENCE_TITLES[reference], stage=_renamed(own[-1].stage, reference))
    return replace(grid, columns=(*grid.columns, column))
