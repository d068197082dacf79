"""List files: one image name per line."""

from __future__ import annotations

from pathlib import Path

from wsss.data.errors import Problem


def list_file(root: Path, folder: Path, name_or_path: str) -> Path:
    """The file of a list given by its name in `<root>/<folder>`, or by a path (relative ones may start at the root)."""
    if name_or_path.endswith(".txt") or "/" in name_or_path:
        path = Path(name_or_path).expanduser()
        return path if path.is_absolute() or path.exists() else root / path
    return root / folder / f"{name_or_path}.txt"


def read_list(path: Path) -> tuple[tuple[str, ...], list[Problem]]:
    """Image names of a list file, one per line, in order, without duplicates; and what is wrong in it."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
        present = ", ".join(sorted(found.stem for found in path.parent.glob("*.txt"))) or "none"
        return (), [Problem(f"the list {reason}", str(path), f"create it, or name another; lists there: {present}")]
    problems: list[Problem] = []
    first_line: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if not name:
            continue
        where = f"{path}, line {number}"
        if len(name.split()) > 1 or "/" in name or Path(name).suffix in (".jpg", ".png"):
            problems.append(
                Problem(
                    f"malformed line {name[:60]!r}; expected one image name",
                    where,
                    "write the name alone, without folder and suffix, e.g. 2007_000032",
                )
            )
        elif name in first_line:
            problems.append(Problem(f"image {name} is also in line {first_line[name]}", where, "remove the duplicate"))
        else:
            first_line[name] = number
    if not first_line and not problems:
        problems.append(Problem("the list is empty", str(path), "write one image name per line"))
    return tuple(first_line), problems
