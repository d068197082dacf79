"""Reads text files that people wrote, in the encodings that editors write without being asked."""

from __future__ import annotations

import codecs
import stat
from pathlib import Path

# The longer mark first: that of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LARGEST = 500_000_000
_LONGEST_PATH, _LONGEST_PART = 4096, 255


class UnreadableText(Exception):
    """A text file cannot be read; the message says why, and what to do where that helps."""


def read_text(path: Path, largest: int = _LARGEST) -> str:
    """Content of a UTF-8 file, or of any file whose byte order mark names its encoding; without the mark.

    Args:
        largest: bytes; a larger file is not what it is taken for and is not read.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableText: it is no readable file, is too large, or has another encoding.
    """
    if problem := path_problem(str(path)):
        raise UnreadableText(problem)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableText("it is a folder" if stat.S_ISDIR(status.st_mode) else "it is no regular file")
        if status.st_size > largest:
            raise UnreadableText(f"it has {status.st_size} bytes, and more than {largest} are not expected of it")
        content = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UnreadableText(error.strerror or str(error)) from error
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        where = f"byte 0x{content[error.start]:02x} in line {line}" if encoding == "utf-8" else "it is damaged"
        raise UnreadableText(f"it is not {encoding.upper()} ({where}); save it as UTF-8") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UnreadableText(f"line {line} holds NUL: it is no text, or UTF-16 without its mark; save it as UTF-8")
    return text


def path_problem(text: str) -> str:
    """Why no file can have this path, in words, or nothing."""
    if "\0" in text:
        return "a path cannot hold NUL"
    encoded = text.encode(errors="surrogateescape")
    longest = max((len(part) for part in encoded.split(b"/")), default=0)
    if len(encoded) > _LONGEST_PATH or longest > _LONGEST_PART:
        return f"the path is too long: {len(encoded)} bytes, its longest part {longest}"
    return ""


def shortened(text: str, length: int = 60) -> str:
    """Text as it can stand in a message: the start of a long one, with its length."""
    return text if len(text) <= length else f"{text[:length]}... ({len(text)} characters)"
