"""Search spaces: which recipe keys a sweep may vary, and how. YAML, checked against the typed recipe.

    method: NAME
    keys:
      random_walk.beta: {int: [4, 24]}
      cam.learning_rate: {float: [0.01, 0.2], log: true}
      cam.crop_size: {int: [320, 512], step: 16}
      cam.momentum: {categorical: [1.0e-4, 0.9]}
      crf.bi_w: {float: [2, 10], when: {crf.enabled: [true]}}

A key with `when` is varied only while every key named there has one of the given values. What stage a key
belongs to is not written here: it follows from the pipeline (`wsss.search.space.levels`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from wsss.errors import WsssError, nearest
from wsss.formatting import count
from wsss.recipe import SettingInfo, checked_value, flat_dict, nearest_key, settings_of
from wsss.search.records import SearchedKey
from wsss.text_file import shortened
from wsss.yaml_text import YamlProblem, read_yaml

_SHOWN = 20
_MOST_STEPS = 1_000_000
_ENTRIES = ("method", "keys")
KINDS = ("float", "int", "categorical")
OPTIONS = {"float": {"log", "step", "when"}, "int": {"log", "step", "when"}, "categorical": {"when"}}
# Not settings of a method: which data and which seed are compared is not searched.
NOT_SEARCHED = ("seed", "dataset.", "execution.", "weights.", "references.")


class SpaceError(WsssError):
    """One or more entries of a search space do not fit the recipe."""

    def __init__(self, problems: Sequence[str], where: str) -> None:
        self.problems = tuple(problems)
        head = f"{count(len(problems), 'problem')} in the search space:"
        more = [f"  ... and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        super().__init__(
            "\n".join([head, *(f"  - {problem}" for problem in problems[:_SHOWN]), *more]),
            where,
            "correct the entries above; `wsss ls METHOD all` lists every key with its range",
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return (SpaceError, (self.problems, self.where))


@dataclass(frozen=True)
class SearchSpace:
    """A validated space. `keys` hold no stage and no level yet."""

    name: str
    method: str
    keys: tuple[SearchedKey, ...]


def space_method(path: Path) -> str:
    """The method that a space file names; SpaceError when it cannot be read or names none."""
    return _method_of(_read(path), path)


def load_space(path: Path, recipe: Any) -> SearchSpace:
    """Read a space and hold it against a recipe, whose values are the defaults.

    Raises:
        SpaceError: naming every unknown key (with the nearest valid one), every value outside the key's own range,
            every distribution that does not fit the key's type.
    """
    content = _read(path)
    method = _method_of(content, path)
    problems = [
        f"unknown entry {shortened(str(name))!r}{nearest(str(name), _ENTRIES)}; a space holds {' and '.join(_ENTRIES)}"
        for name in content
        if name not in _ENTRIES
    ]
    entries = content.get("keys")
    if not isinstance(entries, dict) or not entries:
        raise SpaceError([*problems, "keys: must map recipe keys to distributions"], str(path))
    known, values = settings_of(type(recipe)), flat_dict(recipe)
    keys: list[SearchedKey] = []
    for key, entry in entries.items():
        info = known.get(str(key))
        if info is None:
            problems.append(f"unknown key {shortened(str(key))!r}{nearest_key(str(key), known)}")
            continue
        if not info.in_key or str(key).startswith(NOT_SEARCHED):
            problems.append(f"{key}: is not searched, because it does not belong to the method's settings")
            continue
        found = _searched_key(str(key), entry, info, known, problems)
        if found is not None:
            keys.append(replace(found, default=values[str(key)]))
    problems += _circles(keys)
    if problems:
        raise SpaceError(problems, str(path))
    return SearchSpace(path.stem, method, tuple(_conditions_first(keys)))


def is_active(key: SearchedKey, values: Mapping[str, Any]) -> bool:
    """Whether the key is varied beside these values (recipe values included)."""
    return all(values.get(name) in allowed for name, allowed in key.conditions.items())


def contains(key: SearchedKey, value: Any) -> bool:
    """Whether a value lies in the key's range."""
    if key.kind == "categorical":
        return value in key.choices
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not key.low <= value <= key.high:
        return False
    steps = (value - key.low) / key.step if key.step else 0.0
    return abs(steps - round(steps)) < 1e-9


def number_of_values(keys: Sequence[SearchedKey]) -> int | None:
    """How many combinations of values the keys have, conditions aside; None when there is no end to them."""
    product = 1
    for key in keys:
        if key.kind == "categorical":
            product *= len(key.choices)
        elif key.step:
            product *= 1 + math.floor((key.high - key.low) / key.step + 1e-9)
        else:
            return None
    return product


def values_of(key: SearchedKey) -> list[Any]:
    """All values of a key with a finite number of them."""
    if key.kind == "categorical":
        return list(key.choices)
    count = number_of_values([key])
    assert count is not None, key.key
    values = [key.low + index * key.step for index in range(count)]
    return [round(value) for value in values] if key.kind == "int" else [round(value, 12) for value in values]


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_yaml(path)
    except FileNotFoundError as error:
        raise SpaceError(["the file does not exist"], str(path)) from error
    except YamlProblem as error:
        raise SpaceError([str(error)], str(path)) from error
    if not isinstance(content, dict):
        raise SpaceError(["the file must hold method and keys"], str(path))
    return content


def _method_of(content: Mapping[str, Any], path: Path) -> str:
    method = content.get("method")
    if not isinstance(method, str):
        raise SpaceError(["method: the name of the method whose keys these are is missing"], str(path))
    return method


def _searched_key(
    key: str, entry: Any, info: SettingInfo, known: Mapping[str, SettingInfo], problems: list[str]
) -> SearchedKey | None:
    before = len(problems)
    kinds = [kind for kind in KINDS if isinstance(entry, dict) and kind in entry]
    if len(kinds) != 1:
        typo = (
            next((hint for name in entry if (hint := nearest(str(name), KINDS))), "") if isinstance(entry, dict) else ""
        )
        problems.append(f"{key}: needs exactly one of {', '.join(KINDS)}, e.g. {{float: [0.1, 0.5]}}{typo}")
        return None
    kind = kinds[0]
    for option in set(entry) - {kind} - OPTIONS[kind]:
        hint = nearest(str(option), OPTIONS[kind])
        problems.append(f"{key}: unknown option {option!r}{hint}; a {kind} takes {', '.join(sorted(OPTIONS[kind]))}")
    conditions = _conditions(key, entry.get("when"), known, problems)
    values = entry[kind]
    if kind == "categorical":
        choices = _choices(key, values, info, problems)
        found = SearchedKey(key, "categorical", choices=choices, conditions=conditions)
    else:
        found = _number(key, kind, values, entry, info, problems)
        found = None if found is None else replace(found, conditions=conditions)
    return found if len(problems) == before else None


def _number(
    key: str, kind: str, bounds: Any, entry: Mapping[str, Any], info: SettingInfo, problems: list[str]
) -> SearchedKey | None:
    if info.choices is not None or info.type not in (int, float):
        problems.append(f"{key}: is {info.describe()}; write {{categorical: [...]}}")
        return None
    if kind == "float" and info.type is int:
        problems.append(f"{key}: is an integer; write {{int: [low, high]}}")
        return None
    if not isinstance(bounds, list) or len(bounds) != 2:
        problems.append(f"{key}: {kind} takes [low, high]")
        return None
    checked: list[float] = []
    for bound in bounds:
        try:
            checked.append(checked_value(bound, info))
        except ValueError as error:
            problems.append(f"{key}: {shortened(repr(bound))} {error}")
    log, step = entry.get("log", False), entry.get("step", 1 if kind == "int" else 0)
    if len(checked) < 2:
        return None
    low, high = checked
    if low >= high:
        problems.append(f"{key}: {low:g} is not below {high:g}")
    if not isinstance(log, bool) or not _is_step(step):
        problems.append(f"{key}: log is true or false, step a number above 0")
        return None
    if kind == "int" and (step != int(step) or step < 1):
        problems.append(f"{key}: step = {step} is not a whole number above 0")
    if step and (high - low) / step > _MOST_STEPS:
        problems.append(f"{key}: step = {step} makes more than {_MOST_STEPS} values; leave it out, or make it larger")
    if log and (low <= 0 or "step" in entry):
        problems.append(f"{key}: log needs a range above 0 and no step")
    if info.multiple_of is not None and (step % info.multiple_of or log):
        problems.append(f"{key}: is {info.describe()}; write step: {info.multiple_of}")
    if log:
        step = 0
    return SearchedKey(key, cast(Any, kind), low=low, high=high, log=log, step=float(step))


def _is_step(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _choices(key: str, values: Any, info: SettingInfo, problems: list[str]) -> tuple[Any, ...]:
    if not isinstance(values, list) or len(values) < 2:
        problems.append(f"{key}: categorical takes a list of at least two values")
        return ()
    choices: list[Any] = []
    for value in values:
        try:
            checked = checked_value(value, info)
        except ValueError as error:
            problems.append(f"{key}: {shortened(repr(value))} {error}")
            continue
        plain = list(checked) if isinstance(checked, tuple) else str(checked) if isinstance(checked, Path) else checked
        if plain in choices:
            problems.append(f"{key}: {value!r} stands there twice")
        choices.append(plain)
    return tuple(choices)


def _conditions(key: str, when: Any, known: Mapping[str, SettingInfo], problems: list[str]) -> dict[str, list[Any]]:
    if when is None:
        return {}
    if not isinstance(when, dict):
        problems.append(f"{key}: when maps other keys to lists of their values")
        return {}
    conditions: dict[str, list[Any]] = {}
    for other, allowed in when.items():
        info = known.get(str(other))
        if info is None:
            problems.append(f"{key}: when names the unknown key {other!r}{nearest_key(str(other), known)}")
        elif not isinstance(allowed, list) or not allowed:
            problems.append(f"{key}: when {other} needs a list of values")
        else:
            conditions[str(other)] = []
            for value in allowed:
                try:
                    checked = checked_value(value, info)
                except ValueError as error:
                    problems.append(f"{key}: when {other} = {value!r}: {error}")
                    continue
                conditions[str(other)].append(list(checked) if isinstance(checked, tuple) else checked)
    return conditions


def _circles(keys: Sequence[SearchedKey]) -> list[str]:
    by_name = {key.key: key for key in keys}
    problems = []
    for key in keys:
        seen, waiting = set(), [*key.conditions]
        while waiting:
            name = waiting.pop()
            if name == key.key:
                problems.append(f"{key.key}: depends on itself through `when`")
                break
            if name in by_name and name not in seen:
                seen.add(name)
                waiting += by_name[name].conditions
    return problems


def _conditions_first(keys: Sequence[SearchedKey]) -> list[SearchedKey]:
    """The keys in an order in which every condition is decided before it is asked for."""
    names, ordered = {key.key for key in keys}, []
    waiting = list(keys)
    while waiting:
        placed = {key.key for key in ordered}
        ready = [key for key in waiting if all(name in placed or name not in names for name in key.conditions)]
        ordered += ready
        waiting = [key for key in waiting if key not in ready]
    return ordered
