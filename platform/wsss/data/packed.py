"""A data set packed into an object store: tar files of many pictures each, and an index of every file in them.

Layout below the address, `s3://bucket/prefix`:

    packs/<sha256 of its listing>.tar    some 64 MB of files of one folder; ordinary tar
    index.json                           packs, and place, size and sha256 of every file; written last

The same data gives the same bytes at the same names, so that pushing again uploads what is missing and no more.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from tempfile import TemporaryFile
from typing import IO, Any

from wsss.data.errors import DataError
from wsss.data.file_facts import file_facts, sha256_of_file
from wsss.store.s3 import S3Files

INDEX = "index.json"
FORMAT = 1
PACK_BYTES = 64_000_000
_BLOCK = 1 << 20
_TAR_BLOCK = 512

# Called with (bytes done, bytes in all).
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PackedFile:
    """One file: its path below the data set, and where its content lies in its pack."""

    path: str
    size: int
    sha256: str
    offset: int = 0


@dataclass(frozen=True)
class Pack:
    """One tar file and what is in it, in order."""

    files: tuple[PackedFile, ...]

    @cached_property
    def name(self) -> str:
        """Path below the address, which the content of the pack determines."""
        listing = json.dumps([[file.path, file.size, file.sha256] for file in self.files])
        return f"packs/{hashlib.sha256(listing.encode()).hexdigest()}.tar"

    @cached_property
    def size(self) -> int:
        """Bytes of the tar file."""
        last = self.files[-1]
        return last.offset + _padded(last.size) + 2 * _TAR_BLOCK


@dataclass(frozen=True)
class PackedIndex:
    """What a packed data set holds."""

    dataset: str
    packs: tuple[Pack, ...]

    @cached_property
    def digest(self) -> str:
        """Of all paths and contents, 24 hex digits."""
        return hashlib.sha256(self.encoded()).hexdigest()[:24]

    @property
    def files(self) -> Iterator[PackedFile]:
        """Of all packs."""
        return (file for pack in self.packs for file in pack.files)

    @cached_property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def encoded(self) -> bytes:
        """The index as it is stored."""
        packs = [
            {"name": pack.name, "files": [[file.path, file.size, file.sha256, file.offset] for file in pack.files]}
            for pack in self.packs
        ]
        content = {"format": FORMAT, "dataset": self.dataset, "packs": packs}
        return json.dumps(content, separators=(",", ":")).encode()


@dataclass(frozen=True)
class Pushed:
    """What a push did: the index, and how much of the data set was uploaded now."""

    index: PackedIndex
    uploaded_packs: int
    uploaded_bytes: int


def push(
    dataset: str, folders: Mapping[str, Path], target: S3Files, cache: Path | None, progress: Progress | None = None
) -> Pushed:
    """Put files into packs and upload those that are not there; an interrupted push is simply repeated.

    Args:
        dataset: name of the data set.
        folders: path below the packed data set -> folder or file to pack there; what is absent is left out.
        cache: folder of remembered hashes.
        progress: bytes of files that are settled, of all.

    Raises:
        DataError: there is nothing to pack, or a file cannot be read or changes meanwhile.
        StoreError: the object store does not take it.
    """
    paths = dict(sorted(item for place, folder in folders.items() for item in _files_below(place, folder)))
    if not paths:
        raise DataError(
            "there is nothing to push", ", ".join(map(str, folders.values())), "give the folder of the data"
        )
    hashes = file_facts(paths.values(), "sha256", sha256_of_file, cache)
    for error in hashes.errors.values():
        raise error
    found = [PackedFile(name, path.stat().st_size, hashes.facts[path]) for name, path in paths.items()]
    index = PackedIndex(dataset, tuple(_packs(found)))
    packs, uploaded, done = 0, 0, 0
    for pack in index.packs:
        if target.size(pack.name) != pack.size:
            with TemporaryFile() as packed:
                _write_pack(pack, paths, packed)
                target.write_stream(pack.name, packed)
            packs, uploaded = packs + 1, uploaded + pack.size
        done += sum(file.size for file in pack.files)
        if progress is not None:
            progress(done, index.size)
    if target.read(INDEX) != index.encoded():
        target.write(INDEX, index.encoded())
    return Pushed(index, packs, uploaded)


def read_index(source: S3Files) -> PackedIndex:
    """The index of a packed data set.

    Raises:
        DataError: there is none, or it is not one.
        StoreError: the object store does not answer.
    """
    content = source.read(INDEX)
    if content is None:
        raise DataError(
            "there is no packed data set", source.url, f"`wsss data push NAME dataset.root=FOLDER {source.url}` puts it"
        )
    return decode_index(content, source.describe(INDEX))


def decode_index(content: bytes, where: str) -> PackedIndex:
    """An index from its bytes. Raises DataError, naming `where`, when it is not what was stored."""
    remedy = "push the data set again (`wsss data push`)"
    try:
        raw = json.loads(content)
        if raw["format"] != FORMAT:
            newer = f"the index has format {raw['format']}, this version reads format {FORMAT}"
            raise DataError(newer, where, "update wsss, or push the data set with this version")
        packs = tuple(Pack(tuple(PackedFile(*file) for file in pack["files"])) for pack in raw["packs"])
        names = [pack["name"] for pack in raw["packs"]]
        index = PackedIndex(str(raw["dataset"]), packs)
        if not all(_is_plain(file) for file in index.files):
            raise ValueError("a file that is none")
        # The names of packs are checksums of their listings; so a changed index is found out here.
        if not packs or [pack.name for pack in packs] != names:
            raise ValueError("other files than its packs")
    except DataError:
        raise
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise DataError(
            f"the index of the packed data set is damaged: {type(error).__name__}", where, remedy
        ) from error
    return index


def unpack(
    source: S3Files, pack: Pack, wanted: Sequence[PackedFile], save: Callable[[PackedFile, bytes], None]
) -> None:
    """Read files of a pack, in one request from the first to the last of them, and hand over those that are whole.

    Args:
        wanted: files of the pack, in its order, not empty.
        save: is given each file and its content, which fits the index.

    Raises:
        DataError: the pack is missing or of another size, or a file in it has another content.
        StoreError: the object store does not answer.
    """
    where, size = source.describe(pack.name), source.size(pack.name)
    if size != pack.size:
        fault = "missing" if size is None else f"damaged: {size} bytes instead of {pack.size}"
        raise DataError(f"a pack of the data set is {fault}", where, "push the data set again (`wsss data push`)")
    stream = _Stream(source.blocks(pack.name, start=wanted[0].offset))
    at = wanted[0].offset
    for file in wanted:
        stream.skip(file.offset - at)
        content = stream.read(file.size)
        at = file.offset + file.size
        if hashlib.sha256(content).hexdigest() != file.sha256:
            raise DataError(
                f"a pack of the data set is damaged: {file.path} has another content than was pushed",
                where,
                "remove that object and push the data set again (`wsss data push`); what is whole is not sent twice",
            )
        save(file, content)


class _Stream:
    """Reads so many bytes at a time from blocks of any size."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks, self._rest = blocks, bytearray()

    def read(self, size: int) -> bytes:
        while len(self._rest) < size and (block := next(self._blocks, b"")):
            self._rest += block
        found = bytes(self._rest[:size])
        del self._rest[:size]
        return found

    def skip(self, size: int) -> None:
        while size > 0 and (found := self.read(min(size, _BLOCK))):
            size -= len(found)


def _files_below(place: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """Paths below the packed data set, and the files. Links are followed; what begins with a dot is left out."""
    if folder.is_file():
        yield place, folder
        return
    seen: set[str] = set()
    for at, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(at)
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        if real in seen:
            continue
        seen.add(real)
        for name in files:
            if not name.startswith("."):
                below = Path(at, name).relative_to(folder).as_posix()
                yield f"{place}/{below}", Path(at, name)


def _packs(files: Iterable[PackedFile]) -> Iterator[Pack]:
    """Files in the order of their paths; a pack holds files of one folder at the top, so masks are apart."""
    members: list[PackedFile] = []
    offset, top = 0, ""
    for file in files:
        first = file.path.partition("/")[0]
        if members and (first != top or offset + file.size > PACK_BYTES):
            yield Pack(tuple(members))
            members, offset = [], 0
        top = first
        offset += len(_header(file))
        members.append(PackedFile(file.path, file.size, file.sha256, offset))
        offset += _padded(file.size)
    if members:
        yield Pack(tuple(members))


def _write_pack(pack: Pack, paths: Mapping[str, Path], target: IO[bytes]) -> None:
    for file in pack.files:
        path = paths[file.path]
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(
                f"the file cannot be read: {error.strerror}", str(path), "check that it is there"
            ) from error
        if len(content) != file.size or hashlib.sha256(content).hexdigest() != file.sha256:
            raise DataError("the file changed while it was pushed", str(path), "push again when nobody writes there")
        target.write(_header(file) + content + bytes(_padded(file.size) - file.size))
    target.write(bytes(2 * _TAR_BLOCK))
    target.seek(0)


def _header(file: PackedFile) -> bytes:
    info = tarfile.TarInfo(file.path)
    info.size, info.mode = file.size, 0o644
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _padded(size: int) -> int:
    return -(-size // _TAR_BLOCK) * _TAR_BLOCK


def _is_plain(file: Any) -> bool:
    """Whether an entry of an index is a file below the data set, and nothing else."""
    path = PurePosixPath(file.path)
    below = not path.is_absolute() and ".." not in path.parts and str(path) == file.path and "\0" not in file.path
    numbers = all(isinstance(number, int) and number >= 0 for number in (file.size, file.offset))
    return below and file.path not in ("", ".") and numbers and bool(re.fullmatch(r"[0-9a-f]{64}", file.sha256))
