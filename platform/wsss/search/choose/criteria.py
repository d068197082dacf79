"""What a trial is worth without masks: a criterion from maps or labels and the pictures, at a few thresholds.

How well a criterion ranks trials must be measured where masks exist; see `wsss.evaluation.label_free`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np

from wsss.data.view import DataView
from wsss.evaluation.label_free import boundary_contrast, confidence_margin
from wsss.pipeline import Arrays, Stage
from wsss.search.records import CriterionPoint
from wsss.stages.score import CurveScoreConfig, LabelScoreConfig, maps_at_size

Criterion = Literal["boundary_contrast", "confidence_margin"]
CRITERIA: tuple[Criterion, ...] = ("boundary_contrast", "confidence_margin")
_IMAGES = 100
_THRESHOLDS = 10
_INPUTS = {CurveScoreConfig: "scores", LabelScoreConfig: "labels"}

Array = np.ndarray[Any, np.dtype[Any]]


class ImageArrays(Protocol):
    """The part of an artifact that a criterion reads."""

    def arrays(self, image: str) -> Arrays:
        """Those of an image."""
        ...


def criterion_problem(criterion: Criterion, scorer: Stage | None) -> str:
    """Why the criterion cannot be computed for what a scorer reads; empty when it can."""
    kind = None if scorer is None else type(scorer.config)
    if kind not in _INPUTS:
        return "its scorer reads neither class maps nor labels of the platform's own form"
    if kind is LabelScoreConfig and criterion == "confidence_margin":
        return "labels have no second best score"
    return ""


def criterion_curve(
    criterion: Criterion,
    scorer: Stage,
    artifact: ImageArrays,
    view: DataView,
    limits: tuple[float, float] | None,
    default: float | None,
) -> tuple[CriterionPoint, ...]:
    """Mean of the criterion over images at a few thresholds, higher for better.

    Args:
        scorer: stage that scores the artifact against masks; its config says how arrays are read.
        artifact: class maps or labels.
        view: pictures of the images; at most 100 of them are looked at, evenly spread over the list.
        limits: range of the thresholds that may be chosen; None: the default alone.
        default: the recipe's own threshold; None for labels, which have none.
    """
    names = [view.names[place] for place in np.unique(np.linspace(0, len(view.names) - 1, _IMAGES).astype(int))]
    config = scorer.config
    if isinstance(config, LabelScoreConfig):
        values = [boundary_contrast(artifact.arrays(name)[config.labels], view.image(name)) for name in names]
        return (CriterionPoint(None, _mean(values)),)
    assert isinstance(config, CurveScoreConfig)
    thresholds = _thinned(config.thresholds, limits, default)
    table = np.array([_of_maps(criterion, config, artifact, view, name, thresholds) for name in names])
    return tuple(
        CriterionPoint(threshold, _mean(column)) for threshold, column in zip(thresholds, table.T, strict=True)
    )


def criterion_input(scorer: Stage) -> str:
    """Name of the stage whose maps or labels a scorer reads."""
    return scorer.inputs[_INPUTS[type(scorer.config)]]


def _of_maps(
    criterion: Criterion,
    config: CurveScoreConfig,
    artifact: ImageArrays,
    view: DataView,
    name: str,
    thresholds: Sequence[float],
) -> list[float]:
    arrays, image = artifact.arrays(name), view.image(name)
    maps = maps_at_size(arrays[config.maps], image.shape[0], image.shape[1], config.upsample)
    if not len(maps):
        return [float("nan")] * len(thresholds)
    if config.normalize == "image_maximum" and maps.max() > 0:
        maps = maps / maps.max()
    if criterion == "confidence_margin":
        background = np.empty_like(maps[:1])
        found = []
        for threshold in thresholds:
            background[:] = threshold
            found.append(confidence_margin(np.concatenate([background, maps])))
        return found
    best, key = maps.max(axis=0), arrays[config.keys][maps.argmax(axis=0)]
    return [boundary_contrast(np.where(best > threshold, key, 0), image) for threshold in thresholds]


def _thinned(scored: Sequence[float], limits: tuple[float, float] | None, default: float | None) -> list[float]:
    allowed = [t for t in scored if limits is not None and limits[0] - 1e-9 <= t <= limits[1] + 1e-9]
    places = np.unique(np.linspace(0, len(allowed) - 1, _THRESHOLDS).round().astype(int)) if allowed else []
    return sorted({*(allowed[place] for place in places), *([] if default is None else [default])})


def _mean(values: Sequence[float] | Array) -> float:
    """Of the images that have a value; NaN when none has."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")
