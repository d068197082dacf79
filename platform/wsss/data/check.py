"""Look at a whole data set and report everything that is wrong with it at once."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import ImageFile

from wsss.data.config import DatasetConfig
from wsss.data.dataset import OFFICIAL_COUNTS, Dataset, assemble_dataset
from wsss.data.decoded import mask_contents, picture_contents, value_counts
from wsss.data.doubts import doubtful_masks, missing_aug_masks, odd_pictures, unused_label_files
from wsss.data.errors import DataError, Problem, raise_problems
from wsss.data.file_facts import FileFacts, content_facts
from wsss.data.layout import Progress
from wsss.data.palette import SharedPalette
from wsss.data.reading import COLORS_REMEDY, mask_header, read_header, require_classes, require_same_size

_ALL = frozenset({"images", "image_labels", "masks"})


@dataclass(frozen=True)
class ListSummary:
    """Counts of one list.

    Attributes:
        full_count: images of that list in the full data set, None where that has no meaning.
        masks: how many have a mask file.
        labeled: how many have an image-level label.
        class_counts: class name -> images with it, by image-level labels.
    """

    name: str
    images: int
    full_count: int | None
    masks: int
    labeled: int
    class_counts: dict[str, int]


@dataclass(frozen=True)
class DatasetSummary:
    """What a data set holds, for people."""

    name: str
    root: Path
    classes: tuple[str, ...]
    label_provenance: str
    mask_provenance: str
    lists: tuple[ListSummary, ...]


def summarize_dataset(dataset: Dataset) -> DatasetSummary:
    """Counts per list; looks for mask files but opens none."""
    summaries: list[ListSummary] = []
    for list_name, names in dataset.lists.items():
        labels = [dataset.image_labels[name] for name in names if name in dataset.image_labels]
        counts = Counter(label for present in labels for label in present)
        summaries.append(
            ListSummary(
                list_name,
                len(names),
                OFFICIAL_COUNTS.get(dataset.name, {}).get(list_name),
                sum(dataset.mask_path(name, list_name).is_file() for name in names),
                len(labels),
                {dataset.classes[label]: counts[label] for label in range(1, dataset.num_classes)},
            )
        )
    return DatasetSummary(
        dataset.name,
        dataset.root,
        dataset.classes,
        dataset.label_provenance,
        dataset.files.mask_provenance,
        tuple(summaries),
    )


def check_dataset(
    data: Dataset | DatasetConfig,
    home: Path | None = None,
    lists: Iterable[str] | None = None,
    quick: bool = False,
    progress: Progress | None = None,
) -> list[Problem]:
    """Every problem of a data set: folder, lists, pictures, masks, image-level labels.

    Args:
        data: a data set, or a configuration (then `home` is needed, and lists and label files that
            cannot be read are part of the report).
        lists: list names; None for all. A list that is not there is a problem.
        quick: look at headers and sizes alone, without decoding pixels.
        progress: called with (images done, images in all).
    """
    problems: list[Problem] = []
    if isinstance(data, DatasetConfig):
        if home is None:
            raise ValueError("checking a configuration needs `home`")
        assembled, problems = assemble_dataset(data, home)
        if assembled is None:
            return problems
        data = assembled
    wanted = []
    for list_name in data.lists if lists is None else lists:
        try:
            data.names(list_name)
            wanted.append(list_name)
        except DataError as error:
            problems.append(Problem.of(error))
    found = _problems(data, wanted, _ALL, _headers if quick else partial(_decoded, afresh=True), progress)
    return _unique([*problems, *found, *unused_label_files(data), *missing_aug_masks(data)])


def preflight(
    dataset: Dataset,
    lists: str | Iterable[str] | None,
    reads: Iterable[str],
    decode: bool = True,
    progress: Progress | None = None,
) -> None:
    """Checks before a run: lists, labels, and every file of what would be read.

    Args:
        lists: one list or several; None for all.
        reads: what the run reads of them.
        decode: decode the files whose content was not decoded before; otherwise look at existence and headers alone.
        progress: called with (files done, files in all), of those that are decoded.

    Raises:
        DataError: naming all problems of what would be read.
    """
    if lists is None:
        lists = tuple(dataset.lists)
    wanted = [lists] if isinstance(lists, str) else sorted(set(lists))
    for list_name in wanted:
        dataset.names(list_name)
    problems = _unique(_problems(dataset, wanted, set(reads), _decoded if decode else _headers, progress))
    raise_problems(problems, f"data set {dataset.name} in {dataset.source}")


Look = Callable[[Dataset, Collection[Path], Collection[Path], Progress | None], FileFacts]


def _headers(
    dataset: Dataset, pictures: Collection[Path], masks: Collection[Path], progress: Progress | None
) -> FileFacts:
    """The size of pictures and masks by their headers, of which there are too many a second to tell progress."""
    found, given = FileFacts(), frozenset(masks)

    def look(path: Path) -> None:
        try:
            if path in given:
                found.facts[path] = {"size": mask_header(path)}
            else:
                found.facts[path] = {"size": read_header(path)[1]}
        except DataError as error:
            found.errors[path] = error

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(look, (*pictures, *masks)))
    return found


def _decoded(
    dataset: Dataset,
    pictures: Collection[Path],
    masks: Collection[Path],
    progress: Progress | None,
    afresh: bool = False,
) -> FileFacts:
    """What `picture_contents` and `mask_contents` say, remembered by content."""
    computes = {"picture-1": picture_contents, "mask-1": mask_contents}
    kinds = {**dict.fromkeys(pictures, "picture-1"), **dict.fromkeys(masks, "mask-1")}
    with _truncation_is_an_error():
        return content_facts(kinds, computes, dataset.cache, progress, afresh)


def _problems(
    dataset: Dataset, lists: list[str], reads: Set[str], look: Look, progress: Progress | None = None
) -> list[Problem]:
    """Problems of what is read of the lists; an image in two of them is looked at once."""
    problems = list(_overlaps(dataset))
    labeled = _first_lists(dataset, [list_name for list_name in lists if list_name != "test"])
    if "image_labels" in reads:
        problems += _unlabeled(dataset, labeled)
    masks: dict[str, dict[Path, None]] = {}
    if "masks" in reads:
        problems += _unmade_masks(dataset, lists)
        for list_name in lists:
            for name in dataset.lists[list_name] if list_name != "test" else ():
                masks.setdefault(name, {})[dataset.mask_path(name, list_name)] = None
    where = _first_lists(dataset, lists)
    pictures = {name: dataset.image_path(name) for name in where}
    seen = [path for name, path in pictures.items() if "images" in reads or (name in masks and path.is_file())]
    every_mask = [path for paths in masks.values() for path in paths]
    found = look(dataset, seen, every_mask, _by_image(progress, len(where), len(seen) + len(every_mask)))
    shared: dict[Path, SharedPalette] = {}
    wrong: set[Path] = set()
    for name, list_name in where.items():
        for path, error in _check_image(dataset, name, found, list(masks.get(name, ())), shared):
            wrong.add(path)
            problems.append(Problem(error.what, f"{error.where} (list {list_name})", error.remedy))
    sound = {name: [found.facts[path] for path in paths if path not in wrong] for name, paths in masks.items()}
    return [
        *problems,
        *odd_pictures({name: found.facts.get(path, {}) for name, path in pictures.items()}),
        *doubtful_masks(dataset, sound),
    ]


def _check_image(
    dataset: Dataset, name: str, found: FileFacts, masks: list[Path], shared: dict[Path, SharedPalette]
) -> Iterator[tuple[Path, DataError]]:
    """Files that are wrong, picture and masks, as far as they were looked at, and what is wrong with them."""
    path = dataset.image_path(name)
    size: tuple[int, int] | None = None
    if path in found.errors:
        yield path, found.errors[path]
    elif path in found.facts:
        size = _size(found.facts[path])
        try:
            _require_stated_size(dataset, name, size)
        except DataError as error:
            yield path, error
    for mask_path in masks:
        if mask_path in found.errors:
            yield mask_path, found.errors[mask_path]
            continue
        facts = found.facts[mask_path]
        try:
            require_classes(value_counts(facts), dataset.num_classes, dataset.ignore_index, mask_path)
            folder = shared.setdefault(mask_path.parent, SharedPalette())
            if conflict := folder.conflict(facts.get("colors", {}), mask_path.name):
                raise DataError(conflict, str(mask_path), COLORS_REMEDY)
            if size is not None:
                require_same_size(_size(facts), size, mask_path)
        except DataError as error:
            yield mask_path, error


def _by_image(progress: Progress | None, images: int, files: int) -> Progress | None:
    """Progress in files as progress in images, each number of images once."""
    if progress is None or images == files:
        return progress
    told = 0

    def tell(done: int, total: int) -> None:
        nonlocal told
        for number in range(told + 1, done * images // total + 1):
            progress(number, images)
            told = number

    return tell


def _size(facts: Mapping[str, Any]) -> tuple[int, int]:
    height, width = facts["size"]
    return height, width


def _first_lists(dataset: Dataset, lists: Iterable[str]) -> dict[str, str]:
    """Image name -> the first of the lists that has it."""
    found: dict[str, str] = {}
    for list_name in lists:
        for name in dataset.lists[list_name]:
            found.setdefault(name, list_name)
    return found


def _require_stated_size(dataset: Dataset, name: str, size: tuple[int, int]) -> None:
    stated = dataset.files.size(name)
    if stated is not None and stated != size:
        raise DataError(
            f"the picture is {size[0]}x{size[1]} (height x width), its annotations are for {stated[0]}x{stated[1]}",
            str(dataset.image_path(name)),
            "use pictures and annotations of one version of the data set",
        )


def _unmade_masks(dataset: Dataset, lists: Iterable[str]) -> Iterator[Problem]:
    """What keeps masks from being made, where they are made and not given."""
    for list_name in lists:
        try:
            dataset.prepare_masks(list_name)
        except DataError as error:
            yield Problem.of(error)


def _overlaps(dataset: Dataset) -> Iterator[Problem]:
    """Images of train or train_aug that are in val as well: numbers on val would be worth nothing."""
    validation = set(dataset.lists.get("val", ()))
    for list_name in ("train", "train_aug"):
        shared = [name for name in dataset.lists.get(list_name, ()) if name in validation]
        if shared:
            yield Problem(
                f"{len(shared)} images are both in {list_name} and in val, e.g. {', '.join(shared[:3])}",
                f"lists {list_name} and val",
                "remove them from one of the two lists",
            )


def _unlabeled(dataset: Dataset, where: Mapping[str, str]) -> Iterator[Problem]:
    for name, list_name in where.items():
        if name not in dataset.image_labels:
            yield Problem(
                f"image {name} has no image-level label",
                f"list {list_name}",
                f"add it to the label source ({dataset.label_provenance})",
            )
        elif not dataset.image_labels[name]:
            yield Problem(
                f"image {name} has an image-level label without any class",
                f"list {list_name}",
                "check it against the picture; a classifier learns from it that nothing is there",
                severity="warning",
            )


def _unique(problems: list[Problem]) -> list[Problem]:
    """In order, each once: a mask that is missing spoils the label made from it as well."""
    return list(dict.fromkeys(problems))


@contextmanager
def _truncation_is_an_error() -> Iterator[None]:
    """Pillow fills truncated files with grey when another library asked it to; a check must not."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before
