"""Where the files of a data set lie, whatever its own folders look like, and what was read of it at the start."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from wsss.data.errors import Problem
from wsss.data.origin import Origin

IGNORE_INDEX = 255

# Called with (files done, files in all).
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Place:
    """A folder with one file for each image.

    Attributes:
        folder: on the machine that made the place.
        file: image name -> path below the folder; picklable, because the place travels to workers.
        origin: how another machine comes by the folder; None: it is the same path there.
    """

    folder: Path
    file: Callable[[str], str]
    origin: Origin | None = None

    def path(self, name: str) -> Path:
        """The image's file on this machine, whether it exists or not. Raises as `Origin.here`."""
        return (self.folder if self.origin is None else self.origin.here(self.folder)) / self.file(name)


def png_file(name: str) -> str:
    """<name>.png, a `Place.file`."""
    return f"{name}.png"


def existing_path(places: tuple[Place, ...], name: str) -> Path:
    """The image's file in the first place that has it; where none has, the one that is missed."""
    for place in places:
        if (path := place.path(name)).is_file():
            return path
    return places[0].path(name)


def root_problem(root: Path, folders: Sequence[str], others: Iterable[Path], remedy: str) -> Problem | None:
    """None when the root has one of the folders. Else what is wrong, and which of `others` is the root.

    Args:
        remedy: what to do when the root does not exist.
    """
    found = next((place for place in (root, *others) if any((place / folder).is_dir() for folder in folders)), None)
    if found == root:
        return None
    if not root.is_dir():
        return Problem("the folder of the data set is missing", str(root), remedy)
    if found is not None:
        return Problem("the folder is not the data set but holds it", str(root), f"set dataset.root={found}")
    what = f"there is no folder {' or '.join(folders)} in the data set"
    return Problem(what, str(root), "set dataset.root to the folder that holds it")


class Layout(Protocol):
    """What every data set's module knows about its own folders. Picklable."""

    @property
    def mask_provenance(self) -> str:
        """Where masks come from, in words, for the protocol of a number."""
        ...

    def images(self) -> Place:
        """The pictures."""
        ...

    def masks(self, list_name: str | None) -> tuple[Place, ...]:
        """Where masks of a list's images are looked for, first match first; None: images of all lists."""
        ...

    def forbidden(self) -> tuple[Path, ...]:
        """Every folder from which masks could be learned, whether it exists or not: what the firewall forbids."""
        ...

    def prepare_masks(self, names: Iterable[str], progress: Progress | None = None) -> None:
        """Make the masks that are made and not given, as far as they are missing. DataError when it cannot be done."""
        ...

    def size(self, name: str) -> tuple[int, int] | None:
        """(height, width) that the annotations state for a picture; None where they state none."""
        ...

    def list_remedy(self, list_name: str) -> str:
        """What a user can do who misses a list; empty for a list that this data set cannot have."""
        ...

    def belongings(self) -> Mapping[str, Path]:
        """All that is read of the data set: path below a packed one -> file or folder here, there or not."""
        ...


@dataclass(frozen=True)
class Contents:
    """What a data set's module found in its folder.

    Attributes as of `wsss.data.dataset.Dataset`; `problems` is everything that is wrong so far.
    """

    layout: Layout
    lists: Mapping[str, tuple[str, ...]]
    image_labels: Mapping[str, tuple[int, ...]]
    label_source: str
    label_provenance: str
    problems: tuple[Problem, ...] = ()
