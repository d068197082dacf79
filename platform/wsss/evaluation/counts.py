"""Confusion matrices without the class pairs that never occur: what is stored of every image.

A picture shows a few of the classes, so that of 81 x 81 pairs (truth, prediction) a few dozen have pixels, the same
ones at every threshold of a curve. Only these are stored. Nothing is rounded: the dense matrix comes back exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from wsss.evaluation.confusion import EvaluationError, check_confusion

_CELLS, _VALUES, _SHAPE = "_cells", "_counts", "_shape"


@dataclass(frozen=True, eq=False)
class Counts:
    """One confusion matrix (C, C), or several (..., C, C), without the pairs that none of them has.

    Attributes:
        shape: of the dense array.
        cells: int64 (n,), positions in a flattened (C, C) matrix, ascending, each once.
        values: int64 (m, n), the counts there of each of the m matrices.
    """

    shape: tuple[int, ...]
    cells: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, confusion: np.ndarray) -> Counts:
        """From the dense array, integer (..., C, C)."""
        check_confusion(confusion)
        flat = confusion.reshape(-1, confusion.shape[-1] ** 2)
        cells = np.flatnonzero(flat.any(axis=0))
        return cls(confusion.shape, cells, flat[:, cells].astype(np.int64))

    @classmethod
    def read(cls, arrays: Mapping[str, np.ndarray], name: str = "confusion") -> Counts:
        """From the arrays of an image, as `arrays` names them; a dense array of that name is taken as well.

        Raises EvaluationError when there is neither.
        """
        if name in arrays:
            return cls.of(arrays[name])
        if not {name + ending for ending in (_CELLS, _VALUES, _SHAPE)} <= set(arrays):
            raise EvaluationError(
                f"the image has no counts {name!r}",
                "Counts.read",
                f"it has: {', '.join(sorted(arrays)) or 'nothing'}; score it with a scorer of wsss.evaluation",
            )
        shape = tuple(int(side) for side in arrays[name + _SHAPE])
        return cls(shape, arrays[name + _CELLS].astype(np.int64), arrays[name + _VALUES].astype(np.int64))

    def arrays(self, name: str = "confusion") -> dict[str, np.ndarray]:
        """What is stored: `<name>_cells` uint32 (n,), `<name>_counts` int32 (m, n), `<name>_shape` int32."""
        return {
            name + _CELLS: self.cells.astype(np.uint32),
            name + _VALUES: self.values.astype(np.int32),
            name + _SHAPE: np.array(self.shape, dtype=np.int32),
        }

    def dense(self) -> np.ndarray:
        """int64 (..., C, C)."""
        total = np.zeros(self.shape, dtype=np.int64)
        self.add_to(total)
        return total

    def add_to(self, total: np.ndarray) -> None:
        """Add to a dense, contiguous int64 array of the same shape, in place."""
        if total.shape != self.shape:
            raise EvaluationError(
                f"counts of shape {self.shape} do not fit {total.shape}",
                "Counts.add_to",
                "score all images with the same classes and thresholds",
            )
        total.reshape(-1, self.shape[-1] ** 2)[:, self.cells] += self.values

    def at(self, index: int) -> Counts:
        """The entry of the first of several axes, for example the matrix of one threshold."""
        each = len(self.values) // self.shape[0]
        return Counts(self.shape[1:], self.cells, self.values[index * each : (index + 1) * each])
