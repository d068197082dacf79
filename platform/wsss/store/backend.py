"""What a place that holds artifacts must be able to do; done by `local.LocalFiles` and `s3.S3Files`.

Paths are relative, with forward slashes: `<stage>/<key>/<file>`. Names that begin with a dot are the back
end's own (locks, leases, temporary files) and never appear in a listing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from wsss.errors import WsssError

# Called once, with a description of the holder, when somebody else computes the wanted artifact.
OnWait = Callable[[str], None]


class StoreError(WsssError):
    """The store cannot be read or written, or an artifact in it is damaged."""


class DamagedArtifact(StoreError):
    """What is there of an artifact is not what was stored. A run sets it aside and computes it again."""

    def __init__(self, what: str, where: str = "", remedy: str = "") -> None:
        # A loader process of torch raises an error again from its text alone.
        super().__init__(what, where, remedy or "run the recipe again: what is damaged is set aside and computed anew")


@dataclass(frozen=True)
class Entry:
    """A file: `size` in bytes, `modified` in seconds since 1970 on the clock of the place."""

    size: int
    modified: float


class Backend(Protocol):
    """Bytes under relative paths. Every method raises StoreError when the place itself fails."""

    @property
    def url(self) -> str:
        """Where this is, for people and for reopening; never holds a secret."""
        ...

    def describe(self, path: str) -> str:
        """Full location of a path, for messages."""
        ...

    def read(self, path: str) -> bytes | None:
        """Content, or None when there is no such path.

        Raises:
            DamagedArtifact: it is there and cannot be read, while its folder can.
        """

    def size(self, path: str) -> int | None:
        """Bytes, or None when there is no such path. Never answers from a listing that may lag behind."""

    def sizes(self, folder: str) -> dict[str, int]:
        """Path relative to `folder` -> bytes, for everything below it; empty when there is nothing."""
        ...

    def entries(self) -> dict[str, Entry]:
        """Everything that lies here, with what `sizes` hides."""
        ...

    def write(self, path: str, content: bytes | Path) -> None:
        """Put bytes, or the content of a local file, at a path: all of it is there afterwards, or nothing."""

    def remove(self, path: str) -> None:
        """Remove one file; no error when it is absent."""

    def remove_folder(self, folder: str) -> None:
        """Remove everything below a folder, with what `sizes` hides; no error when it is absent."""

    def remove_leftovers(self, folder: str) -> None:
        """Remove temporary files that dead writers left in a folder."""

    def move(self, path: str, target: str) -> None:
        """Give a file, or everything below a folder, another path; no error when it is absent."""

    def faults(self, folder: str, files: Mapping[str, Mapping[str, Any]], *, anew: bool = False) -> dict[str, str]:
        """What is wrong with files that `folder` should hold: file -> in words, for those that are not as they should.

        A folder compares checksums, of a file that has not changed since its last comparison only if `anew`. An
        object store compares sizes, and checksums if `anew`; else those of a file follow when it is downloaded.

        Args:
            files: name -> `size` and `sha256`.
        """
        ...

    def local_path(self, path: str, size: int, sha256: str, *, anew: bool) -> Path:
        """A local file with the content of `path`. Its size is compared, and if `anew` its checksum.

        Raises:
            DamagedArtifact: they differ, or the file is missing.
        """
        ...

    def check_writable(self) -> None:
        """Write, read back and remove a few bytes; StoreError says what is wrong when that fails."""

    def single_flight(self, name: str, on_wait: OnWait | None) -> AbstractContextManager[None]:
        """Hold `name` exclusively among processes and threads; another takes over when the holder dies."""
        ...


def sha256_of(content: bytes | Path) -> tuple[str, int]:
    """Hex digest and number of bytes of some bytes, or of a local file."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest(), len(content)
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
