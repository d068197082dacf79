"""Names and texts as MLflow accepts them: metric names, flattened recipe keys, tag values."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from wsss.tracking.redact import redact_value

# Limits of MLflow 3.17 (mlflow.utils.validation); beyond them its client cuts silently.
PARAM_CHARACTERS = 6000
TAG_CHARACTERS = 8000
NAME_CHARACTERS = 250
# Of a run's name: more than these no list of runs shows.
_DIFFERENCES, _DIFFERENCE_CHARACTERS = 3, 40
NOTE_TAG = "mlflow.note.content"  # where MLflow keeps the note of a run or an experiment


def reproductions(dataset: str) -> str:
    """Experiment of all reproductions on a data set: its page puts the methods side by side."""
    return dataset


def sweep_experiment(dataset: str, sweep_id: str) -> str:
    """Experiment of one sweep, whose trials are compared with each other."""
    return f"{dataset}, {sweep_id}"


def run_name(method: str, recipe_name: str, seed: int, differences: Sequence[str] = ()) -> str:
    """Name of a reproduction; it begins with what tells runs apart, as lists cut off the end.

    differences: what differs from the recipe, in words; the first few are named and the others counted.
    """
    shown = [cut_text(text, _DIFFERENCE_CHARACTERS, "...") for text in differences[:_DIFFERENCES]]
    more = len(differences) - len(shown)
    words = ", ".join([*shown, *([f"{more} more"] if more else [])])
    return f"{method} {recipe_name}{f' with {words}' if words else ''}, seed {seed}"


def metric_name(*parts: str) -> str:
    """Join parts to a name that MLflow accepts, e.g. ("pseudo_label", "iou_train", "aeroplane").

    MLflow allows letters, digits, `_ - . : /` and spaces, no leading slash and no `..`. Anything else becomes
    `_`, so that a class name with an odd character never costs its number. An overlong name keeps its end,
    where the class is.
    """
    joined = "/".join(part.strip("/") for part in parts if part.strip("/"))
    cleaned = re.sub(r"[^\w.\-: /]", "_", joined)
    normal = posixpath.normpath(re.sub(r"/+", "/", cleaned)) if cleaned else "unnamed"
    normal = "/".join("_" if piece in {"..", "."} else piece for piece in normal.split("/"))
    return normal if len(normal) <= NAME_CHARACTERS else "_" + normal[-(NAME_CHARACTERS - 1) :].lstrip("/")


def flatten_params(values: Mapping[str, Any]) -> dict[str, str]:
    """Nested mappings to dotted keys; every value as text, redacted, cut visibly at 6000 characters.

    Lists and tuples of plain values stay one value; lists that hold mappings get their index in the key.
    """
    return {metric_name(key): cut_text(redact_value(key, value), PARAM_CHARACTERS) for key, value in _flat("", values)}


def tag_texts(tags: Mapping[str, Any]) -> dict[str, str]:
    """Tags as texts, redacted and cut visibly at 8000 characters; None and "" are left out."""
    return {
        metric_name(key): cut_text(redact_value(key, value), TAG_CHARACTERS)
        for key, value in tags.items()
        if value is not None and value != ""
    }


def cut_text(text: str, limit: int, note: str = "") -> str:
    """`text`, or its beginning and a note (of its full length) when it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    note = note or f"... [cut, {len(text)} characters]"
    return text[: limit - len(note)] + note


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    inner: Iterable[tuple[Any, Any]]
    if isinstance(value, Mapping) and (value or not prefix):
        inner = value.items()
    elif isinstance(value, list | tuple) and any(isinstance(each, Mapping) for each in value):
        inner = enumerate(value)
    else:
        yield prefix, value
        return
    for key, each in inner:
        yield from _flat(f"{prefix}.{key}" if prefix else str(key), each)
