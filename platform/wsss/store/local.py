"""A folder as the place that holds artifacts. Also right for a folder on a shared file system."""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
import stat
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsss.files import locked, remove_unfinished, write_file
from wsss.store.backend import DamagedArtifact, Entry, OnWait, StoreError, sha256_of

REMOVED = ".removed-"
PROBE = ".probe-"
VERIFIED = ".verified"
OTHER_CONTENT = "other content"
# A file that changed this recently may change again within one tick of its clock.
_SETTLED_NS = 2_000_000_000


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
        target = self.root / path
        with explained(target), suppress(FileNotFoundError, NotADirectoryError):
            try:
                return target.read_bytes()
            except (PermissionError, IsADirectoryError) as error:
                if os.access(target.parent, os.R_OK | os.X_OK):  # this file alone is not as it was written
                    what = f"{target.name} cannot be read: {error.strerror}"
                    raise DamagedArtifact(what, str(target.parent)) from error
                raise

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

    def entries(self) -> dict[str, Entry]:
        found: dict[str, Entry] = {}
        with explained(self.root):
            for at, _, files in os.walk(self.root, onerror=_raise_unless_gone):
                for name in files:
                    path = Path(at, name)
                    with suppress(FileNotFoundError):
                        status = path.lstat()
                        found[path.relative_to(self.root).as_posix()] = Entry(status.st_size, status.st_mtime)
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
            away = base.with_name(f"{REMOVED}{base.name}-{uuid.uuid4().hex[:8]}")
            base.rename(away)
            for removed in base.parent.glob(f"{REMOVED}*"):  # also those of a delete that was killed
                shutil.rmtree(removed, ignore_errors=True)
            with suppress(OSError):  # the folder of the stage, when this was its last artifact
                base.parent.rmdir()

    def remove_leftovers(self, folder: str) -> None:
        remove_unfinished(self.root / folder)

    def move(self, path: str, target: str) -> None:
        base, away = self.root / path, self.root / target
        with explained(base), suppress(FileNotFoundError):
            away.parent.mkdir(parents=True, exist_ok=True)
            try:
                base.rename(away)
            except PermissionError:  # an owner may change the mode that forbids it
                for each in (base.parent, base):
                    if each.is_dir():
                        each.chmod(each.stat().st_mode | stat.S_IRWXU)
                base.rename(away)

    def faults(self, folder: str, files: Mapping[str, Mapping[str, Any]], *, anew: bool = False) -> dict[str, str]:
        known = {} if anew else self._verified(folder)
        found: dict[str, str] = {}
        unknown: dict[str, list[int]] = {}
        for file, entry in files.items():
            try:
                status = (self.root / folder / file).stat()
            except OSError as error:
                found[file] = "missing" if isinstance(error, FileNotFoundError) else str(error.strerror)
                continue
            facts = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
            if not stat.S_ISREG(status.st_mode):
                found[file] = "not a file"
            elif status.st_size != entry["size"]:
                found[file] = f"{status.st_size} bytes instead of {entry['size']}"
            elif known.get(file) != [entry["sha256"], *facts]:
                unknown[file] = facts

        def compare(file: str) -> None:
            try:
                if sha256_of(self.root / folder / file)[0] != files[file]["sha256"]:
                    found[file] = OTHER_CONTENT
            except OSError as error:  # a bad block, or a mode that forbids reading
                found[file] = f"cannot be read: {error.strerror}"

        if unknown:
            with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
                list(pool.map(compare, unknown))
            before = time.time_ns() - _SETTLED_NS
            fresh = {
                file: [files[file]["sha256"], *facts]
                for file, facts in unknown.items()
                if file not in found and max(facts[1:3]) < before
            }
            if fresh and not anew:
                with suppress(OSError):  # of a store that may only be read, checksums are compared each time
                    write_file(self._verified_path(folder), json.dumps({**self._verified(folder), **fresh}))
        return found

    def _verified_path(self, folder: str) -> Path:
        return self.root / VERIFIED / (platform.node() or "here") / f"{folder}.json"

    def _verified(self, folder: str) -> dict[str, list[Any]]:
        """File -> checksum, size, times and inode at its last comparison on this machine."""
        try:
            known = json.loads(self._verified_path(folder).read_text())
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def local_path(self, path: str, size: int, sha256: str, *, anew: bool) -> Path:
        folder, _, file = path.rpartition("/")
        if anew:
            fault = self.faults(folder, {file: {"size": size, "sha256": sha256}}, anew=True).get(file)
        else:
            found = self.size(path)
            fault = None if found == size else "missing" if found is None else f"{found} bytes instead of {size}"
        if fault is not None:
            raise DamagedArtifact(f"{file} ({fault})", self.describe(folder))
        return self.root / path

    def check_writable(self) -> None:
        probe = f"{PROBE}{uuid.uuid4().hex[:8]}"
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
        elif error.errno in (errno.ENOTDIR, errno.EEXIST) and (in_the_way := _file_among(path.parents)):
            raise StoreError(
                "a file lies where the store needs a folder",
                str(in_the_way),
                "move that file away, or choose another folder with --store",
            ) from error
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            what = "no access to the store"
            remedy = "choose a store folder that you may read and write, or make this one so (`chmod -R u+rwX`)"
        raise StoreError(f"{what}: {error.strerror}", str(path), remedy) from error


def _file_among(folders: Iterable[Path]) -> Path | None:
    return next((folder for folder in folders if folder.is_file()), None)
