"""An instances file of COCO: which categories each picture has, what is wrong in the file, and semantic masks.

The rule of the masks: the 80 categories in the order of their ids become classes 1..80, background is 0. Crowd
regions are painted first, over them the objects from large to small (`area` of the annotation, equal ones in the
order of the file), so that a small object in front of a large one stays visible.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wsss.data.coco_categories import CLASS_OF_CATEGORY, COCO_CATEGORIES
from wsss.data.coco_regions import region_mask, region_problem
from wsss.data.errors import DataError, Problem
from wsss.data.file_facts import sha256_of_file

Array = np.ndarray[Any, np.dtype[Any]]

# Raised when the rule changes: made masks and summaries are kept by it.
RULE_VERSION = 1
IMAGE_NAME = re.compile(r"COCO_(train2014|val2014)_(\d{12})")
_LISTED = 100
_REMEDY = "use the original annotation file of COCO 2014"


@dataclass(frozen=True)
class InstancesSummary:
    """What a run needs to know of an instances file, without its regions.

    Attributes:
        sha256: of the file.
        sizes: image name -> (height, width), all images of the file by rising id.
        classes: image name -> classes 1..80 of its annotations, crowd regions included, ascending.
        problems: everything that is wrong in the file.
    """

    sha256: str
    sizes: Mapping[str, tuple[int, int]]
    classes: Mapping[str, tuple[int, ...]]
    problems: tuple[Problem, ...]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> InstancesSummary:
        """From the plain values of `summarize_instances`."""
        return cls(
            values["sha256"],
            {name: (height, width) for name, (height, width, _) in values["images"].items()},
            {name: tuple(classes) for name, (_, _, classes) in values["images"].items()},
            tuple(Problem(*problem) for problem in values["problems"]),
        )


@dataclass
class _Findings:
    """Problems of a file, the first of each kind in full and the number of the others."""

    path: Path
    found: list[Problem] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str, what: str, where: str, remedy: str = _REMEDY) -> None:
        self.kinds[kind] += 1
        if self.kinds[kind] <= _LISTED:
            self.found.append(Problem(what, f"{self.path}, {where}", remedy))

    def all(self) -> list[Problem]:
        more = [
            Problem(f"{number - _LISTED} further problems of the kind: {kind}", str(self.path), _REMEDY)
            for kind, number in self.kinds.items()
            if number > _LISTED
        ]
        return [*self.found, *more]


def read_instances(path: Path) -> Mapping[str, Any]:
    """The content of an instances file.

    Raises:
        DataError: missing, no JSON, or without the lists `images`, `annotations` and `categories`.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"the annotation file cannot be read: {error.strerror}", str(path), _REMEDY) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"not valid JSON: {error}", str(path), "copy or unpack the file again") from error
    lists = ("images", "annotations", "categories")
    missing = [name for name in lists if not isinstance(content, dict) or not isinstance(content.get(name), list)]
    if missing:
        raise DataError(f"the file has no list {', '.join(missing)}", str(path), _REMEDY)
    return content


def summarize_instances(path: Path) -> dict[str, Any]:
    """Plain values for `InstancesSummary.of`, to be remembered beside the file's size and time.

    Raises:
        DataError: as `read_instances`.
    """
    content = read_instances(path)
    findings = _Findings(path)
    _check_categories(content["categories"], findings)
    images: dict[int, tuple[str, int, int]] = {}
    for entry in content["images"]:
        if (image := _image(entry, path, findings)) is not None:
            if image[0] in images:
                findings.add("image id twice", f"image id {image[0]} stands twice", "images")
            images[image[0]] = image[1:]
    classes: dict[int, set[int]] = {number: set() for number in images}
    for entry in content["annotations"]:
        number = _check_annotation(entry, images, findings)
        if number is not None:
            classes[number].add(CLASS_OF_CATEGORY[entry["category_id"]])
    return {
        "sha256": sha256_of_file(path),
        "images": {
            name: [height, width, sorted(classes[number])] for number, (name, height, width) in sorted(images.items())
        },
        "problems": [[problem.what, problem.where, problem.remedy] for problem in findings.all()],
    }


def annotations_of(content: Mapping[str, Any], names: Iterable[str]) -> dict[str, list[Mapping[str, Any]]]:
    """Image name -> its annotations, in the order of the file, for the names that the file has."""
    wanted = {int(match[2]): name for name in names if (match := IMAGE_NAME.fullmatch(name))}
    known = {entry["id"] for entry in content["images"]}
    found: dict[str, list[Mapping[str, Any]]] = {wanted[number]: [] for number in wanted if number in known}
    for entry in content["annotations"]:
        name = wanted.get(entry["image_id"])
        if name is not None and name in found:
            found[name].append(entry)
    return found


def semantic_mask(annotations: Sequence[Mapping[str, Any]], height: int, width: int) -> Array:
    """Annotations of one picture as a label map, (height, width) uint8, by the rule at the top of this file.

    Raises:
        DataError: a region cannot be decoded, its category is none of the 80, or pycocotools is not installed.
    """
    labels = np.zeros((height, width), dtype=np.uint8)
    for entry in sorted(annotations, key=lambda one: (not one.get("iscrowd", 0), -float(one["area"]))):
        if entry["category_id"] not in CLASS_OF_CATEGORY:
            raise DataError(f"unknown category id {entry['category_id']}", f"annotation {entry.get('id')}", _REMEDY)
        labels[region_mask(entry["segmentation"], height, width)] = CLASS_OF_CATEGORY[entry["category_id"]]
    return labels


def _check_categories(entries: Sequence[Any], findings: _Findings) -> None:
    found: dict[Any, Any] = {entry.get("id"): entry.get("name") for entry in entries if isinstance(entry, dict)}
    for number in sorted({*COCO_CATEGORIES, *found}, key=str):
        ours, theirs = COCO_CATEGORIES.get(number), found.get(number)
        if ours != theirs:
            findings.add(
                "categories",
                f"category {number} is {theirs!r} in the file; expected {ours!r}",
                "categories",
                "use annotations with the 80 categories of COCO",
            )


def _image(entry: Any, path: Path, findings: _Findings) -> tuple[int, str, int, int] | None:
    """Id, name, height and width of an `images` entry."""
    values = entry if isinstance(entry, dict) else {}
    number, file_name = values.get("id"), values.get("file_name")
    size = (values.get("height"), values.get("width"))
    if not isinstance(number, int) or not isinstance(file_name, str) or not all(_positive(side) for side in size):
        findings.add("image entry", f"an image has no id, file_name, height or width: {str(entry)[:80]}", "images")
        return None
    name = file_name.removesuffix(".jpg")
    match = IMAGE_NAME.fullmatch(name)
    split = path.stem.rpartition("_")[2]
    if match is None or int(match[2]) != number or match[1] != split:
        findings.add(
            "file name",
            f"file_name is {file_name!r}; expected COCO_{split}_{number:012d}.jpg",
            f"image id {number}",
            "use the annotation files of COCO 2014 (those of 2017 name files otherwise)",
        )
        return None
    return number, name, values["height"], values["width"]


def _check_annotation(entry: Any, images: Mapping[int, tuple[str, int, int]], findings: _Findings) -> int | None:
    """Id of the picture that an annotation belongs to; None when the annotation cannot be used."""
    if not isinstance(entry, dict):
        findings.add("annotation entry", f"an annotation is no object: {str(entry)[:80]}", "annotations")
        return None
    where = f"annotation {entry.get('id')}"
    number, category = entry.get("image_id"), entry.get("category_id")
    if not isinstance(number, int) or number not in images:
        findings.add("image id", f"image_id {number} is no image of the file", where)
        return None
    name, height, width = images[number]
    where += f" of {name}"
    usable = True
    if category not in CLASS_OF_CATEGORY:
        findings.add("category id", f"unknown category id {category}", where)
        usable = False
    area = entry.get("area")
    if not isinstance(area, int | float) or entry.get("iscrowd", 0) not in (0, 1):
        findings.add("annotation values", f"area is {area!r}, iscrowd {entry.get('iscrowd')!r}", where)
        usable = False
    problem = region_problem(entry.get("segmentation"), height, width)
    if problem:
        findings.add("segmentation", problem, where)
        usable = False
    return number if usable else None


def _positive(value: Any) -> bool:
    return isinstance(value, int) and value > 0
