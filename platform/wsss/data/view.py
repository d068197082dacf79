"""What a stage is handed of a data set: the parts it declared, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from wsss.data.errors import DataError, LabelFirewallError
from wsss.data.layout import Place, existing_path
from wsss.data.reading import read_header, read_image, read_mask, require_same_size


@dataclass(frozen=True)
class DataView:
    """The images of one list, limited to what was declared; picklable, made by `Dataset.view`.

    Without "masks" it holds no mask path, without "image_labels" no label, without "images" no picture.

    Attributes:
        dataset: name of the data set.
        list_name: the list, or None for the images of all lists.
        names: image names in the order of the list.
        classes: class names, index 0 the background.
        reads: what was declared.
        ignore_index: mask value that does not count.
    """

    dataset: str
    list_name: str | None
    names: tuple[str, ...]
    classes: tuple[str, ...]
    reads: frozenset[str]
    ignore_index: int = 255
    images: Place | None = None
    labels: Mapping[str, tuple[int, ...]] | None = None
    masks: tuple[Place, ...] | None = None
    _members: frozenset[str] = field(init=False, repr=False, compare=False, default=frozenset())

    def __post_init__(self) -> None:
        object.__setattr__(self, "_members", frozenset(self.names))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def num_classes(self) -> int:
        """Number of classes with the background."""
        return len(self.classes)

    def image(self, name: str) -> np.ndarray:
        """The picture, (H, W, 3) uint8 RGB.

        Raises:
            LabelFirewallError: "images" was not declared.
            DataError: the name is not in the list, or the file is missing or damaged.
        """
        return read_image(self._image_path(name))

    def image_size(self, name: str) -> tuple[int, int]:
        """(height, width) from the picture's header, or from the mask's where only masks were declared."""
        if self.images is None and self.masks is not None:
            return read_header(self._mask_path(name), "mask")[1]
        return read_header(self._image_path(name))[1]

    def image_labels(self, name: str) -> np.ndarray:
        """(num_classes - 1,) float32, 1 where a class is present; index 0 is class id 1."""
        vector = np.zeros(self.num_classes - 1, dtype=np.float32)
        vector[[label - 1 for label in self.present_classes(name)]] = 1.0
        return vector

    def present_classes(self, name: str) -> tuple[int, ...]:
        """Class ids 1..num_classes-1 of the image-level label, ascending."""
        if self.labels is None:
            raise self._undeclared("image_labels", name)
        self._require_member(name)
        if name not in self.labels:
            raise DataError(
                f"image {name} has no image-level label",
                f"data set {self.dataset}, list {self.list_name}",
                "add it to the label file, or choose another source: dataset.image_label_source",
            )
        return self.labels[name]

    def mask(self, name: str) -> np.ndarray:
        """The ground truth, (H, W) uint8: class ids and `ignore_index`.

        Raises:
            LabelFirewallError: "masks" was not declared.
            DataError: missing, damaged, a value that is no class, or another size than the picture.
        """
        path = self._mask_path(name)
        mask = read_mask(path, self.num_classes, self.ignore_index)
        if self.images is not None:
            height, width = mask.shape
            require_same_size((height, width), self.image_size(name), path)
        return mask

    def _image_path(self, name: str) -> Path:
        if self.images is None:
            raise self._undeclared("images", name)
        self._require_member(name)
        return self.images.path(name)

    def _mask_path(self, name: str) -> Path:
        if self.masks is None:
            raise self._undeclared("masks", name)
        self._require_member(name)
        return existing_path(self.masks, name)

    def _require_member(self, name: str) -> None:
        if name not in self._members:
            # Reading it would make a result depend on data that is not in its key.
            raise DataError(
                f"image {name!r} is not in the list that was declared",
                f"data set {self.dataset}, list {self.list_name}",
                "declare the list that holds it as the stage's image_list",
            )

    def _undeclared(self, what: str, name: str) -> LabelFirewallError:
        return LabelFirewallError(
            f"{what} were asked for, but the stage declared only: {', '.join(sorted(self.reads)) or 'nothing'}",
            f"image {name}, data set {self.dataset}, list {self.list_name}",
            f"add '{what}' to the stage's reads, if it may see them",
        )
