"""What is no error in a data set but worth a look, one finding for each kind with a count and examples."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

from wsss.data.dataset import Dataset
from wsss.data.decoded import ODDITIES, value_counts
from wsss.data.errors import Problem
from wsss.data.voc import AUG_MASKS
from wsss.formatting import count

_EXAMPLES = 3
_MANY = 4
_LIST = re.compile(r"\(?list (\w+)\)?$")
_NAMED_IMAGE = re.compile(r"image (\S+) ")
_NUMBERS = re.compile(r"\d+")
_LABEL_SUFFIXES = (".json", ".txt", ".csv", ".npy", ".npz", ".pkl")


def odd_pictures(contents: Mapping[str, Mapping[str, Any]]) -> Iterator[Problem]:
    """Pictures whose pixels are not those that a viewer shows.

    contents: image name -> `picture_contents`; without oddities where it was not decoded.
    """
    names: dict[str, list[str]] = {}
    for name, found in contents.items():
        for kind in found.get("oddities", ()):
            names.setdefault(kind, []).append(name)
    remedy = "look at one; where it matters, save these pictures as upright 8-bit sRGB without transparency"
    for kind, odd in names.items():
        yield _warning(f"{count(len(odd), 'picture')}: {ODDITIES[kind]}", odd, remedy)


def doubtful_masks(dataset: Dataset, contents: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[Problem]:
    """Masks of which no pixel counts, and masks and image-level labels that contradict each other.

    contents: image name -> `mask_contents` of its masks; those that were not decoded say nothing.
    """
    void: list[str] = []
    unnamed: list[str] = []
    unseen: list[str] = []
    for name, masks in contents.items():
        values = [set(counts) for found in masks if (counts := value_counts(found))]
        if any(found == {dataset.ignore_index} for found in values):
            void.append(name)
        elif values and dataset.image_labels.get(name):
            present, shown = set(dataset.image_labels[name]), set.union(*values) - {0, dataset.ignore_index}
            unnamed += [_with_classes(dataset, name, shown - present)] if shown - present else []
            unseen += [_with_classes(dataset, name, present - shown)] if present - shown else []
    if void:
        what = f"{count(len(void), 'mask')}: {dataset.ignore_index} in every pixel, so that none of them counts"
        yield _warning(what, void, "check what wrote them: no score can come from them")
    remedy = f"compare masks, pictures and the source of the labels ({dataset.label_provenance})"
    if unnamed:
        what = f"{count(len(unnamed), 'mask')}: it shows a class that is not in the image-level label"
        yield _warning(what, unnamed, remedy)
    if unseen:
        what = f"{count(len(unseen), 'image-level label')}: it has a class that the mask does not show"
        yield _warning(what, unseen, remedy)


def unused_label_files(dataset: Dataset) -> Iterator[Problem]:
    """Label files in the data set's folder from which no label was read."""
    files = sorted(path.name for path in dataset.root.glob("*label*") if path.suffix in _LABEL_SUFFIXES)
    if unused := [name for name in files if name not in dataset.label_provenance]:
        yield _warning(
            f"{count(len(unused), 'label file')} not used: labels come from {dataset.label_provenance!r}",
            unused,
            "name the one that is meant, dataset.image_label_file=FILE, or move the others away",
        )


def missing_aug_masks(dataset: Dataset) -> Iterator[Problem]:
    """Where the masks of VOC's train_aug come from, for those who miss them."""
    names = dataset.lists.get("train_aug", ()) if dataset.name == "voc2012" else ()
    missing = [name for name in names if not dataset.mask_path(name, "train_aug").is_file()]
    if not missing:
        return
    folder = dataset.root / AUG_MASKS
    reason = "holds .mat files, which are not read" if any(folder.glob("*.mat")) else "does not hold them"
    yield _warning(
        f"{len(missing)} of {len(names)} images of train_aug have no mask: {AUG_MASKS} {reason}",
        missing,
        f"train_aug is VOC's train and the images of SBD: put their masks as <name>.png into {AUG_MASKS}, or "
        "train on another list, dataset.train_aug_list=train",
    )


def by_kind(problems: Sequence[Problem]) -> list[Problem]:
    """Findings that say the same of many files or images of a list as one, with their number and the first of them."""
    kinds: dict[tuple[str, str, str, str], list[Problem]] = {}
    for problem in problems:
        match = _LIST.search(problem.where)
        what = _NUMBERS.sub("#", _NAMED_IMAGE.sub("an image ", problem.what))
        kinds.setdefault((what, match[1] if match else problem.where, problem.remedy, problem.severity), []).append(
            problem
        )
    shown: list[Problem] = []
    for (_, list_name, _, _), same in kinds.items():
        if len(same) < _MANY:
            shown += same
            continue
        first = same[0]
        examples = ", ".join(_subject(problem) for problem in same[:_EXAMPLES])
        where = f"list {list_name}, {len(same)} times: {examples} and {len(same) - _EXAMPLES} more (--all names them)"
        shown.append(replace(first, what=_NAMED_IMAGE.sub("an image ", first.what), where=where))
    return shown


def _subject(problem: Problem) -> str:
    """The image or file that a finding is about."""
    named = _NAMED_IMAGE.match(problem.what)
    return named[1] if named else _LIST.sub("", problem.where).strip().rpartition("/")[2]


def _with_classes(dataset: Dataset, name: str, labels: Set[int]) -> str:
    return f"{name} ({', '.join(dataset.classes[label] for label in sorted(labels))})"


def _warning(what: str, examples: Sequence[str], remedy: str) -> Problem:
    more = f" and {len(examples) - _EXAMPLES} more" if len(examples) > _EXAMPLES else ""
    return Problem(what, ", ".join(examples[:_EXAMPLES]) + more, remedy, severity="warning")
