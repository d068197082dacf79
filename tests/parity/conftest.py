"""Options of the parity harness, and one test for every fixture and state-dict manifest found.

    pytest tests/parity --fixtures DIR [--parity-module FILE]

(written with a space, not `--fixtures=DIR`)

DIR is one method's folder or a folder that holds several. Without the option it is `parity` in the shared
folder (environment variable WSSS_SHARED).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.parity.fixtures import load_parity_module

_DEFAULT = Path(os.environ.get("WSSS_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "parity"
_NO_FIXTURE_PREFIXES = ("index", "state_dict.", "param_groups.")


def pytest_addoption(parser: pytest.Parser) -> None:
    _free_option_name(parser, "--fixtures")
    group = parser.getgroup("parity")
    group.addoption("--fixtures", metavar="DIR", help="folder of parity fixtures")
    group.addoption("--parity-module", metavar="FILE", help="parity.py that made them (default: beside DIR)")


def _free_option_name(parser: pytest.Parser, name: str) -> None:
    """Take `--fixtures` from pytest, whose listing of fixtures keeps its other name `--funcargs`.

    Pytest has no public way to do so; where its structure differs, adding the option fails with its own message.
    """
    for group in getattr(parser, "_groups", []):
        for option in group.options:
            if name not in option.names():
                continue
            if hasattr(group, "_arggroup"):
                option.names().remove(name)
                group._arggroup._option_string_actions.pop(name, None)
            else:
                option._long_opts.remove(name)


def method_of(folder: Path) -> str:
    """The method a folder of fixtures belongs to: what its index or a fixture says, else what inputs are named after.

    Inputs are called `<method>.<fixture>.<argument>`; without any, the folder's name decides.
    """
    index = folder / "index.json"
    if index.is_file():
        method = json.loads(index.read_text(encoding="utf-8")).get("method")
        if isinstance(method, str):
            return method.lower()
    for path in sorted(folder.glob("*.json")):
        if path.name.startswith(_NO_FIXTURE_PREFIXES):
            continue
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content.get("method"), str):
            return content["method"].lower()
        inputs = content.get("inputs")
        names = [entry.get("name", "") for entry in inputs or [] if isinstance(entry, dict)]
        if names and names[0].count(".") >= 2:
            return names[0].split(".")[0].lower()
    return folder.name.lower()


def fixture_files(folder: Path) -> list[Path]:
    """The .json of every fixture in a folder, those included that only the index names."""
    found = {path for path in folder.glob("*.json") if not path.name.startswith(_NO_FIXTURE_PREFIXES)}
    found |= {path.with_suffix(".json") for path in folder.glob("*.npz")}
    index = folder / "index.json"
    if index.is_file():
        listed = json.loads(index.read_text(encoding="utf-8")).get("fixtures", {})
        found |= {folder / f"{name}.json" for name in listed if isinstance(name, str)}
    return sorted(found)


def _folders(config: pytest.Config) -> tuple[list[Path], bool]:
    """Method folders, and whether the user named a single one of them."""
    option = config.getoption("fixtures", default=None)
    root = Path(option).resolve() if option else _DEFAULT
    if not root.is_dir():
        if option:
            raise pytest.UsageError(f"--fixtures: no folder {root}")
        return [], False
    if any(root.glob("*.npz")) or any(root.glob("state_dict.*.json")):
        return [root], True
    folders = [folder for folder in sorted(root.iterdir()) if folder.is_dir() and any(folder.glob("*.json"))]
    if not folders and option:
        raise pytest.UsageError(f"--fixtures: no fixtures in {root}")
    return folders, False


# Argument of a test -> the files that it runs on.
_FILES: dict[str, Callable[[Path], list[Path]]] = {
    "fixture_file": fixture_files,
    "manifest_file": lambda folder: sorted(folder.glob("state_dict.*.json")),
    "parameter_group_file": lambda folder: sorted(folder.glob("param_groups.*.json")),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    argument = next((name for name in _FILES if name in metafunc.fixturenames), None)
    if argument is None:
        return
    from tests.parity.test_parity import METHODS

    folders, single = _folders(metafunc.config)
    parameters = []
    for folder in folders:
        method = method_of(folder)
        if method not in METHODS and not single:
            reason = f"this repository has no method {method}"
            parameters.append(pytest.param(folder, id=method, marks=pytest.mark.skip(reason=reason)))
            continue
        parameters.extend(pytest.param(path, id=f"{method}-{path.stem}") for path in _FILES[argument](folder))
    if not folders:
        reason = "no parity fixtures: set WSSS_SHARED or give --fixtures"
        parameters = [pytest.param(_DEFAULT, id="absent", marks=pytest.mark.skip(reason=reason))]
    metafunc.parametrize(argument, parameters)


@pytest.fixture(scope="session")
def parity(request: pytest.FixtureRequest):
    """The module that makes weights and inputs, from beside the fixtures."""
    option = request.config.getoption("parity_module", default=None)
    if option:
        return load_parity_module(Path(option))
    root = Path(request.config.getoption("fixtures", default=None) or _DEFAULT).resolve()
    for folder in (root, *list(root.parents)[:2], _DEFAULT):
        if (folder / "parity.py").is_file():
            return load_parity_module(folder / "parity.py")
    pytest.fail(f"no parity.py beside {root}; give --parity-module FILE")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """With -v: how close every fixture came to its tolerance."""
    if terminalreporter.verbosity < 1:
        return
    rows = [
        (report.nodeid.rsplit("[", 1)[-1].rstrip("]"), text)
        for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
        for name, text in getattr(report, "user_properties", [])
        if name == "parity"
    ]
    if rows:
        terminalreporter.section("parity: output nearest to its tolerance")
        for test, text in rows:
            terminalreporter.write_line(f"{test:42s} {text}")
