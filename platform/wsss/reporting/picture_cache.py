"""Pictures that were drawn before: a report of stages that are all in the store draws nothing anew.

A picture is known by the function that draws it, by what it is given, by the source of this package and by matplotlib's
version. Drawing half a dozen plots takes longer than all else in a run without work.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from wsss.files import write_file

# A picture that no report has used for so long is removed.
_KEPT_SECONDS = 30 * 24 * 3600


@dataclass(frozen=True)
class PictureCache:
    """Pictures by their content in `folder`; None draws every one. Several processes may use a folder at once."""

    folder: Path | None = None

    def draw(self, path: Path, plot: Callable[..., Path], *given: Any, **named: Any) -> Path:
        """`plot(*given, path=path, **named)`, or a copy of what that drew before. Returns `path`."""
        if self.folder is None:
            return plot(*given, path=path, **named)
        known = self.folder / f"{picture_digest(plot, given, named)}.png"
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(known.read_bytes())
            known.touch()  # used now
            return path
        plot(*given, path=path, **named)
        # A full disk or a cache that can not be written costs the next report its time, not this one its picture.
        with suppress(OSError):
            write_file(known, path)
            _remove_unused(self.folder)
        return path


def picture_digest(plot: Callable[..., Path], given: Sequence[Any], named: Mapping[str, Any]) -> str:
    """What a picture depends on, hashed (32 hex digits)."""
    digest = hashlib.sha256(f"{_drawing_code()} {plot.__module__}.{plot.__qualname__}".encode())
    for part in _parts([*given, dict(named)]):
        digest.update(part)
    return digest.hexdigest()[:32]


@cache
def _drawing_code() -> str:
    digest = hashlib.sha256(matplotlib.__version__.encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _parts(value: Any) -> Iterable[bytes]:
    """The value as bytes, in which its parts can not run into each other."""
    if isinstance(value, np.ndarray):
        yield f"array {value.dtype} {value.shape} ".encode()
        yield np.ascontiguousarray(value).tobytes()
    elif is_dataclass(value):
        yield f"{type(value).__name__} {len(fields(value))} ".encode()
        for field in fields(value):
            yield from _parts(getattr(value, field.name))
    elif isinstance(value, Mapping):
        # The order of a mapping is that of lines and colors.
        yield f"mapping {len(value)} ".encode()
        for key, item in value.items():
            yield from _parts(key)
            yield from _parts(item)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        yield f"sequence {len(value)} ".encode()
        for item in value:
            yield from _parts(item)
    elif value is None or isinstance(value, str | int | float | np.generic):
        text = repr(value).encode()
        yield f"{type(value).__name__} {len(text)} ".encode() + text
    else:
        raise TypeError(f"{type(value).__name__} in a picture has no digest")


def _remove_unused(folder: Path) -> None:
    oldest = time.time() - _KEPT_SECONDS
    for file in folder.glob("*.png"):
        if file.stat().st_mtime < oldest:
            file.unlink()
