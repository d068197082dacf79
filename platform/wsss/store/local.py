"""A folder as the place that holds artifacts. Also right for a folder on a shared file system."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from wsss.files import locked, remove_unfinished, write_file
from wsss.store.backend import OnWait, StoreError

_REMOVED = ".removed-"


@dataclass(frozen=True)
class LocalFiles:
    """Files below a folder, which is created at the first write."""

    root: Path

    @property
    def url(self) -> str:
        return str(self.root)

    def describe(self, path: str) -> str:
        return str(self.root / path)

    def read(self, path: str) -> bytes | None:
        with explained(self.root / path), suppress(FileNotFoundError, NotADirectoryError):
            return (self.root / path).read_bytes()

    def size(self, path: str) -> int | None:
        with explained(self.root / path), suppress(FileNotFoundError, NotADirectoryError):
            return (self.root / path).stat().st_size

    def sizes(self, folder: str) -> dict[str, int]:
        found = {}
        base = self.root / folder
        with explained(base):
            for at, folders, files in os.walk(base, onerror=_raise_unless_gone):
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                for name in sorted(files):
                    if not name.startswith("."):
                        path = Path(at, name)
                        with suppress(FileNotFoundError):  # removed since it was listed
                            found[path.relative_to(base).as_posix()] = path.stat().st_size
        return found

    def write(self, path: str, content: bytes | Path) -> None:
        target = self.root / path
        with explained(target):
            write_file(target, content, durable=True)

    def remove(self, path: str) -> None:
        with explained(self.root / path):
            (self.root / path).unlink(missing_ok=True)

    def remove_folder(self, folder: str) -> None:
        base = self.root / folder
        with explained(base):
            if not base.is_dir():
                return
            # One rename hides all of it at once; a crash afterwards leaves rubbish, never half an artifact.
            away = base.with_name(f"{_REMOVED}{base.name}-{uuid.uuid4().hex[:8]}")
            base.rename(away)
            for removed in base.parent.glob(f"{_REMOVED}*"):  # also those of a delete that was killed
                shutil.rmtree(removed, ignore_errors=True)
            with suppress(OSError):  # the folder of the stage, when this was its last artifact
                base.parent.rmdir()

    def remove_leftovers(self, folder: str) -> None:
        remove_unfinished(self.root / folder)

    def local_path(self, path: str, size: int, sha256: str) -> Path:
        found = self.size(path)
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes instead of {size}"
            artifact = "/".join(path.split("/")[:2])
            raise StoreError(
                f"a file of the artifact {state}",
                self.describe(path),
                f"remove the artifact (`wsss rm {artifact}`, or delete its folder), run the stage again",
            )
        return self.root / path

    def check_writable(self) -> None:
        probe = f".probe-{uuid.uuid4().hex[:8]}"
        self.write(probe, b"wsss")
        self.remove(probe)

    def single_flight(self, name: str, on_wait: OnWait | None) -> AbstractContextManager[None]:
        return held(self.root / ".locks" / f"{name}.lock", on_wait)


@contextmanager
def held(lock: Path, on_wait: OnWait | None) -> Iterator[None]:
    """`wsss.files.locked`, with an error that says what to do: a StoreError."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(lock, on_wait))
        except OSError as error:
            raise StoreError(
                f"cannot lock a file here: {error.strerror}",
                str(lock),
                "put the store where you may write: on a local disk, on NFS 4, or in an object store (s3://...)",
            ) from error
        yield


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """OSError -> StoreError that says what to do."""
    try:
        yield
    except OSError as error:
        what, remedy = "the store failed", "check the disk or mount, run again"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            what = "no space to write"
            remedy = "free some space (`wsss ls` lists, `wsss rm` removes), run again; finished work is kept"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            what, remedy = "no access to the store", "choose a store folder that you may read and write"
        raise StoreError(f"{what}: {error.strerror}", str(path), remedy) from error
