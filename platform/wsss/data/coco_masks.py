"""Semantic masks made from COCO's instances, kept below the home by the content that they were made from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from wsss.data.coco_instances import RULE_VERSION, annotations_of, read_instances, semantic_mask
from wsss.data.errors import DataError, Problem, raise_problems
from wsss.data.layout import Progress
from wsss.data.palette import write_palette_mask
from wsss.data.told import Told


def made_masks_folder(home: Path) -> Path:
    """Where made masks of all splits lie."""
    return home / "data" / "coco2014-masks"


def split_folder(split: str, sha256: str) -> str:
    """Folder of the masks made from an instances file of this content by the present rule."""
    return f"{split}-{sha256[:16]}-rule{RULE_VERSION}"


def make_masks(
    instances: Path,
    sizes: Mapping[str, tuple[int, int]],
    names: Iterable[str],
    target: Callable[[str], Path],
    progress: Progress | None = None,
) -> int:
    """Make the masks of `names` that are not there yet; returns how many. An interrupted call is simply repeated.

    Args:
        sizes: image name -> (height, width) of all images of the file.
        target: image name -> file to write; every file appears whole or not at all.
        progress: called with (masks done now, masks to make); None tells standard error of long work.

    Raises:
        DataError: naming all images whose annotations cannot be turned into a mask.
    """
    wanted = [name for name in names if name in sizes]
    present: dict[Path, set[str]] = {}
    for folder in {target(name).parent for name in wanted}:
        folder.mkdir(parents=True, exist_ok=True)
        present[folder] = {entry.name for entry in folder.iterdir()}
    missing = [name for name in wanted if (path := target(name)).name not in present[path.parent]]
    if not missing:
        return 0
    show = progress or Told(f"masks from {instances.name}")
    annotations = annotations_of(read_instances(instances), missing)
    problems: list[Problem] = []
    for done, name in enumerate(missing, start=1):
        try:
            write_palette_mask(target(name), semantic_mask(annotations[name], *sizes[name]))
        except DataError as error:
            problems.append(Problem(error.what, f"{instances}, {name}, {error.where}", error.remedy))
        show(done, len(missing))
    raise_problems(problems, str(instances))
    return len(missing)
