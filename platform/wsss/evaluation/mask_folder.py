"""Scores of a folder of label PNGs against the masks of a data set, whoever made the PNGs.

It is the platform's own count and the platform's own mean, so that it tells a different evaluation from a different
training: what the same folder scores elsewhere can be compared with what it scores here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from wsss.data.errors import SHOWN_PROBLEMS, DataError
from wsss.data.palette import SharedPalette
from wsss.data.reading import COLORS_REMEDY, read_label_map
from wsss.data.view import DataView
from wsss.evaluation.bootstrap import Interval, bootstrap_interval_from_counts
from wsss.evaluation.confusion import (
    EvaluationError,
    class_counts,
    class_rows,
    confusion_matrix,
    mean_accuracy,
    pixel_accuracy,
)

Size = tuple[int, int]


@dataclass(frozen=True)
class FolderScoreConfig:
    """How predictions and truth are brought together.

    Attributes:
        ignore_to: class that a predicted `ignore_index` counts as; None makes such a prediction an error.
        truth_sizes: (height, width) to which the truth is resized, one after the other, nearest; empty for none.
        size_from: where the sizes still differ, whose size the other one is resized to, nearest; "equal" makes a
            difference an error.
        only_present: leave images without a PNG out; otherwise each is an error.
    """

    ignore_to: int | None = None
    truth_sizes: tuple[Size, ...] = ()
    size_from: Literal["equal", "truth", "prediction"] = "equal"
    only_present: bool = False

    def in_words(self) -> str:
        """The sizes, for the protocol of a number."""
        steps = [f"truth resized to {height}x{width} (height x width)" for height, width in self.truth_sizes]
        if self.size_from != "equal":
            other = "prediction" if self.size_from == "truth" else "truth"
            steps.append(f"{other} resized to the size of the {self.size_from}")
        return ", then ".join(steps) + ", nearest" if steps else "at the size of the masks"


@dataclass(frozen=True, eq=False)
class FolderScore:
    """Counts of a scored folder.

    Attributes:
        images: names of the scored images, in the order of the list.
        confusion: int64 (C, C), rows truth, columns prediction, over all images.
        image_counts: int64 (N, 3, C), `class_counts` of each.
    """

    classes: tuple[str, ...]
    images: tuple[str, ...]
    confusion: np.ndarray
    image_counts: np.ndarray

    def interval(self, mean_over: Literal["defined", "truth"], samples: int = 1000) -> Interval:
        """mIoU of all images with its 95 % bootstrap interval over images, fractions.

        mean_over: "defined" averages over the classes in the truth or predicted, "truth" over those in the truth.
        """
        return bootstrap_interval_from_counts(self.image_counts, samples=samples, mean_over=mean_over)

    def metrics(self, samples: int = 1000) -> dict[str, float]:
        """Fractions: both means with their intervals, pixel accuracy, mean recall over the classes in the truth."""
        found: dict[str, float] = {}
        for mean_over in ("defined", "truth"):
            interval = self.interval(mean_over, samples)
            name = f"miou_{mean_over}"
            found.update({name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high})
        found["pixel_accuracy"] = float(pixel_accuracy(self.confusion))
        found["mean_accuracy"] = float(mean_accuracy(self.confusion))
        return found

    def per_class(self) -> list[dict[str, Any]]:
        """Rows class, iou (None where undefined), truth_pixels, predicted_pixels."""
        return class_rows(self.confusion, self.classes)


def score_folder(
    view: DataView,
    folder: Path,
    config: FolderScoreConfig = FolderScoreConfig(),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> FolderScore:
    """Score `<folder>/<image name>.png` (palette or grey, class ids) for the images of a view that may read masks.

    Args:
        progress: called with (images done, images in all).

    Raises:
        DataError: naming every PNG that is missing, damaged, of another size or with a value that is no class.
        EvaluationError: no image, or no pixel, was scored.
    """
    if not folder.is_dir():
        raise DataError("there is no such folder of masks", str(folder), "check the path after --masks")
    names = view.names
    if config.only_present:
        names = tuple(name for name in names if (folder / f"{name}.png").is_file())
    if not names:
        raise EvaluationError(
            "no image of the list has a PNG in the folder", str(folder), "check the folder, the names and --list"
        )
    errors: list[DataError] = []
    total = np.zeros((view.num_classes, view.num_classes), np.int64)
    counts: list[np.ndarray] = []

    shared = SharedPalette()

    def count(name: str) -> tuple[np.ndarray, Mapping[str, Sequence[int]]] | DataError:
        try:
            return _confusion(view, folder / f"{name}.png", name, config)
        except DataError as error:
            return error

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for done, (name, found) in enumerate(zip(names, pool.map(count, names), strict=True), start=1):
            progress(done, len(names))
            if isinstance(found, DataError):
                errors.append(found)
                continue
            confusion, colors = found
            if conflict := shared.conflict(colors, f"{name}.png"):
                errors.append(DataError(conflict, str(folder / f"{name}.png"), COLORS_REMEDY))
            total += confusion
            counts.append(class_counts(confusion))
    _raise_all(errors, len(names), folder)
    if not total.any():
        raise EvaluationError(
            f"no pixel was scored: the truth is {view.ignore_index} everywhere",
            str(folder),
            "check the masks of the data set with `wsss data check`, or score another list",
        )
    return FolderScore(view.classes, names, total, np.stack(counts))


def resized(labels: np.ndarray, size: Size) -> np.ndarray:
    """Nearest neighbour by pixel centres (as Pillow does): uint8 (H, W) -> uint8 of `size` (height, width)."""
    if labels.shape == size:
        return labels
    return np.asarray(Image.fromarray(labels).resize((size[1], size[0]), Image.Resampling.NEAREST))


def _confusion(
    view: DataView, path: Path, name: str, config: FolderScoreConfig
) -> tuple[np.ndarray, Mapping[str, Sequence[int]]]:
    """Counts of an image, and the colours of its prediction."""
    if not path.is_file():
        raise DataError("the PNG is missing", str(path), "complete the folder, or say --only-present")
    label_map, truth = read_label_map(path), view.mask(name)
    prediction = label_map.values
    for size in config.truth_sizes:
        truth = resized(truth, size)
    if prediction.shape != truth.shape:
        if config.size_from == "equal":
            raise DataError(
                f"the mask is {prediction.shape[0]}x{prediction.shape[1]} (height x width), "
                f"the truth {truth.shape[0]}x{truth.shape[1]}",
                str(path),
                "give masks of the pictures' size, or say --size-from truth or prediction, or --truth-sizes",
            )
        if config.size_from == "truth":
            prediction = resized(prediction, (truth.shape[0], truth.shape[1]))
        else:
            truth = resized(truth, (prediction.shape[0], prediction.shape[1]))
    unsure = prediction == view.ignore_index
    wrong = (prediction >= view.num_classes) & ~unsure
    if wrong.any():
        values = ", ".join(str(value) for value in np.unique(prediction[wrong])[:8])
        raise DataError(
            f"the mask has values that are no class: {values}; expected 0..{view.num_classes - 1}",
            str(path),
            "check that the folder belongs to this data set and holds class ids, not colours",
        )
    if unsure.any() and config.ignore_to is None:
        raise DataError(
            f"the mask has {view.ignore_index} (unsure) in {int(unsure.sum())} pixels",
            str(path),
            "say what they count as: --ignore-to 0 for background",
        )
    confusion = confusion_matrix(
        truth, prediction, view.num_classes, view.ignore_index, prediction_ignore_to=config.ignore_to
    )
    return confusion, label_map.colors


def _raise_all(errors: Sequence[DataError], images: int, folder: Path) -> None:
    """One error for all, each remedy once."""
    if not errors:
        return
    lines = [f"{len(errors)} of {images} images cannot be scored:"]
    lines += [f"  - {error.where}: {error.what}" for error in errors[:SHOWN_PROBLEMS]]
    if len(errors) > SHOWN_PROBLEMS:
        lines.append(f"  ... and {len(errors) - SHOWN_PROBLEMS} more")
    raise DataError("\n".join(lines), str(folder), "; ".join(dict.fromkeys(error.remedy for error in errors)))
