"""Where an artifact that the command line names lies: store, key, and the method's official layouts of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsss.commands.arguments import Selection
from wsss.commands.methods import UsageError, find_method
from wsss.data.dataset import Dataset, load_dataset
from wsss.method import Exporter, Method
from wsss.pipeline import Stage, stage_keys
from wsss.recipe import load_recipe, settings_of
from wsss.run_record import RunRecord
from wsss.store import Store, open_store
from wsss.weights import file_digest

_UNKNOWN = object()


@dataclass(frozen=True)
class Place:
    """A stage of a recipe, and the key of its artifact."""

    dataset: Dataset
    stage: Stage
    key: str


def store_at(url: str, home: Path) -> Store:
    """The store at a URL; downloads of a remote one are kept below home."""
    return open_store(url, home / "cache" / "store")


def place_of(selection: Selection, stage: str, home: Path) -> Place:
    """Stage and key in the pipeline of a recipe.

    Raises:
        PipelineError: the pipeline has no such stage.
        DataError: the data set that the recipe names cannot be opened.
    """
    dataset = load_dataset(selection.recipe.dataset, home)
    pipeline = selection.method.pipeline(selection.recipe, dataset)
    found = pipeline.stage(stage)
    return Place(dataset, found, stage_keys(pipeline, dataset, file_digest)[stage])


def selection_of(record: RunRecord) -> Selection:
    """Method and recipe of a run, from its record.

    Raises:
        UsageError, RecipeError: the method, or a key of its recipe, is no longer there.
    """
    method = find_method(record.method)
    overrides = []
    for key in settings_of(method.recipe_type):
        value: Any = record.recipe
        for part in key.split("."):
            value = value.get(part, _UNKNOWN) if isinstance(value, dict) else _UNKNOWN
        if value is not _UNKNOWN:  # else the run is older than the key, whose default is how things were
            overrides.append(f"{key}={json.dumps(value)}")
    return Selection(method, record.recipe_name, load_recipe(method.recipe_type, None, overrides))


def exporter_of(method: Method, stage_or_layout: str) -> Exporter:
    """The layout of that name, else the only layout of the stage of that name.

    Raises:
        UsageError: there is none, or the stage has several.
    """
    if stage_or_layout in method.exporters:
        return method.exporters[stage_or_layout]
    names = [name for name, exporter in method.exporters.items() if exporter.stage == stage_or_layout]
    if len(names) == 1:
        return method.exporters[names[0]]
    known = ", ".join(f"{name} (stage {exporter.stage})" for name, exporter in method.exporters.items())
    problem = "no official layout" if not names else f"several official layouts ({', '.join(names)})"
    raise UsageError(f"{method.name!r} has {problem} for {stage_or_layout!r}", "STAGE", f"layouts: {known or 'none'}")
