"""Text files in the encodings that editors write, and what is no text."""

import os
from pathlib import Path

import pytest

from wsss.text_file import UnreadableText, path_problem, read_text, shortened


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_mark_says_the_encoding(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text("schönes Bild\n", encoding=encoding)
    assert read_text(path) == "schönes Bild\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\nschön".encode("latin-1"), r"not UTF-8 \(byte 0xf6 in line 2\); save it as UTF-8"),
        ("ab\n".encode("utf-16-le"), "line 1 holds NUL"),
        (b"\xff\xfea", "UTF-16"),
        (b"x" * 101, "101 bytes"),
    ],
)
def test_what_is_no_text_is_said_with_its_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(UnreadableText, match=message):
        read_text(path, largest=100)


def test_only_files_are_read(tmp_path: Path) -> None:
    with pytest.raises(UnreadableText, match="folder"):
        read_text(tmp_path)
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    with pytest.raises(UnreadableText, match="no regular file"):
        read_text(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "absent")
    for name in ("a\0b", "x" * 300, "x/" * 3000):
        with pytest.raises(UnreadableText, match="path"):
            read_text(tmp_path / name)


def test_paths_and_long_texts_in_messages() -> None:
    assert path_problem("/data/pictures") == ""
    assert "255" not in path_problem("x" * 255) and path_problem("x" * 256)
    assert shortened("short") == "short" and shortened("x" * 5000) == "x" * 60 + "... (5000 characters)"
