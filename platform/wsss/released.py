"""Starting a method from its released model: the checkpoint stands for the stage that would train it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsss.data.dataset import Dataset
from wsss.errors import WsssError
from wsss.method import Exporter, Method, ReleasedCheckpoint
from wsss.pipeline import ImportStage, Pipeline


class ReleasedModelError(WsssError):
    """A run cannot start from a released model."""


@dataclass(frozen=True)
class ImportConfig:
    """Which official layout the file is in."""

    layout: str


def pipeline_of(method: Method, recipe: Any, dataset: Dataset, checkpoint: Path | None = None) -> Pipeline:
    """The method's pipeline; with a checkpoint only what is downstream of the stage that it stands for.

    The checkpoint's content, and nothing upstream of it, determines the keys downstream; a training
    of our own under the same recipe keeps its own keys.

    Raises:
        ReleasedModelError: the method names no layout of a released model.
    """
    if checkpoint is None:
        return method.pipeline(recipe, dataset)
    released, exporter = released_layout(method)
    assert exporter.read is not None
    pipeline = (released.pipeline or method.pipeline)(recipe, dataset)
    return pipeline.starting_with(
        ImportStage(
            name=exporter.stage,
            version=1,
            config=ImportConfig(released.layout),
            files={"checkpoint": checkpoint},
            read=exporter.read,
            description=exporter.description,
        )
    )


def released_layout(method: Method) -> tuple[ReleasedCheckpoint, Exporter]:
    """What the method says of its released model, and the layout that reads it.

    Raises:
        ReleasedModelError: it says nothing, or names a layout that cannot be read.
    """
    released = method.released
    exporter = method.exporters.get(released.layout) if released is not None else None
    if released is None or exporter is None or exporter.read is None:
        raise ReleasedModelError(
            f"method {method.name!r} does not say how a released model of it is read",
            "--from-checkpoint",
            f"take it in with `wsss import {method.name} STAGE FILE`; `wsss ls {method.name} all` lists the layouts",
        )
    return released, exporter


def check_checkpoint(method: Method, recipe: Any, dataset: Dataset, checkpoint: Path) -> None:
    """Whether the file is there and fits the networks of the recipe: asked before anything runs.

    Raises:
        ReleasedModelError: there is no such file, or the method has no released model.
        WsssError: the file is not in the layout, or its weights do not fit (every difference named).
    """
    released, _ = released_layout(method)
    if not checkpoint.is_file():
        raise ReleasedModelError("the checkpoint does not exist", str(checkpoint), "check the path")
    released.check(checkpoint, recipe, dataset)
