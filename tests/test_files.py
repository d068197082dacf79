"""Files appear whole or not at all, and locks end with their holders."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from wsss.files import LockHeld, finish, locked, remove_unfinished, this_process, unfinished, write_file, write_json

HOLD = """
import sys, time
from pathlib import Path
from wsss.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
DIE_BEFORE_RENAME = """
import os, signal, sys
from pathlib import Path
from wsss.files import write_file
Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
write_file(Path(sys.argv[1]), "new content")
"""


@contextmanager
def child(code: str, *arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """Another Python process; killed at the end if it still runs."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_bytes_text_files_and_json_are_written_below_new_folders(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    write_file(target, "Größe")
    assert target.read_text(encoding="utf-8") == "Größe"
    write_file(target, b"\x00\x01", durable=True)
    assert target.read_bytes() == b"\x00\x01"
    write_file(tmp_path / "copy", target)
    assert (tmp_path / "copy").read_bytes() == b"\x00\x01"
    write_json(target, {"b": 1, "a": 2})
    assert target.read_text() == '{\n "b": 1,\n "a": 2\n}'
    write_json(target, {"b": 1, "a": 2}, sort_keys=True)
    assert target.read_text().index('"a"') < target.read_text().index('"b"')
    assert [path.name for path in target.parent.iterdir()] == ["b"]


def test_others_may_read_what_was_written_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_file(tmp_path / "file", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_a_crash_before_the_rename_leaves_the_old_content_and_rubbish_that_can_be_removed(tmp_path: Path) -> None:
    target = tmp_path / "run.json"
    write_file(target, "old content")
    with child(DIE_BEFORE_RENAME, target) as process:
        assert process.wait(30) == -signal.SIGKILL
    assert target.read_text() == "old content"
    assert len(list(tmp_path.glob(".writing-run.json-*"))) == 1
    remove_unfinished(tmp_path)
    assert list(tmp_path.iterdir()) == [target]


def test_an_error_before_the_rename_leaves_no_rubbish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_file(tmp_path / "file", b"x", durable=True)
    assert list(tmp_path.iterdir()) == []


def test_only_durable_writes_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bool] = []
    monkeypatch.setattr("os.fsync", lambda descriptor: synced.append((tmp_path / "file").exists()))
    write_file(tmp_path / "file", b"x")
    assert synced == []
    (tmp_path / "file").unlink()
    write_file(tmp_path / "file", b"x", durable=True)
    assert synced == [False, True]  # the content before the rename, the folder after it


def test_a_disk_that_refuses_is_told_with_the_name_of_the_file(tmp_path: Path) -> None:
    target = tmp_path / "record.json"
    with pytest.raises(OSError, match="No space left") as caught, unfinished(target):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(target)
    with pytest.raises(OSError) as caught, unfinished(target):
        raise ConnectionResetError(errno.ECONNRESET, "reset")
    assert caught.value.filename is None


def test_unfinished_files_of_living_writers_stay(tmp_path: Path) -> None:
    target = tmp_path / "file"
    with unfinished(target) as path:
        remove_unfinished(tmp_path)
        path.write_bytes(b"content")
        finish(path, target)
    assert target.read_bytes() == b"content"


def test_two_processes_hold_a_lock_one_after_the_other(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with child(HOLD, lock) as holder:
        assert read_line(holder) == "held"
        with pytest.raises(LockHeld, match=f"process {holder.pid} on "), locked(lock, wait=False):
            pytest.fail("entered beside the holder")
        os.kill(holder.pid, signal.SIGKILL)
        told: list[str] = []
        begun = time.monotonic()
        with locked(lock, told.append):  # the holder may not be gone yet
            assert time.monotonic() - begun < 3
            assert all(f"process {holder.pid} on " in text for text in told)
            assert lock.read_text() == this_process()


def test_a_waiting_thread_is_told_the_holder_once_and_enters_when_it_leaves(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    events: list[str] = []
    waiting = threading.Event()

    def on_wait(holder: str) -> None:
        events.append(holder)
        waiting.set()

    def second() -> None:
        with locked(lock, on_wait):
            events.append("second")

    thread = threading.Thread(target=second)
    with locked(lock):
        thread.start()
        assert waiting.wait(10)
        events.append("first leaves")
    thread.join(10)
    assert events == [this_process(), "first leaves", "second"]


def test_an_error_inside_frees_the_lock(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="inside"), locked(tmp_path / "lock"):
        raise ValueError("inside")
    with locked(tmp_path / "lock", wait=False):
        pass


def test_a_file_system_without_locks_is_an_error_and_no_marker_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.raises(OSError, match="not implemented"), locked(tmp_path / "lock"):
        pytest.fail("entered without a lock")
    write_file(tmp_path / "file", b"x")
    assert (tmp_path / "file").read_bytes() == b"x"
