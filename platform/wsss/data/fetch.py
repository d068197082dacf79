"""Fetch PASCAL VOC 2012 and COCO 2014: resumable, checksummed downloads, unpacked safely."""

from __future__ import annotations

import hashlib
import http.client
import re
import shutil
import stat
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from wsss.data.errors import DataError
from wsss.data.voc import IMAGES
from wsss.files import locked

VOC2012_URL = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar"
VOC2012_MD5 = "6cd6e144f989b92b3379bac3b3de84fd"
COCO2014_URL = "http://images.cocodataset.org"

# Called with (bytes so far, bytes in all or None).
Progress = Callable[[int, int | None], None]
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Archive:
    """One official zip file.

    Attributes:
        path: below the address.
        md5: of the file.
        member: regular expression of the members that are unpacked.
    """

    path: str
    md5: str
    member: str


# Folder of the data set -> the archive that holds it.
COCO2014_ARCHIVES: Mapping[str, Archive] = {
    "annotations": Archive(
        "annotations/annotations_trainval2014.zip",
        "0a379cfc70b0e71301e0f377548639bd",
        r"annotations/(instances_(?:train|val)2014\.json)",
    ),
    "val2014": Archive("zips/val2014.zip", "a3d79f5ed8d289b7a7554ce06a5782b3", r"val2014/(COCO_val2014_\d{12}\.jpg)"),
    "train2014": Archive(
        "zips/train2014.zip", "0da8c0bd3d6becc4dcb32757491aca88", r"train2014/(COCO_train2014_\d{12}\.jpg)"
    ),
}


def fetch_voc2012(
    home: Path,
    url: str = VOC2012_URL,
    md5: str = VOC2012_MD5,
    progress: Progress | None = None,
    attempts: int = 8,
    pause: float = 2.0,
) -> Path:
    """VOC 2012 (train and val) below `<home>/data/VOC2012`, fetched unless it is there.

    The archive has neither the train_aug list nor the SBD masks; both are given by the user.

    Args:
        url: another place of the same archive (http, https or file).
        attempts: tries in a row that may end without a single new byte.
        pause: seconds before the second try, doubled at each further one, 60 at most.

    Raises:
        DataError: the download fails for good, the checksum is wrong, or the archive is not VOC 2012.
    """
    target = home / "data" / "VOC2012"
    archive = home / "data" / "VOCtrainval_11-May-2012.tar"
    archive.parent.mkdir(parents=True, exist_ok=True)
    with locked(archive.with_name(f".{archive.name}.lock")):
        if (target / IMAGES).is_dir():
            return target
        if not archive.exists():
            download(url, archive, md5, progress, attempts, pause)
        extract_voc(archive, target)
        archive.unlink()
    return target


def fetch_coco2014(
    home: Path,
    url: str = COCO2014_URL,
    archives: Mapping[str, Archive] = COCO2014_ARCHIVES,
    progress: Progress | None = None,
    attempts: int = 8,
    pause: float = 2.0,
) -> Path:
    """COCO 2014 below `<home>/data/COCO2014`: what is there already is kept, the rest is fetched (about 20 GB).

    An archive is removed once it is unpacked; only pictures and instances are unpacked.

    Args:
        url: another address with the same archives at the same paths (http, https or file).
        attempts, pause: as of `download`.

    Raises:
        DataError: a download fails for good, a checksum is wrong, or an archive is damaged.
    """
    target = home / "data" / "COCO2014"
    target.mkdir(parents=True, exist_ok=True)
    with locked(target.with_name(f".{target.name}.lock")):
        for folder, archive in archives.items():
            if (target / folder).is_dir():
                continue
            file = target / Path(archive.path).name
            if not file.exists():
                download(f"{url.rstrip('/')}/{archive.path}", file, archive.md5, progress, attempts, pause)
            extract_members(file, archive.member, target / folder)
            file.unlink()
    return target


def download(
    url: str,
    target: Path,
    checksum: str,
    progress: Progress | None = None,
    attempts: int = 8,
    pause: float = 2.0,
    timeout: float = 60.0,
) -> None:
    """Download to `target`, which appears only when complete and of the right checksum, an MD5 or SHA-256 in hex.

    What was received is kept in `<target>.part`; a cut connection, or a new call, goes on from there
    where the server knows byte ranges, and starts over where it does not.

    Raises:
        DataError: no progress in `attempts` tries, an answer that will not change, or a wrong checksum.
    """
    part = target.with_name(target.name + ".part")
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _receive(url, part, progress, timeout)
            break
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code != 429:
                raise DataError(
                    f"the server answers {error.code} {error.reason}", url, "give another address with --url"
                ) from error
            reason: Exception = error
        except (OSError, http.client.HTTPException) as error:
            reason = error
        failures = 0 if part.exists() and part.stat().st_size > before else failures + 1
        if failures >= attempts:
            raise DataError(
                f"the download made no progress in {attempts} tries: {reason}",
                url,
                "check the network and run the same command again: it continues where it stopped",
            ) from reason
        time.sleep(min(60.0, pause * 2 ** max(0, failures - 1)))
    kind = "sha256" if len(checksum) == 64 else "md5"
    with part.open("rb") as stream:
        found = hashlib.file_digest(stream, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()
    if found != checksum:
        size = part.stat().st_size
        part.unlink()
        raise DataError(
            f"the checksum is wrong: {kind} {found} of {size} bytes, expected {checksum}",
            url,
            "the file was removed; fetch it again, or from another address with --url",
        )
    part.replace(target)


def _receive(url: str, part: Path, progress: Progress | None, timeout: float) -> None:
    """One connection: append what is missing to `part`. Raises OSError when it is cut short."""
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        # Nothing lies beyond what we have: complete, unless the server's file is another, shorter one.
        total = (error.headers.get("Content-Range") or "").rpartition("/")[2]
        if total.isdigit() and int(total) < start:
            part.unlink()
            raise OSError(f"the file on the server has {total} bytes, fewer than received") from error
        return
    with response:
        resumed = getattr(response, "status", None) == 206
        if resumed and not (response.headers.get("Content-Range") or "").startswith(f"bytes {start}-"):
            raise OSError("the server continued at another place than asked")
        received = start if resumed else 0
        length = response.headers.get("Content-Length")
        total = received + int(length) if length and length.isdigit() else None
        with part.open("ab" if resumed else "wb") as stream:
            while block := response.read(_BLOCK):
                stream.write(block)
                received += len(block)
                if progress is not None:
                    progress(received, total)
        if total is not None and received < total:
            raise OSError(f"the connection was cut after {received} of {total} bytes")


def extract_voc(archive: Path, target: Path) -> None:
    """Unpack the folder VOC2012 of the archive to `target`, which appears complete.

    Links and absolute names are refused here, devices and paths that lead out of the folder by tarfile's "data" filter.

    Raises:
        DataError: not a tar file, unsafe members, no room, or no VOC2012 in it.
    """

    def plain(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
        if member.issym() or member.islnk() or member.name.startswith("/"):
            kind = "an absolute name" if member.name.startswith("/") else "a link"
            raise _unfit(archive, f"has an unsafe member: {member.name!r} is {kind}")
        return tarfile.data_filter(member, folder)

    with _unpacking(archive, target) as unpacked:
        with tarfile.open(archive) as tar:
            tar.extractall(unpacked, filter=plain)
        root = next((found.parent for found in sorted(unpacked.rglob(IMAGES)) if found.is_dir()), None)
        if root is None:
            raise _unfit(archive, f"holds no folder {IMAGES}")
        root.rename(target)


def extract_members(archive: Path, member: str, target: Path) -> None:
    """Unpack the members of a zip file that match to `target`, which appears complete.

    A member's file name is what the first group of the expression matches, so that nothing lands outside.

    Raises:
        DataError: not a zip file, damaged, no matching member, or no room.
    """
    pattern = re.compile(member)
    with _unpacking(archive, target) as unpacked:
        with zipfile.ZipFile(archive) as content:
            found = [(info, match[1]) for info in content.infolist() if (match := pattern.fullmatch(info.filename))]
            if not found:
                raise _unfit(archive, f"holds nothing like {member}")
            unpacked.mkdir()
            for info, name in found:
                if Path(name).name != name or stat.S_ISLNK(info.external_attr >> 16):
                    raise _unfit(archive, f"has an unsafe member: {info.filename!r}")
                with content.open(info) as source, (unpacked / name).open("wb") as stream:
                    shutil.copyfileobj(source, stream)
        unpacked.rename(target)


@contextmanager
def _unpacking(archive: Path, target: Path) -> Iterator[Path]:
    """A folder beside `target` to unpack to, removed at the end. What goes wrong becomes a DataError."""
    try:
        with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.", ignore_cleanup_errors=True) as folder:
            yield Path(folder) / "unpacked"
    except tarfile.FilterError as error:
        raise _unfit(archive, f"has an unsafe member: {error}") from error
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise _unfit(archive, f"cannot be unpacked: {error}") from error
    except OSError as error:
        what, remedy = f"the archive cannot be unpacked: {error}", "check free space and permissions there"
        raise DataError(what, str(target), remedy) from error


def _unfit(archive: Path, what: str) -> DataError:
    return DataError(f"the archive {what}", str(archive), f"remove {archive} and fetch it again")
