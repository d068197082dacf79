"""Packed arrays of many images in one file: a zip with entries `<image>/<array>.npy`.

Any zip program and `np.load` of an entry can read it. One image is read without touching the others. Equal
input gives equal bytes (sorted entries, fixed timestamps, normalized memory layout), so that checksums of an
undisturbed and of a resumed run agree. Integer and boolean arrays (label maps) are deflated, floating point
arrays (CAM) barely shrink and are stored as they are.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from wsss.store.backend import DamagedArtifact, StoreError

# What damaged bytes make the readers of zip and npy raise.
_UNREADABLE = (ValueError, NotImplementedError, OverflowError, MemoryError, struct.error, zlib.error)
_LOCAL_HEADER = struct.Struct("<4s22sHH")  # signature, fields that the central directory repeats, two lengths


def encode_shard(records: Mapping[str, Mapping[str, np.ndarray]]) -> bytes:
    """Bytes of one shard.

    Args:
        records: image name -> array name -> array (any shape, any dtype without objects); no array is allowed.

    Raises:
        StoreError: a name is empty or holds a slash, a backslash or a control character; an array holds objects.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for image in sorted(records):
            _check_name(image, "image")
            if not records[image]:
                archive.writestr(_entry(f"{image}/", zipfile.ZIP_STORED), b"")
            for name in sorted(records[image]):
                _check_name(name, "array")
                array = np.asarray(records[image][name], order="C")
                if array.dtype.hasobject:
                    raise StoreError(
                        f"array {name!r} of image {image!r} holds Python objects",
                        remedy="store numbers, booleans or fixed-size text",
                    )
                npy = io.BytesIO()
                native = array.astype(array.dtype.newbyteorder("<"), copy=False)
                np.lib.format.write_array(npy, native, version=(1, 0), allow_pickle=False)
                method = zipfile.ZIP_DEFLATED if array.dtype.kind in "iub" else zipfile.ZIP_STORED
                archive.writestr(_entry(f"{image}/{name}.npy", method), npy.getvalue(), compresslevel=6)
    return buffer.getvalue()


def _entry(path: str, method: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(path, (1980, 1, 1, 0, 0, 0))
    info.compress_type = method
    info.create_system = 3  # zipfile writes the platform's own otherwise
    info.external_attr = 0o644 << 16
    return info


def _check_name(name: str, kind: str) -> None:
    if not name or name in (".", "..") or not name.isprintable() or "/" in name or "\\" in name:
        remedy = "names are printable, not empty and hold no slash or backslash"
        raise StoreError(f"{name!r} cannot be the name of an {kind}", remedy=remedy)


@dataclass(frozen=True)
class ShardIndex:
    """Where the arrays of each image lie in a shard; picklable, holds no open file."""

    path: Path
    entries: Mapping[str, Mapping[str, zipfile.ZipInfo]]

    @classmethod
    def open(cls, path: Path) -> ShardIndex:
        """Read the directory of a shard. Raises DamagedArtifact when it is not a whole shard."""
        entries: dict[str, dict[str, zipfile.ZipInfo]] = {}
        try:
            with zipfile.ZipFile(path) as archive:
                for info in archive.infolist():
                    if info.comment or info.extra:  # a length that is too large hides the entries that follow
                        raise _damaged(path, f"entry {info.filename!r} has a comment")
                    image, _, file = info.filename.partition("/")
                    arrays = entries.setdefault(image, {})
                    if file and arrays.setdefault(file.removesuffix(".npy"), info) is not info:
                        raise _damaged(path, f"two entries {info.filename!r}")
        except (OSError, zipfile.BadZipFile, *_UNREADABLE) as error:
            raise _damaged(path, str(error)) from error
        return cls(path, entries)

    def arrays(self, image: str) -> dict[str, np.ndarray]:
        """The arrays of one image. KeyError when the shard lacks it, DamagedArtifact when it is damaged."""
        arrays = self.entries[image]
        # Opened for each image: nothing to inherit over a fork, nothing shared between threads.
        try:
            with self.path.open("rb") as file:
                return {name: _read_entry(file, info, self.path) for name, info in arrays.items()}
        except (OSError, *_UNREADABLE) as error:
            raise _damaged(self.path, f"image {image!r}: {error}") from error


def _read_entry(file: BinaryIO, info: zipfile.ZipInfo, path: Path) -> np.ndarray:
    file.seek(info.header_offset)
    signature, _, name_length, extra_length = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    name = file.read(name_length)
    file.seek(extra_length, io.SEEK_CUR)
    content = file.read(info.compress_size)
    if info.compress_type == zipfile.ZIP_DEFLATED:
        content = zlib.decompress(content, -zlib.MAX_WBITS)
    if name != info.orig_filename.encode(errors="replace"):
        raise _damaged(path, f"entry {info.filename!r} has another name")
    if signature != b"PK\x03\x04" or len(content) != info.file_size or zlib.crc32(content) != info.CRC:
        raise _damaged(path, f"checksum of entry {info.filename!r} differs")
    return np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)


def _damaged(path: Path, detail: str) -> DamagedArtifact:
    return DamagedArtifact(f"{path.name} is damaged: {detail}", str(path))
