"""`wsss ls METHOD [PART]`: a method on one screen, and each of its parts: a stage, a section of the recipe, a key."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from wsss.commands.arguments import Selection, select
from wsss.commands.methods import UsageError, recipe_names
from wsss.commands.screen import console, print_table
from wsss.errors import nearest
from wsss.formatting import count
from wsss.method import Method
from wsss.pipeline import Pipeline, Stage, TrainStage
from wsss.recipe import SettingInfo, flat_dict, key_values, settings_of

EVERYTHING = "all"
_INDENT = "    "


def list_method(name: str, part: str | None, recipe: str, home: Path) -> None:
    """Print the method's stages and sections; or the part of that name, or every part.

    Raises:
        UsageError: the method has no such part.
    """
    from wsss.data.dataset import load_dataset

    selection = select(name, recipe, ())
    pipeline = selection.method.pipeline(selection.recipe, load_dataset(selection.recipe.dataset, home))
    keys = settings_of(selection.method.recipe_type)
    if part is None:
        _print_overview(selection, pipeline)
        return
    stages = [stage for stage in pipeline if part in (EVERYTHING, stage.name)]
    infos = [info for key, info in keys.items() if part in (EVERYTHING, key) or key.startswith(f"{part}.")]
    if not stages and not infos:
        known = [EVERYTHING, *(stage.name for stage in pipeline), *_sections(keys), *keys]
        raise UsageError(
            f"{name} has no stage, section or key {part!r}{nearest(part, known)}",
            f"wsss ls {name}",
            f"`wsss ls {name}` lists stages and sections, `wsss ls {name} {EVERYTHING}` every key",
        )
    for stage in stages:
        _print_stage(selection.method, stage)
    values = flat_dict(selection.recipe)
    if infos:
        print(f"{count(len(infos), 'recipe key')}, values of recipe {selection.recipe_name}")
    for info in infos:
        _print_key(info, values[info.key])


def _print_overview(selection: Selection, pipeline: Pipeline) -> None:
    method = selection.method
    for line in (f"{method.name}: {method.title}", method.citation, f"recipes: {', '.join(recipe_names(method))}"):
        _print_wrapped(line)
    print()
    rows = [(stage.name, stage.kind, stage.image_list or "", ", ".join(stage.inputs.values())) for stage in pipeline]
    columns = ("stage", "kind", "images", "from stages")
    print_table(f"{count(len(rows), 'stage')} of recipe {selection.recipe_name}", columns, rows)
    print()
    keys = settings_of(method.recipe_type)
    sections = _sections(keys)
    room = console().width - max(len(name) for name in sections) - len("  keys  ")
    shown = [
        (name, len(inner), textwrap.shorten(", ".join(inner), max(room, 20), placeholder=" ..."))
        for name, inner in sections.items()
    ]
    print_table(f"{count(len(keys), 'recipe key')}", ("section", "keys", ""), shown, right="keys")
    _print_wrapped(
        f"\nwsss ls {method.name} PART tells more of a stage, a section or a key, "
        f"wsss ls {method.name} {EVERYTHING} of each."
    )


def _sections(keys: Iterable[str]) -> dict[str, list[str]]:
    """Section -> its keys without it; a key of no section stands for itself."""
    found: dict[str, list[str]] = {}
    for key in keys:
        section, _, rest = key.partition(".")
        found.setdefault(section, []).append(rest or section)
    return found


def _print_stage(method: Method, stage: Stage) -> None:
    runs = f"{stage.kind} stage" + (f" over {stage.image_list}" if stage.image_list else "")
    masks = " (a fully supervised reference)" if isinstance(stage, TrainStage) and stage.fully_supervised else ""
    facts = {
        "is": f"{runs}, version {stage.version}" + (", takes a GPU" if stage.uses_gpu else ""),
        "from stages": ", ".join(stage.inputs.values()),
        "reads": ", ".join(sorted(stage.reads)) + masks,
        "chooses": "by looking at masks" if stage.chooses_by_masks else "",
        "files": ", ".join(f"{role} {path}" for role, path in stage.files.items()),
        "official layouts": "; ".join(_layouts(method, stage)),
        "settings": ", ".join(f"{name} {_shown(value)}" for name, value in _leaves(key_values(stage.config))),
    }
    print(f"stage {stage.name}")
    for name, text in facts.items():
        if text:
            _print_wrapped(f"{name}: {text}", _INDENT)


def _print_key(info: SettingInfo, value: Any) -> None:
    default = list(info.default) if isinstance(info.default, tuple) else info.default
    by_default = "" if value == default else f"; by default {_shown(default)}"
    print(f"{info.key} = {_shown(value)}")
    _print_wrapped(f"{info.help}{'' if info.in_key else ' (not part of stage keys)'}", _INDENT)
    _print_wrapped(f"{info.describe()}{by_default}", _INDENT)


def _layouts(method: Method, stage: Stage) -> Sequence[str]:
    found = []
    for name, exporter in method.exporters.items():
        if exporter.stage == stage.name:
            ways = ["export", *(["import"] if exporter.read else [])]
            ways += ["--from-checkpoint"] if method.released is not None and method.released.layout == name else []
            found.append(f"{exporter.description} ({', '.join(ways)})")
    return found


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names of nested values."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _shown(value: object) -> str:
    """A value as YAML has it, in one line."""
    return "none" if value is None else value if isinstance(value, str) and value else json.dumps(value, default=str)


def _print_wrapped(text: str, indent: str = "") -> None:
    inner = indent + "  " if indent else ""
    for line in text.split("\n"):
        print(textwrap.fill(line, max(console().width, 20), initial_indent=indent, subsequent_indent=inner))
