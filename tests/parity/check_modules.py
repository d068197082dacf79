"""The check modules of this folder: `<method>_checks.py` or `<method>_<part>_checks.py`.

`<method>_shared_checks.py` checks what the platform has of a method that may not have a folder yet. As long as it has
none, its fixtures without a check are skipped, not failed.

A module may define:

    CHECKS: fixture kind -> check(fixture)
    MANIFESTS: network -> the state dict that this repository writes for it, as name -> shape
    PARAMETER_GROUPS: network -> check(content of `param_groups.<network>.json`)
    FIXTURE: the class that reads the method's fixtures, when it is not `fixtures.Fixture`
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.parity.fixtures import Fixture

from wsss.commands.methods import method_names

Check = Callable[[Any], None]
ManifestCheck = Callable[[], Mapping[str, list[int]]]


@dataclass
class MethodChecks:
    """All that the check modules of one method offer."""

    checks: dict[str, Check] = field(default_factory=dict)
    manifests: dict[str, ManifestCheck] = field(default_factory=dict)
    parameter_groups: dict[str, Callable[[dict[str, Any]], None]] = field(default_factory=dict)
    fixture: type[Any] = Fixture
    complete: bool = True
    """Whether the method is here, so that every fixture must have a check."""


def discover(folder: Path = Path(__file__).parent) -> dict[str, MethodChecks]:
    """Method -> its checks, from the names of the files."""
    found: dict[str, MethodChecks] = {}
    for path in sorted(folder.glob("*_checks.py")):
        method = method_of_module(path.stem)
        module = importlib.import_module(f"tests.parity.{path.stem}")
        checks = found.setdefault(method, MethodChecks())
        checks.complete = method in method_names()
        checks.checks.update(getattr(module, "CHECKS", {}))
        checks.manifests.update(getattr(module, "MANIFESTS", {}))
        checks.parameter_groups.update(getattr(module, "PARAMETER_GROUPS", {}))
        checks.fixture = getattr(module, "FIXTURE", checks.fixture)
    return found


def method_of_module(stem: str) -> str:
    """The method whose name begins the name of a check module; the longest where several do.

    Raises ValueError when there is none: the checks would never run.
    """
    methods = [name for name in method_names() if stem.startswith(f"{name}_")]
    if not methods and stem.endswith("_shared_checks"):
        return stem.removesuffix("_shared_checks")
    if not methods:
        raise ValueError(f"tests/parity/{stem}.py belongs to no method; methods are {', '.join(method_names())}")
    return max(methods, key=len)
