"""Typed recipes: frozen dataclasses whose leaves carry their range, loaded from YAML and dotted overrides.

A leaf is declared with :func:`setting`; a section is a field whose type is another such dataclass.
Every problem of a file and of the overrides is found before anything is raised.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypedDict, TypeVar, Unpack

from wsss.errors import WsssError, nearest
from wsss.formatting import count
from wsss.text_file import path_problem, shortened
from wsss.yaml_text import YamlProblem, parse_yaml, read_yaml

RecipeType = TypeVar("RecipeType")
_SHOWN = 20


class Address(str):
    """A place that is no path of this machine: `s3://bucket/prefix`."""

    __slots__ = ()


class RecipeError(WsssError):
    """One or more recipe keys are unknown, of the wrong type or out of range."""

    def __init__(self, problems: Sequence[str], where: str = "") -> None:
        self.problems = tuple(problems)
        head = f"{count(len(problems), 'problem')} in the recipe:"
        more = [f"  ... and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        super().__init__(
            "\n".join([head, *(f"  - {problem}" for problem in problems[:_SHOWN]), *more]),
            where,
            "correct the keys above; `wsss ls METHOD all` lists every key with its range",
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return (RecipeError, (self.problems, self.where))


@dataclass(frozen=True)
class SettingInfo:
    """Range and meaning of one leaf; bounds are inclusive unless named `above` / `below`."""

    key: str
    type: Any
    default: Any
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[Any, ...] | None = None
    multiple_of: int | None = None
    length: int | None = None
    in_key: bool = True
    key_at_default: bool = True
    help: str = ""

    def describe(self) -> str:
        """The type and range in words, e.g. ``float in [0, 1]``."""
        if self.choices is not None:
            return "one of " + ", ".join(repr(choice) for choice in self.choices)
        text = _type_name(self.type)
        low = _bound("[", self.minimum) or _bound("(", self.above)
        high = _bound("", self.maximum, "]") or _bound("", self.below, ")")
        if low or high:
            text += f" in {low or '(-inf'}, {high or 'inf)'}"
        if self.multiple_of is not None:
            text += f", a multiple of {self.multiple_of}"
        if self.length is not None:
            text += f", {self.length} values"
        return text


def _bound(before: str, value: float | None, after: str = "") -> str:
    return "" if value is None else f"{before}{value:.10g}{after}"


class SettingRange(TypedDict, total=False):
    """What `setting` takes beside the default, by the names of `SettingInfo`."""

    minimum: float | None
    maximum: float | None
    above: float | None
    below: float | None
    choices: tuple[Any, ...] | None
    multiple_of: int | None
    length: int | None
    in_key: bool
    key_at_default: bool
    help: str


def setting(default: Any, **metadata: Unpack[SettingRange]) -> Any:
    """Declare a leaf of a recipe.

    Bounds apply to a number, or to every element of a tuple. `in_key=False` marks what does not
    determine a result (paths, workers): it is left out of stage keys. `key_at_default=False` is for a setting that came
    later and whose default is what was before: at its default it is left out too, so that no store loses its results.
    """
    return dataclasses.field(default=default, metadata={"wsss": metadata})


def settings_of(recipe_type: type) -> Mapping[str, SettingInfo]:
    """Every leaf of a recipe type by dotted key, in order of declaration."""
    return _settings_below(recipe_type, "")


@lru_cache(maxsize=128)
def _settings_below(recipe_type: type, prefix: str) -> Mapping[str, SettingInfo]:
    found: dict[str, SettingInfo] = {}
    hints = _types_of(recipe_type)
    for field in dataclasses.fields(recipe_type):
        key = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(hints[field.name]):
            found.update(_settings_below(typing.cast(type, hints[field.name]), f"{key}."))
            continue
        if "wsss" not in field.metadata:
            raise TypeError(f"{recipe_type.__name__}.{field.name} is not declared with setting()")
        found[key] = SettingInfo(key=key, type=hints[field.name], default=field.default, **field.metadata["wsss"])
    return MappingProxyType(found)


@lru_cache(maxsize=128)
def _types_of(recipe_type: type) -> Mapping[str, Any]:
    # A sweep builds recipes by the thousand, and Python evaluates the annotations anew each time.
    return MappingProxyType(typing.get_type_hints(recipe_type))


def load_recipe(recipe_type: type[RecipeType], path: Path | None = None, overrides: Sequence[str] = ()) -> RecipeType:
    """Read a recipe: the defaults of the type, then the YAML file, then `key=value` overrides.

    Raises:
        RecipeError: naming every unknown key (with the nearest valid one), every value of the wrong
            type or out of range, and the file or override it came from.
    """
    known = settings_of(recipe_type)
    problems: list[str] = []
    values: dict[str, tuple[Any, str]] = {}
    if path is not None:
        for key, value in _flatten(_read_file(path), known, problems):
            if key in values:
                problems.append(f"{shortened(key)!r} stands twice in {path.name}, dotted and in its section; keep one")
            values[key] = (value, f" in {path.name}")
    for override in overrides:
        key, separator, text = override.partition("=")
        key, shown = key.strip(), f"override {shortened(override)!r}"
        if not separator:
            problems.append(f"{shown} is not of the form key=value")
            continue
        if re.search(r"\s#", text) and not text.lstrip().startswith(("'", '"')):
            problems.append(f"{shown}: YAML takes all after # for a comment; put the value into quotes, key='\"...\"'")
        try:
            values[key] = (parse_yaml(text), f" in {shown}")
        except YamlProblem as error:
            problems.append(f"{shown}: {shortened(text)!r} is {error}")
    accepted = _accepted(values, known, problems)
    if not problems:
        try:
            return _build(recipe_type, accepted)
        except RecipeError as error:
            problems.extend(error.problems)
    in_overrides = all(problem.startswith("override ") or " in override " in problem for problem in problems)
    raise RecipeError(problems, "command line" if in_overrides or path is None else str(path))


def change_recipe(recipe: RecipeType, values: Mapping[str, Any]) -> RecipeType:
    """The recipe with other values by dotted key, checked as `load_recipe` checks them.

    Raises:
        RecipeError: naming every unknown key, wrong value and broken relation between keys.
    """
    known = settings_of(type(recipe))
    problems: list[str] = []
    changed = _accepted({key: (value, "") for key, value in values.items()}, known, problems)
    if problems:
        raise RecipeError(problems)
    return _build(type(recipe), {key: _lookup(recipe, key) for key in known} | changed)


def _accepted(
    values: Mapping[str, tuple[Any, str]], known: Mapping[str, SettingInfo], problems: list[str]
) -> dict[str, Any]:
    """The right ones of values by key, each with the words that tell its origin; the others join the problems."""
    accepted: dict[str, Any] = {}
    for key, (value, origin) in values.items():
        if key not in known:
            first = next((name for name in known if name.startswith(f"{key}.")), "")
            hint = f": it is a section; write the keys below it, such as {first}" if first else nearest_key(key, known)
            problems.append(f"unknown key {shortened(key)!r}{origin}{hint}")
            continue
        try:
            accepted[key] = checked_value(value, known[key])
        except ValueError as error:
            problems.append(f"{key} = {shortened(repr(value))}{origin}: {error}")
    return accepted


def to_dict(recipe: Any) -> dict[str, Any]:
    """Nested plain values of a recipe (tuples become lists), ready for YAML or JSON."""
    return {field.name: _plain(getattr(recipe, field.name)) for field in dataclasses.fields(recipe)}


def flat_dict(recipe: Any) -> dict[str, Any]:
    """Plain values by dotted key."""
    return {key: _plain(_lookup(recipe, key)) for key in settings_of(type(recipe))}


def key_values(config: Any) -> dict[str, Any]:
    """Plain values of the fields that determine results; see `setting` for those that are left out."""
    result: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            result[field.name] = key_values(value)
            continue
        declared = field.metadata.get("wsss", {})
        if declared.get("in_key", True) and (declared.get("key_at_default", True) or value != field.default):
            result[field.name] = _plain(value)
    return result


def _read_file(path: Path) -> Mapping[Any, Any]:
    try:
        content = read_yaml(path)
    except FileNotFoundError as error:
        raise RecipeError(["the recipe file does not exist"], str(path)) from error
    except YamlProblem as error:
        raise RecipeError([str(error)], str(path)) from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise RecipeError(["the file must hold a mapping of keys to values"], str(path))
    return content


def _flatten(
    content: Mapping[Any, Any], known: Mapping[str, SettingInfo], problems: list[str], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        key = f"{prefix}{name}"
        if not isinstance(name, str):
            problems.append(f"key {shortened(key)!r} is read as {type(name).__name__}; a key is a text: quote it")
        elif isinstance(value, dict) and key not in known:
            yield from _flatten(value, known, problems, f"{key}.")
        # A section without keys is what remains when all of them are commented out.
        elif value is not None or not any(known_key.startswith(f"{key}.") for known_key in known):
            yield key, value


def nearest_key(key: str, known: Mapping[str, SettingInfo]) -> str:
    """`; did you mean 'cam.learning_rate'?`, or nothing when no key resembles it."""
    if len(key) > 200:  # no typo; and the comparison would take long
        return ""
    candidates = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if not candidates:
        leaf = key.rsplit(".", 1)[-1]
        candidates = [name for name in known if name.rsplit(".", 1)[-1] == leaf][:1]
    return f"; did you mean {candidates[0]!r}?" if candidates else ""


def checked_value(value: Any, info: SettingInfo) -> Any:
    """A value in the setting's own type; ValueError, in words, when it is of the wrong type or out of range."""
    result = _coerce_type(value, info.type)
    if result is None:
        return None
    elements = result if isinstance(result, tuple) else (result,)
    if info.length is not None and len(elements) != info.length:
        raise ValueError(f"must be {info.describe()}, not {len(elements)} values")
    for element in elements:
        if info.choices is not None:
            if element not in info.choices:
                hint = nearest(str(element), map(str, info.choices))
                raise ValueError(f"must be {info.describe()}{hint}")
            continue
        if isinstance(element, bool) or not isinstance(element, (int, float)):
            continue
        out_of_range = (
            (isinstance(element, float) and not math.isfinite(element))
            or abs(element) >= 2**63
            or (info.minimum is not None and element < info.minimum)
            or (info.maximum is not None and element > info.maximum)
            or (info.above is not None and element <= info.above)
            or (info.below is not None and element >= info.below)
            or (info.multiple_of is not None and element % info.multiple_of != 0)
        )
        if out_of_range:
            raise ValueError(f"must be {info.describe()}")
    return result


def _coerce_type(value: Any, wanted: Any) -> Any:
    origin = typing.get_origin(wanted)
    arguments = typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        if value is None or value == "none":
            if type(None) in arguments:
                return None
            raise ValueError(f"must be {_type_name(wanted)}")
        remaining = [argument for argument in arguments if argument is not type(None)]
        errors: list[str] = []
        for argument in remaining:
            try:
                return _coerce_type(value, argument)
            except ValueError as error:
                errors.append(str(error))
        raise ValueError(errors[0])
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"must be {_type_name(wanted)}, written as [a, b, ...]")
        return tuple(_coerce_type(element, arguments[0]) for element in value)
    if wanted is bool and isinstance(value, bool):
        return value
    if wanted is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if wanted is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ValueError("is beyond all numbers") from None
    if wanted is float and isinstance(value, str):
        try:  # YAML 1.1 reads 1e-4 as text
            return float(value)
        except ValueError:
            pass
    if wanted is str and isinstance(value, (str, int, float)) and not isinstance(value, bool):
        if "\0" in str(value):
            raise ValueError("cannot hold NUL")
        return str(value)
    if wanted is Address and isinstance(value, str) and "://" in value and "\0" not in value:
        return Address(value)
    if wanted is Path and isinstance(value, str):
        problem = path_problem(value) if value else "must be a path, or none"
        problem = problem or ("is an address, and a path is wanted" if "://" in value else "")
        if problem:
            raise ValueError(problem)
        try:
            return Path(value).expanduser()
        except RuntimeError as error:
            raise ValueError(f"{error}; write ./~... for a name that begins so") from None
    raise ValueError(f"must be {_type_name(wanted)}")


def _type_name(wanted: Any) -> str:
    origin = typing.get_origin(wanted)
    arguments = typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("none" if argument is type(None) else _type_name(argument) for argument in arguments)
    if origin is tuple:
        return f"list of {_type_name(arguments[0])}"
    names = {
        str: "text",
        Path: "path",
        Address: "address (s3://bucket/prefix)",
        bool: "true or false",
        int: "integer",
        float: "number",
    }
    return names.get(wanted, str(wanted))


def _build(recipe_type: type[RecipeType], values: Mapping[str, Any], prefix: str = "") -> RecipeType:
    hints = _types_of(recipe_type)
    arguments: dict[str, Any] = {}
    for field in dataclasses.fields(typing.cast(Any, recipe_type)):
        key = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(hints[field.name]):
            arguments[field.name] = _build(typing.cast(type, hints[field.name]), values, f"{key}.")
        elif key in values:
            arguments[field.name] = values[key]
    built = recipe_type(**arguments)
    check = getattr(built, "check", None)  # relations between keys, e.g. a minimum below a maximum
    if check is not None:
        problems = [f"{prefix}{problem}" for problem in check()]
        if problems:
            raise RecipeError(problems)
    return built


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, (tuple, list)):
        return [_plain(element) for element in value]
    return str(value) if isinstance(value, (Path, Address)) else value


def _lookup(recipe: Any, key: str) -> Any:
    for part in key.split("."):
        recipe = getattr(recipe, part)
    return recipe
