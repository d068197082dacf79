"""A folder as the place that holds artifacts. Also right for a folder on a shared file system."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from wsss.store.backend import OnWait, StoreError, sha256_of
from wsss.store.single_flight import flock_single_flight

_TEMPORARY = ".writing-"
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
        with explained(self.root / path):
            try:
                return (self.root / path).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def size(self, path: str) -> int | None:
        with explained(self.root / path):
            try:
                return (self.root / path).stat().st_size
            except (FileNotFoundError, NotADirectoryError):
                return None

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
            write_file(target, content)

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
        for path in (self.root / folder).rglob(f"{_TEMPORARY}*"):
            # A living writer holds the lock on its temporary file.
            with suppress(OSError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()

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

    def sha256(self, path: str) -> str:
        with explained(self.root / path):
            return sha256_of(self.root / path)[0]

    def check_writable(self) -> None:
        probe = f".probe-{uuid.uuid4().hex[:8]}"
        self.write(probe, b"wsss")
        self.remove(probe)

    def single_flight(self, name: str, on_wait: OnWait | None) -> AbstractContextManager[None]:
        return flock_single_flight(self.root / ".locks" / f"{name}.lock", on_wait)


def write_file(target: Path, content: bytes | Path) -> None:
    """Put content at a path: after a crash at any moment all of it is there, or nothing. Raises OSError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{_TEMPORARY}{target.name}-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("xb") as file:
            with suppress(OSError):  # marks the file as alive; a file system without locks only keeps leftovers longer
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if isinstance(content, bytes):
                file.write(content)
            else:
                with content.open("rb") as source:
                    shutil.copyfileobj(source, file, 1 << 20)
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, target)  # noqa: PTH105
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems can not sync a folder
            os.fsync(folder)
    finally:
        os.close(folder)


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """OSError -> StoreError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            remedy = "free some space (`wsss ls` lists, `wsss rm` removes), run again; finished work is kept"
            raise StoreError(f"no space to write: {error.strerror}", str(path), remedy) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            remedy = "choose a store folder that you may read and write"
            raise StoreError(f"no access to the store: {error.strerror}", str(path), remedy) from error
        raise StoreError(
            f"the store failed: {error.strerror}", str(path), "check the disk or mount, run again"
        ) from error
