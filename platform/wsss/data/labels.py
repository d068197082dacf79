"""Image-level labels from their sources: label files, VOC annotations, masks.

Labels are class ids as in masks: 1..num_classes-1, ascending. Every reader returns what it could read
and the problems of what it could not, so that a check can report them all.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsss.data.errors import DataError, Problem
from wsss.data.file_facts import file_facts
from wsss.data.lists import first_of, name_problem
from wsss.data.reading import read_mask
from wsss.errors import nearest
from wsss.text_file import UnreadableText, read_text, shortened

ImageLabels = dict[str, tuple[int, ...]]

_FORMAT = "write one line `name class class ...` per image, or a JSON object name -> list of class names"


def read_label_file(path: Path, classes: Sequence[str]) -> tuple[ImageLabels, list[Problem]]:
    """Labels from a text file (`name class class ...` per line) or a JSON object (name -> class names).

    Args:
        classes: class names, background first.
    """
    if path.suffix in (".npy", ".npz", ".pkl", ".pickle", ".pth", ".pt"):
        what = f"{path.suffix} label files are pickles, which can run code when read, and are never loaded"
        remedy = (
            "convert it once where you trust it: load it with allow_pickle=True and write one line "
            "`name class class ...` per image (names like 2007_000032) into a .txt file"
        )
        return {}, [Problem(what, str(path), remedy)]
    try:
        text = read_text(path)
    except FileNotFoundError:
        return {}, [Problem("the label file is missing", str(path), "check its path, or leave it out of the recipe")]
    except UnreadableText as error:
        return {}, [Problem(f"the label file cannot be read: {error}", shortened(str(path), 300), _FORMAT)]
    if path.suffix.lower() == ".json":
        return _parse_json(text, path, classes)
    return _parse_text(text, path, classes)


def _parse_text(text: str, path: Path, classes: Sequence[str]) -> tuple[ImageLabels, list[Problem]]:
    labels: ImageLabels = {}
    found: list[tuple[str, Problem]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        where = f"{path}, line {number}"
        name = words[0]
        if (reason := name_problem(name)) or "," in line:
            what = f"malformed line {shortened(line.strip())!r} ({reason or 'it holds a comma'})"
            found.append(("malformed lines", Problem(what, where, _FORMAT)))
        elif name in labels:
            problem = Problem(f"image {name} has a second line", where, "keep one line per image")
            found.append(("images with a second line", problem))
        else:
            unknown: list[Problem] = []
            labels[name] = _class_ids(words[1:], classes, where, unknown)
            found += [("unknown classes", problem) for problem in unknown]
    return labels, first_of(found, path)


def _parse_json(text: str, path: Path, classes: Sequence[str]) -> tuple[ImageLabels, list[Problem]]:
    found: list[tuple[str, Problem]] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, value in pairs:
            if name in values:
                what = f"image {shortened(name)} stands twice in the file"
                problem = Problem(what, f"{path}, image {shortened(name)}", "keep one entry")
                found.append(("images that stand twice", problem))
            values[name] = value
        return values

    try:
        content: Any = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        reason = "it nests without end" if isinstance(error, RecursionError) else error
        return {}, [Problem(f"not valid JSON: {reason}", str(path), _FORMAT)]
    if not isinstance(content, dict):
        return {}, [Problem("the JSON file holds no object", str(path), _FORMAT)]
    labels: ImageLabels = {}
    for name, words in content.items():
        where = f"{path}, image {shortened(name)}"
        if reason := name_problem(name):
            problem = Problem(f"{shortened(name)!r} is no image name ({reason})", where, _FORMAT)
            found.append(("entries with wrong names", problem))
        elif isinstance(words, list) and all(isinstance(word, str) for word in words):
            unknown: list[Problem] = []
            labels[name] = _class_ids(words, classes, where, unknown)
            found += [("unknown classes", problem) for problem in unknown]
        else:
            kinds = {"list": "a list with other things", "dict": "an object", "str": "a text", "NoneType": "null"}
            what = f"expected a list of class names, found {kinds.get(type(words).__name__, 'a number')}"
            found.append(("entries without a list of class names", Problem(what, where, _FORMAT)))
    return labels, first_of(found, path)


def _class_ids(words: Iterable[str], classes: Sequence[str], where: str, problems: list[Problem]) -> tuple[int, ...]:
    found: set[int] = set()
    for word in words:
        if word in classes[1:]:
            found.add(classes.index(word))
            continue
        near = nearest(word, classes[1:]).removeprefix("; ")
        problems.append(
            Problem(f"unknown class {shortened(word)!r}", where, near or "classes: " + ", ".join(classes[1:]))
        )
    return tuple(sorted(found))


def labels_from_annotations(
    folder: Path, names: Iterable[str], classes: Sequence[str], cache: Path | None
) -> tuple[ImageLabels, list[Problem]]:
    """Classes named by the objects of `<folder>/<name>.xml`, difficult ones included."""
    paths = {name: folder / f"{name}.xml" for name in names}
    read = file_facts(paths.values(), "annotation-classes", _annotation_classes, cache)
    problems = read.problems
    facts = {name: (path, read.facts[path]) for name, path in paths.items() if path in read.facts}
    return {name: _class_ids(words, classes, str(path), problems) for name, (path, words) in facts.items()}, problems


def _annotation_classes(path: Path) -> list[str]:
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError, LookupError, ValueError) as error:
        raise DataError(f"the annotation cannot be read: {error}", str(path), "fetch or copy it again") from error
    return sorted({(entry.findtext("name") or "").strip() for entry in root.iter("object")})


def labels_from_masks(
    paths: Mapping[str, Path], num_classes: int, ignore_index: int, cache: Path | None
) -> tuple[ImageLabels, list[Problem]]:
    """Classes present in the mask of each image (name -> mask file)."""

    def classes_in(path: Path) -> list[int]:
        values = np.unique(read_mask(path, num_classes, ignore_index))
        return [int(value) for value in values if value not in (0, ignore_index)]

    read = file_facts(paths.values(), f"mask-classes-{num_classes}-{ignore_index}", classes_in, cache)
    labels = {name: tuple(read.facts[path]) for name, path in paths.items() if path in read.facts}
    return labels, read.problems
