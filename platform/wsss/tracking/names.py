"""Names and texts as MLflow accepts them: metric names, flattened recipe keys, tag values."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import Any

from wsss.tracking.redact import redact_value

# Limits of MLflow 3.17 (mlflow.utils.validation); beyond them its client cuts silently.
PARAM_CHARACTERS = 6000
TAG_CHARACTERS = 8000
NAME_CHARACTERS = 250


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
    flat: dict[str, str] = {}
    _flatten("", values, flat)
    return flat


def tag_texts(tags: Mapping[str, Any]) -> dict[str, str]:
    """Tags as texts, redacted and cut visibly at 8000 characters; None and "" are left out."""
    return {
        clean_key(key): cut_text(redact_value(key, value), TAG_CHARACTERS)
        for key, value in tags.items()
        if value is not None and value != ""
    }


def clean_key(key: str) -> str:
    """A parameter or tag key that MLflow accepts (the rules of metric names)."""
    return metric_name(key)


def cut_text(text: str, limit: int) -> str:
    """`text`, or its beginning and a note of its full length when it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    note = f"... [cut, {len(text)} characters]"
    return text[: limit - len(note)] + note


def _flatten(prefix: str, value: Any, flat: dict[str, str]) -> None:
    if isinstance(value, Mapping) and (value or not prefix):
        for key, inner in value.items():
            _flatten(f"{prefix}.{key}" if prefix else str(key), inner, flat)
    elif _holds_mappings(value):
        for index, inner in enumerate(value):
            _flatten(f"{prefix}.{index}", inner, flat)
    else:
        flat[clean_key(prefix)] = cut_text(redact_value(prefix, value), PARAM_CHARACTERS)


def _holds_mappings(value: Any) -> bool:
    is_list = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    return is_list and any(isinstance(inner, Mapping) for inner in value)
