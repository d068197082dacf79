import hashlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.file_server import CONTENT, Server, file_server

from wsss.data.errors import DataError
from wsss.data.fetch import download, extract_voc, fetch_voc2012


@pytest.fixture
def server() -> Iterator[Server]:
    with file_server("VOC.tar") as state:
        yield state


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def test_cut_connections_are_resumed_where_they_stopped(server, tmp_path):
    server.cut_after, server.cuts = 70_000, 3
    seen: list[tuple[int, int | None]] = []
    download(server.url, tmp_path / "a", _md5(CONTENT), lambda *x: seen.append(x), attempts=1, pause=0)
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=70000-", "bytes=140000-", "bytes=210000-"]
    assert seen[-1] == (300_000, 300_000)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_later_call_goes_on_from_what_is_there(server, tmp_path):
    (tmp_path / "a.part").write_bytes(CONTENT[:123_456])
    download(server.url, tmp_path / "a", _md5(CONTENT))
    assert server.asked == ["bytes=123456-"]
    assert (tmp_path / "a").read_bytes() == CONTENT
    (tmp_path / "b.part").write_bytes(CONTENT)  # killed between the last byte and the renaming
    download(server.url, tmp_path / "b", _md5(CONTENT))
    assert (tmp_path / "b").read_bytes() == CONTENT


def test_a_server_without_ranges_starts_over(server, tmp_path):
    server.ranges = False
    (tmp_path / "a.part").write_bytes(CONTENT[:1000])
    download(server.url, tmp_path / "a", _md5(CONTENT))
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_leftovers_of_a_longer_file_are_dropped(server, tmp_path):
    (tmp_path / "a.part").write_bytes(CONTENT + b"more")
    download(server.url, tmp_path / "a", _md5(CONTENT), attempts=2, pause=0)
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_wrong_checksum_is_refused_and_the_file_removed(server, tmp_path):
    with pytest.raises(DataError, match=rf"checksum is wrong: md5 {_md5(CONTENT)}[\s\S]*expected 0000"):
        download(server.url, tmp_path / "a", "0000")
    assert list(tmp_path.iterdir()) == []


def test_no_progress_and_final_answers_end_the_download(server, tmp_path):
    server.cut_after, server.cuts = 0, 99
    with pytest.raises(DataError, match=r"no progress in 3 tries[\s\S]*continues where it stopped"):
        download(server.url, tmp_path / "a", "0000", attempts=3, pause=0)
    assert len(server.asked) == 3
    server.status = 503
    with pytest.raises(DataError, match="no progress in 2 tries"):
        download(server.url, tmp_path / "a", "0000", attempts=2, pause=0)
    server.status = 404
    with pytest.raises(DataError, match=r"404[\s\S]*--url"):
        download(server.url, tmp_path / "a", "0000", attempts=9, pause=9)


def _tar(files: dict[str, bytes], link: tuple[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        if link is not None:
            member = tarfile.TarInfo(link[0])
            member.type, member.linkname = tarfile.SYMTYPE, link[1]
            tar.addfile(member)
    return buffer.getvalue()


def test_fetch_unpacks_once(server, tmp_path):
    server.content = _tar({"VOCdevkit/VOC2012/JPEGImages/a.jpg": b"picture", "VOCdevkit/VOC2012/ImageSets/x": b"1"})
    server.cut_after, server.cuts = 1000, 1
    root = fetch_voc2012(tmp_path, server.url, _md5(server.content), pause=0)
    assert root == tmp_path / "data" / "VOC2012"
    assert (root / "JPEGImages" / "a.jpg").read_bytes() == b"picture"
    assert len(server.asked) == 2
    assert fetch_voc2012(tmp_path, server.url, "another") == root
    assert len(server.asked) == 2
    visible = [path.name for path in (tmp_path / "data").iterdir() if not path.name.startswith(".")]
    assert visible == ["VOC2012"]


@pytest.mark.parametrize(
    ("archive", "expected"),
    [
        (_tar({"VOC2012/JPEGImages/a.jpg": b"x", "../outside.txt": b"x"}), "unsafe member"),
        (_tar({"VOC2012/JPEGImages/a.jpg": b"x", "/absolute.txt": b"x"}), "unsafe member: '/absolute.txt'"),
        (_tar({"VOC2012/JPEGImages/a.jpg": b"x"}, link=("VOC2012/link", "/etc")), "unsafe member"),
        (_tar({"VOC2012/JPEGImages/a.jpg": b"x"}, link=("VOC2012/JPEGImages/b.jpg", "a.jpg")), "unsafe member"),
        (_tar({"something/else.txt": b"x"}), "no folder JPEGImages"),
        (b"not a tar file", "cannot be unpacked"),
    ],
)
def test_bad_archives_leave_nothing(tmp_path: Path, archive: bytes, expected: str):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "voc.tar").write_bytes(archive)
    with pytest.raises(DataError, match=expected):
        extract_voc(tmp_path / "in" / "voc.tar", tmp_path / "in" / "VOC2012")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["in", "voc.tar"]
