"""Which methods there are: every package below `wsss_methods` that exposes `METHOD`."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from wsss.errors import WsssError, nearest
from wsss.method import Method
from wsss.text_file import path_problem, shortened


class UsageError(WsssError):
    """The command line asks for something that does not exist or cannot be combined (exit code 2)."""


def method_names() -> tuple[str, ...]:
    """Names of all method packages, sorted, without importing them."""
    import wsss_methods

    found = pkgutil.iter_modules(wsss_methods.__path__)
    return tuple(sorted(module.name for module in found if module.ispkg))


def find_method(name: str) -> Method:
    """The method of that name; imports only its own package.

    Raises:
        UsageError: there is no such method, or its package does not expose `METHOD`.
    """
    names = method_names()
    if name not in names:
        raise UsageError(
            f"there is no method {shortened(name)!r}{nearest(name, names)}", "--method", f"methods: {', '.join(names)}"
        )
    method = getattr(importlib.import_module(f"wsss_methods.{name}"), "METHOD", None)
    if not isinstance(method, Method):
        raise UsageError(
            f"the package of method {name!r} does not expose METHOD",
            f"wsss_methods/{name}/__init__.py",
            "set METHOD = Method(...) there; CONTRIBUTING.md shows how",
        )
    return method


def find_methods() -> dict[str, Method]:
    """Every method by name."""
    return {name: find_method(name) for name in method_names()}


def recipe_names(method: Method) -> tuple[str, ...]:
    """Names of the recipes that the method ships, sorted."""
    return tuple(sorted(path.stem for path in (method.folder / "recipes").glob("*.yaml")))


def recipe_file(method: Method, name_or_path: str) -> tuple[str, Path]:
    """Name and file of a recipe given by its name (`demo`) or by a path (`folder/mine.yaml`).

    Raises:
        UsageError: neither exists.
    """
    path = Path(name_or_path)
    if problem := path_problem(name_or_path):
        raise UsageError(problem, "--recipe", "give the name of a recipe, or the path of a .yaml file")
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        if not path.is_file():
            raise UsageError("the recipe file does not exist", str(path), "check the path after --recipe")
        return path.stem, path
    shipped = method.recipe_path(name_or_path)
    if not shipped.is_file():
        names = recipe_names(method)
        raise UsageError(
            f"method {method.name!r} has no recipe {name_or_path!r}{nearest(name_or_path, names)}",
            "--recipe",
            f"one of {', '.join(names)}, or the path of a .yaml file",
        )
    return name_or_path, shipped
