"""A process that trains from image-level labels cannot open masks, by whatever road.

The guard sits on Python's audit events, so that it also holds for Pillow, numpy, torch and code that
was never told about it. It does not see files that C libraries open by themselves (cv2.imread) nor
child processes that are started afresh; no stage of the platform reads pictures in these ways.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsss.data.errors import LabelFirewallError

_READING_EVENTS = frozenset({"open", "os.listdir", "os.scandir", "os.link", "os.rename"})
_REMEDY = (
    "train from images and image labels alone; a fully supervised stage declares 'masks' in its reads and "
    "sets fully_supervised=True"
)


@dataclass
class MaskGuard:
    """One active prohibition, and the paths that were asked for in spite of it."""

    prefixes: tuple[str, ...]
    files: frozenset[str]
    violations: list[str] = field(default_factory=list)

    def covers(self, path: str) -> bool:
        """Whether an absolute path is a mask folder, lies below one, or is the target of a linked mask."""
        return path in self.files or f"{path}/".startswith(self.prefixes)


_lock = threading.Lock()
_active: tuple[MaskGuard, ...] = ()
_hook_installed = False


@contextmanager
def forbid_mask_reading(folders: Iterable[Path]) -> Iterator[MaskGuard]:
    """Within the context, opening or listing anything below the folders raises LabelFirewallError.

    It holds for every thread of the process, through relative paths and symbolic links, and ends with
    the context. Contexts may be nested.

    Raises:
        LabelFirewallError: at the forbidden access; and when the context ends without an error although
            something asked for a mask and swallowed the refusal.
    """
    global _active, _hook_installed
    guard = _guard_of(list(folders))
    with _lock:
        if not _hook_installed:
            sys.addaudithook(_on_audit_event)  # cannot be removed again, hence the flag `_active`
            _hook_installed = True
        _active = (*_active, guard)
    try:
        yield guard
    finally:
        with _lock:
            _active = tuple(other for other in _active if other is not guard)
    if guard.violations:
        raise LabelFirewallError(
            f"{len(guard.violations)} attempts to read masks were refused, and the refusals swallowed",
            guard.violations[0],
            _REMEDY,
        )


def _guard_of(folders: list[Path]) -> MaskGuard:
    prefixes: set[str] = set()
    linked: set[str] = set()
    for folder in folders:
        prefixes.update({os.path.abspath(folder) + "/", os.path.realpath(folder) + "/"})  # noqa: PTH100
        if folder.is_dir():
            with os.scandir(folder) as entries:
                linked.update(os.path.realpath(entry.path) for entry in entries if entry.is_symlink())
    return MaskGuard(tuple(sorted(prefixes)), frozenset(linked))


def _on_audit_event(event: str, arguments: tuple[Any, ...]) -> None:
    if not _active or event not in _READING_EVENTS:
        return
    path = arguments[0]
    if path is None:
        path = "."  # os.listdir() and os.scandir() of the current folder
    if not isinstance(path, (str, bytes, os.PathLike)):
        return  # a descriptor: what opened it was looked at
    absolute = os.path.abspath(os.fsdecode(path))  # noqa: PTH100
    guards = [guard for guard in _active if guard.covers(absolute)]
    if not guards:
        real = os.path.realpath(absolute)
        guards = [guard for guard in _active if guard.covers(real)]
    if guards:
        for guard in guards:
            guard.violations.append(absolute)
        raise LabelFirewallError("a mask was about to be read during weakly supervised training", absolute, _REMEDY)
