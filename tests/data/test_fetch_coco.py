import hashlib
import zipfile
from pathlib import Path

import pytest

from wsss.data.errors import DataError
from wsss.data.fetch import COCO2014_ARCHIVES, Archive, fetch_coco2014

MEMBERS = {
    "annotations": {
        "annotations/instances_train2014.json": b"{}",
        "annotations/instances_val2014.json": b"{}",
        "annotations/captions_val2014.json": b"not wanted",
    },
    "val2014": {"val2014/COCO_val2014_000000000042.jpg": b"picture", "val2014/../../outside.jpg": b"no"},
    "train2014": {"train2014/COCO_train2014_000000000025.jpg": b"picture"},
}


def _serve(folder: Path) -> tuple[str, dict[str, Archive]]:
    """A folder with small archives at the official paths, and their descriptions."""
    archives = {}
    for name, official in COCO2014_ARCHIVES.items():
        path = folder / official.path
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w") as content:
            for member, values in MEMBERS[name].items():
                content.writestr(member, values)
        md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        archives[name] = Archive(official.path, md5, official.member)
    return folder.as_uri(), archives


def test_only_pictures_and_instances_are_unpacked_and_archives_go(tmp_path):
    url, archives = _serve(tmp_path / "server")
    target = fetch_coco2014(tmp_path / "home", url, archives)
    assert target == tmp_path / "home" / "data" / "COCO2014"
    assert sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()) == [
        "annotations/instances_train2014.json",
        "annotations/instances_val2014.json",
        "train2014/COCO_train2014_000000000025.jpg",
        "val2014/COCO_val2014_000000000042.jpg",
    ]
    assert not list(tmp_path.rglob("outside.jpg"))


def test_what_is_there_is_not_fetched_again(tmp_path):
    url, archives = _serve(tmp_path / "server")
    (tmp_path / "server" / archives["train2014"].path).unlink()
    with pytest.raises(DataError):
        fetch_coco2014(tmp_path / "home", url, archives, attempts=1, pause=0)
    _serve(tmp_path / "server")
    for name in ("annotations", "val2014"):
        (tmp_path / "server" / archives[name].path).unlink()
    assert (fetch_coco2014(tmp_path / "home", url, archives) / "train2014").is_dir()


def test_damage_is_refused(tmp_path):
    url, archives = _serve(tmp_path / "server")
    wrong = {**archives, "val2014": Archive(archives["val2014"].path, "0" * 32, archives["val2014"].member)}
    with pytest.raises(DataError, match="checksum is wrong"):
        fetch_coco2014(tmp_path / "home", url, wrong)
    assert not (tmp_path / "home" / "data" / "COCO2014" / "val2014").exists()
    other = {**archives, "val2014": Archive(archives["val2014"].path, archives["val2014"].md5, r"nothing/(x)")}
    with pytest.raises(DataError, match="holds nothing like"):
        fetch_coco2014(tmp_path / "home", url, other)
    file = tmp_path / "server" / archives["val2014"].path
    content = bytearray(file.read_bytes())
    start = content.index(b"picture")
    content[start : start + 7] = b"damaged"
    file.write_bytes(content)
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    damaged = {**archives, "val2014": Archive(archives["val2014"].path, md5, archives["val2014"].member)}
    (tmp_path / "home" / "data" / "COCO2014" / "val2014.zip").unlink(missing_ok=True)
    with pytest.raises(DataError, match="cannot be unpacked: Bad CRC"):
        fetch_coco2014(tmp_path / "home", url, damaged)
    assert not (tmp_path / "home" / "data" / "COCO2014" / "val2014").exists()
