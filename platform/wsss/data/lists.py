"""List files: one image name per line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from wsss.data.errors import Problem
from wsss.text_file import UnreadableText, path_problem, read_text, shortened

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".xml", ".mat", ".npy", ".txt")
_LONGEST_NAME = 240  # with a suffix it is the name of a file
_NAMED = 10


def list_file(root: Path, folder: Path, name_or_path: str) -> Path:
    """The file of a list given by its name in `<root>/<folder>`, or by a path (relative ones may start at the root)."""
    if name_or_path.endswith(".txt") or "/" in name_or_path:
        with suppress(RuntimeError):  # ~ of nobody stays, and is missing
            name_or_path = str(Path(name_or_path).expanduser())
        path = Path(name_or_path)
        return path if path.is_absolute() or path_problem(name_or_path) or path.exists() else root / path
    return root / folder / f"{name_or_path}.txt"


def read_list(path: Path) -> tuple[tuple[str, ...], list[Problem]]:
    """Image names of a list file, one per line, in order, without duplicates; and what is wrong in it.

    Line ends of any system, blanks around a name and a byte order mark make no difference. Of many wrong lines the
    first few are named and the others counted.
    """
    try:
        lines = read_text(path).splitlines()
    except FileNotFoundError:
        present = ", ".join(sorted(found.stem for found in path.parent.glob("*.txt"))) or "none"
        return (), [Problem("the list is missing", str(path), f"create it, or name another; lists there: {present}")]
    except UnreadableText as error:
        return (), [Problem(f"the list cannot be read: {error}", shortened(str(path), 300), "write one name per line")]
    found: list[tuple[str, Problem]] = []
    first_line: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if not name:
            continue
        where = f"{path}, line {number}"
        if reason := name_problem(name):
            what = f"malformed line {shortened(name)!r}; expected one image name ({reason})"
            remedy = "write the name alone, without folder and suffix, e.g. 2007_000032"
            found.append(("malformed lines", Problem(what, where, remedy)))
        elif name in first_line:
            what = f"image {name} is also in line {first_line[name]}"
            found.append(("images listed twice", Problem(what, where, "remove the duplicate")))
        else:
            first_line[name] = number
    problems = first_of(found, path)
    if not first_line and not problems:
        problems.append(Problem("the list is empty", str(path), "write one image name per line"))
    return tuple(first_line), problems


def name_problem(name: str) -> str:
    """Why a text cannot be the name of an image, in words, or nothing."""
    if len(name.split()) > 1:
        return "it holds blanks"
    if "/" in name or "\\" in name:
        return "it holds a folder"
    if Path(name).suffix.lower() in _SUFFIXES:
        return f"it ends with {Path(name).suffix}"
    if not name.isprintable():
        return "it holds characters that cannot be seen"
    return "it is too long" if len(name.encode(errors="surrogateescape")) > _LONGEST_NAME else ""


def first_of(found: Sequence[tuple[str, Problem]], path: Path) -> list[Problem]:
    """The first few problems of each kind (named in the plural), in their order, and how many more there are."""
    numbers: Counter[str] = Counter()
    shown: list[Problem] = []
    for kind, problem in found:
        numbers[kind] += 1
        if numbers[kind] <= _NAMED:
            shown.append(problem)
    return shown + [
        Problem(f"{number - _NAMED} further {kind}", str(path), "correct them likewise")
        for kind, number in numbers.items()
        if number > _NAMED
    ]
