"""How the recipe of a run differs from the shipped one whose name it has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wsss.method import Method
from wsss.recipe import flat_dict, load_recipe, settings_of
from wsss.run_record import RunRecord
from wsss.stages.references import REFERENCES_SECTION
from wsss.tracking.names import run_name


def changed_settings(method: Method, recipe: Any, recipe_name: str) -> tuple[str, ...]:
    """Dotted keys that determine results and differ from the shipped recipe of that name; none if there is no such."""
    path = method.recipe_path(recipe_name)
    if not path.is_file():
        return ()
    shipped, ours = flat_dict(load_recipe(method.recipe_type, path)), flat_dict(recipe)
    known = settings_of(method.recipe_type)
    # A switch outside of keys (may weights be random?) changes what is reproduced; paths and workers do not.
    counts = {key for key, info in known.items() if (info.in_key or info.type is bool) and key != "seed"}
    # References stand beside the method and change none of its numbers.
    return tuple(key for key in known if key in counts and not _is_reference(key) and ours[key] != shipped[key])


def name_of_run(record: RunRecord, method: Method, recipe: Any) -> str:
    """Name of a run in MLflow: method, recipe, the model or the settings that differ, its references, the seed."""
    values = flat_dict(recipe)
    released = [f"released {Path(record.checkpoint).name}"] if record.checkpoint else []
    changed = [f"{key}={json.dumps(values[key])}" for key in changed_settings(method, recipe, record.recipe_name)]
    references = [key.rpartition(".")[2] for key in values if _is_reference(key) and values[key]]
    return run_name(record.method, record.recipe_name, record.seed, (*released, *references, *changed))


def _is_reference(key: str) -> bool:
    return key.startswith(f"{REFERENCES_SECTION}.")
