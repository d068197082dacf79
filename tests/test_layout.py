"""Rules of the tree that no single module can guard."""

import ast
import importlib
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import wsss
import wsss_methods
from wsss.shapes_weights import SHAPES_WEIGHTS, is_shapes_file, shapes_file

ROOT = Path(__file__).resolve().parent.parent
PLATFORM = ROOT / "platform" / "wsss"
METHODS = ROOT / "methods" / "wsss_methods"

# third-party package -> the only sub-packages of wsss that import it
CONFINED = {"ray": {"execution", "search"}, "mlflow": {"tracking"}, "optuna": {"search"}}


def imports_of(path: Path) -> Iterator[str]:
    """Absolute names of all modules that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} has a relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules_of(folder: Path) -> list[Path]:
    found = sorted(folder.rglob("*.py"))
    assert found
    return found


def area_of(path: Path) -> str:
    """`store` for platform/wsss/store/local.py, `plan` for platform/wsss/plan.py."""
    return path.relative_to(PLATFORM).parts[0].removesuffix(".py")


@pytest.mark.parametrize("folder", ["platform", "methods"])
def test_container_folders_are_not_packages(folder: str) -> None:
    assert not (ROOT / folder / "__init__.py").exists()


def test_standard_library_platform_is_importable_from_the_root() -> None:
    command = [sys.executable, "-c", "import platform; print(platform.system(), platform.__file__)"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert str(ROOT) not in done.stdout


@pytest.mark.parametrize("package", sorted(CONFINED))
def test_third_party_packages_stay_where_they_belong(package: str) -> None:
    offenders = [
        str(path.relative_to(ROOT))
        for path in modules_of(PLATFORM)
        if area_of(path) not in CONFINED[package] and package in {name.split(".")[0] for name in imports_of(path)}
    ]
    offenders += [
        str(path.relative_to(ROOT))
        for path in modules_of(METHODS)
        if package in {name.split(".")[0] for name in imports_of(path)}
    ]
    assert offenders == []


def test_numerical_areas_do_not_know_how_they_are_run() -> None:
    forbidden = {"execution", "tracking", "reporting", "commands", "search"}
    areas = {
        "ops",
        "nn",
        "data",
        "store",
        "evaluation",
        "stages",
        "pipeline",
        "recipe",
        "errors",
        "method",
        "train_task",
    }
    offenders = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules_of(PLATFORM)
        if area_of(path) in areas
        for name in imports_of(path)
        if name.startswith("wsss.") and name.split(".")[1] in forbidden
    ]
    assert offenders == []


def test_only_the_command_line_knows_that_there_are_methods() -> None:
    offenders = [
        str(path.relative_to(ROOT))
        for path in modules_of(PLATFORM)
        if area_of(path) not in {"commands", "execution"}
        and "wsss_methods" in {name.split(".")[0] for name in imports_of(path)}
    ]
    assert offenders == []


def test_the_platform_never_names_a_method() -> None:
    """In no spelling: "wsfcn" stands for "WS-FCN" and "WsFcn" as well."""
    names = sorted(module.name for module in pkgutil.iter_modules(wsss_methods.__path__))
    assert names
    spellings = ("[-_ ]?".join(map(re.escape, name)) for name in names)
    word = re.compile(rf"(?<![a-z0-9])({'|'.join(spellings)})(?![a-z0-9])", re.IGNORECASE)
    offenders = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in modules_of(PLATFORM)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if word.search(line)
    ]
    assert offenders == []


def test_the_board_of_a_training_starts_without_torch_and_ray() -> None:
    """Every training starts a process for it, beside those that have to load them."""
    code = (
        "import sys, wsss.execution.train_board as board; print(sorted({'torch', 'ray', 'numpy'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_methods_do_not_import_one_another() -> None:
    offenders = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules_of(METHODS)
        for name in imports_of(path)
        if name.startswith("wsss_methods.")
        and name.split(".")[1] != path.relative_to(METHODS).parts[0].removesuffix(".py")
    ]
    assert offenders == []


def all_module_names() -> list[str]:
    walked = [
        *pkgutil.walk_packages(wsss.__path__, "wsss."),
        *pkgutil.walk_packages(wsss_methods.__path__, "wsss_methods."),
    ]
    return sorted(module.name for module in walked)


def test_every_folder_with_python_files_is_a_package() -> None:
    folders = {path.parent for base in (PLATFORM, METHODS) for path in base.rglob("*.py")}
    assert sorted(str(folder) for folder in folders if not (folder / "__init__.py").exists()) == []


@pytest.mark.parametrize("name", all_module_names())
def test_every_module_is_importable(name: str) -> None:
    importlib.import_module(name)


def tracked_files() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_tracked_file_is_large() -> None:
    """Of the weights that the demos start from, both together may have 2.5 MB; of anything else no file 1 MB."""
    sizes = {path: path.stat().st_size for path in tracked_files()}
    weights = {path for path in sizes if is_shapes_file(path) and path.suffix == ".pth"}
    assert {path.name for path in weights} == {shapes_file(name).name for name in SHAPES_WEIGHTS}
    assert sum(sizes[path] for path in weights) < 2_500_000
    assert {str(path): size for path, size in sizes.items() if size > 1_000_000 and path not in weights} == {}


def test_source_files_have_one_reason_to_exist() -> None:
    sources = [*modules_of(PLATFORM), *modules_of(METHODS)]
    assert [str(path) for path in sources if path.name in ("utils.py", "helpers.py", "misc.py")] == []
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in sources}
    assert {name: length for name, length in lengths.items() if length > 500} == {}


@pytest.mark.slow
def test_wheel_holds_code_and_recipes(tmp_path: Path) -> None:
    source = tmp_path / "source"  # a build leaves files behind that the next one would pick up
    for name in ("platform", "methods"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("wsss-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    suffixes = ("*.py", "*.yaml", "*.pth")
    shipped = [path for base in (PLATFORM, METHODS) for suffix in suffixes for path in base.rglob(suffix)]
    expected = {str(path.relative_to(ROOT / path.relative_to(ROOT).parts[0])) for path in shipped}
    assert any(name.endswith("recipes/demo.yaml") for name in expected)
    assert expected - names == set()
    assert not any(name.startswith(("tests/", "platform/", "methods/")) for name in names)
