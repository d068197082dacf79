"""Fetch COCO 2014 (train, val and their instances): resumable, checksummed downloads, unpacked safely."""

from __future__ import annotations

import re
import shutil
import uuid
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wsss.data.errors import DataError
from wsss.data.fetch import Progress, download
from wsss.files import locked

COCO2014_URL = "http://images.cocodataset.org"


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
        attempts, pause: as of `wsss.data.fetch.download`.

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


def extract_members(archive: Path, member: str, target: Path) -> int:
    """Unpack the members that match to `target`, which appears complete; returns how many.

    A member's file name is what the first group of the expression matches, so that nothing lands outside.

    Raises:
        DataError: not a zip file, damaged, no matching member, or no room.
    """
    remedy = f"remove {archive} and fetch it again"
    unpacked = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}"
    pattern = re.compile(member)
    try:
        with zipfile.ZipFile(archive) as content:
            found = [(info, match[1]) for info in content.infolist() if (match := pattern.fullmatch(info.filename))]
            if not found:
                raise DataError(f"the archive holds nothing like {member}", str(archive), remedy)
            unpacked.mkdir()
            for info, name in found:
                with content.open(info) as source, (unpacked / name).open("wb") as stream:
                    shutil.copyfileobj(source, stream)
        unpacked.rename(target)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(f"the archive cannot be unpacked: {error}", str(archive), remedy) from error
    except OSError as error:
        raise DataError(
            f"the archive cannot be unpacked: {error}", str(target), "check free space and permissions there"
        ) from error
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    return len(found)
