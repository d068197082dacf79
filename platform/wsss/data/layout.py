"""Where the files of a data set lie, whatever its own folders look like, and what was read of it at the start."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from wsss.data.errors import Problem

# Called with (files done, files in all).
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Place:
    """A folder with one file for each image.

    Attributes:
        file: image name -> path below the folder; a function at module level (or a partial of one), so that
            the place travels to workers.
    """

    folder: Path
    file: Callable[[str], str]

    def path(self, name: str) -> Path:
        """The image's file, whether it exists or not."""
        return self.folder / self.file(name)


def existing_path(places: tuple[Place, ...], name: str) -> Path:
    """The image's file in the first place that has it; where none has, the one that is missed."""
    for place in places:
        if (path := place.path(name)).is_file():
            return path
    return places[0].path(name)


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
