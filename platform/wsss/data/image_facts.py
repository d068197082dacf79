"""What is known of the images of a list whatever a stage declares: for checks alone, never handed to a stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from wsss.data.errors import DataError
from wsss.data.layout import Place
from wsss.data.reading import read_header


@dataclass(frozen=True)
class ImageFacts:
    """Sizes and image-level labels of images; picklable, made by `Dataset.image_facts`.

    Attributes:
        classes: class names, index 0 the background.
        ignore_index: label value that does not count.
        labels: image name -> class ids from 1; an image may lack one.
        images: where the pictures lie.
    """

    classes: tuple[str, ...]
    ignore_index: int
    labels: Mapping[str, tuple[int, ...]]
    images: Place

    def size(self, name: str) -> tuple[int, int] | None:
        """(height, width) of the picture; None where it cannot be read, which is for its readers to say."""
        return _size(self.images.path(name))

    def named(self, ids: tuple[int, ...]) -> str:
        """Class names of some ids, for people."""
        return ", ".join(self.classes[label] for label in ids) or "none"


@lru_cache(maxsize=65536)
def _size(path: Path) -> tuple[int, int] | None:
    try:
        return read_header(path)[1]
    except DataError:
        return None
