"""The store in a folder: conformance, and what goes wrong with disks."""

from __future__ import annotations

import errno
import fcntl
import itertools
import multiprocessing
import os
import pickle
import resource
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tests.store.children import KEY, STAGE, compute, records
from tests.store.conformance import Place, StoreConformance, contents, flipped, published

from wsss.store import Artifact, DamagedArtifact, Store, StoreError, open_store
from wsss.store.backend import sha256_of


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(str(tmp_path / "stores"), tmp_path / "cache", lease_seconds=60, takeover_seconds=3)


class TestLocal(StoreConformance):
    def check_no_leftovers(self, store: Store, undisturbed: Store) -> None:
        def files(of: Store) -> set[str]:
            return {path.relative_to(of.url).as_posix() for path in Path(of.url).rglob("*")}

        assert files(store) == files(undisturbed)


@pytest.fixture
def store(place: Place) -> Store:
    return place.open()


def test_a_forked_child_does_not_keep_the_lock_of_a_killed_holder(place: Place, store: Store) -> None:
    with place.child("hold", store, "with_child") as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == "held"
        os.kill(holder.pid, signal.SIGKILL)
        begun = time.monotonic()
        with store.single_flight(STAGE, KEY):
            assert time.monotonic() - begun < 3


def test_temporary_files_of_living_writers_stay(store: Store) -> None:
    folder = Path(store.url, STAGE, KEY)
    compute(store)
    Path(folder, "manifest.json").unlink()
    dead, living = folder / ".writing-dead", folder / ".writing-living"
    dead.write_bytes(b"x")
    with living.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        compute(store)
        assert living.exists()
        assert not dead.exists()


def test_a_killed_delete_leaves_nothing_visible(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    published(store)

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("shutil.rmtree", stopped)
        store.delete(STAGE, KEY)
    assert list(store.list(include_unfinished=True)) == []
    compute(store)
    store.delete(STAGE, KEY)
    assert not Path(store.url, STAGE).exists()


def test_a_full_disk_keeps_what_was_finished(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = store.writer(STAGE, KEY)
    writer.add_shard(0, records(0))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        for attempt in (lambda: writer.add_shard(1, records(1)), lambda: writer.publish({})):
            with pytest.raises(StoreError, match=r"no space to write(.|\n)*free some space") as caught:
                attempt()
            assert store.url in caught.value.where
    assert store.find(STAGE, KEY) is None
    assert set(writer.finished_images()) == {0}
    assert not list(Path(store.url).rglob(".writing-*"))
    compute(store)
    assert store.find(STAGE, KEY) is not None


def _in_child(function: Callable[[], None]) -> str:
    """The StoreError that a forked child gets, whose limits and rights the test may lower."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)

    def run() -> None:
        try:
            function()
            send.send("no error")
        except StoreError as error:
            send.send(str(error))

    process = context.Process(target=run)
    process.start()
    assert receive.poll(30)
    answer = receive.recv()
    process.join(timeout=10)
    return answer


def test_a_file_size_limit_leaves_no_half_file(store: Store) -> None:
    writer = store.writer(STAGE, KEY)
    writer.add_shard(0, {"small": {"x": np.zeros(3)}})
    before = contents(store)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        writer.add_shard(1, records(1))

    assert "no space to write" in _in_child(limited)
    assert contents(store) == before
    assert not list(Path(store.url).rglob(".writing-*"))


def _drop_rights() -> None:
    """In a child: root may read and write everywhere, nobody may not."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)


@contextmanager
def _reachable(folder: Path) -> Iterator[None]:
    """Those folders above one that belong to the test may be entered by all."""
    opened = [parent for parent in folder.parents if parent.stat().st_uid == os.getuid()]
    opened = [parent for parent in opened if parent.is_relative_to(folder.parents[2])]
    modes = {path: path.stat().st_mode & 0o7777 for path in opened}
    try:
        for path, mode in modes.items():
            path.chmod(mode | 0o055)
        yield
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


@pytest.mark.parametrize("action", ["check_writable", "add_file", "single_flight", "delete"])
def test_a_read_only_folder_is_named(store: Store, action: str) -> None:
    published(store)
    folders = [path for path in (Path(store.url), *Path(store.url).rglob("*")) if path.is_dir()]

    def attempt() -> None:
        _drop_rights()
        if action == "check_writable":
            store.check_writable()
        elif action == "add_file":
            store.writer("crf", "k").add_file("x", b"x")
        elif action == "delete":
            store.delete(STAGE, KEY)
        else:
            with store.single_flight("crf", "k"):
                pass

    modes = {path: path.stat().st_mode & 0o7777 for path in folders}
    try:
        for path in folders:
            path.chmod(0o555)
        with _reachable(Path(store.url)):
            said = _in_child(attempt)
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
    assert store.url in said
    assert "Permission denied" in said
    assert "do:" in said
    assert store.find(STAGE, KEY) is not None


def count_comparisons(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    compared: list[str] = []

    def counted(content: Path) -> tuple[str, int]:
        compared.append(content.name)
        return sha256_of(content)

    monkeypatch.setattr("wsss.store.local.sha256_of", counted)
    return compared


def test_checksums_are_compared_once_and_again_after_a_change(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = published(store)
    folder = Path(store.url, STAGE, KEY)
    for path in folder.rglob("*"):
        os.utime(path, (1e9, 1e9))
    monkeypatch.setattr("wsss.store.local._SETTLED_NS", 0)
    compared = count_comparisons(monkeypatch)
    assert store.find(STAGE, KEY) is not None
    assert sorted(compared) == sorted(artifact.files)
    compared.clear()
    assert store.find(STAGE, KEY) is not None
    assert compared == []
    weights = folder / "counts.json"
    whole = weights.read_bytes()
    weights.write_bytes(flipped(whole))
    os.utime(weights, (1e9, 1e9))  # neither size nor time of modification tell
    with pytest.raises(DamagedArtifact, match="counts"):
        store.find(STAGE, KEY)
    assert compared == ["counts.json"]
    with pytest.raises(DamagedArtifact, match="counts"):
        artifact.path("counts.json")


def test_a_file_that_has_just_changed_is_compared_each_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = published(store)
    compared = count_comparisons(monkeypatch)
    for _ in range(2):
        assert store.find(STAGE, KEY) is not None
    assert len(compared) == 2 * len(artifact.files)


def test_every_flipped_byte_of_a_shard_is_found_or_harmless(store: Store) -> None:
    small = {f"2007_00000{image}": {"cam": np.full(2, image, np.float16), "keys": np.arange(1)} for image in range(2)}
    writer = store.writer(STAGE, KEY)
    writer.add_shard(0, small)
    artifact = writer.publish({})
    path = Path(store.url, STAGE, KEY, "shard-00000.zip")
    whole = path.read_bytes()
    for place, bit in itertools.product(range(len(whole)), (1, 64)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
        read: Artifact = pickle.loads(pickle.dumps(artifact))
        for image, expected in small.items():
            try:
                found = read.arrays(image)
            except DamagedArtifact:
                continue
            assert found.keys() == expected.keys()
            assert all(found[name].tobytes() == array.tobytes() for name, array in expected.items()), place


@pytest.mark.parametrize("kind", ["folder", "link", "superfluous"])
def test_odd_things_among_the_files(store: Store, place: Place, kind: str) -> None:
    published(store)
    folder = Path(store.url, STAGE, KEY)
    told: list[str] = []
    if kind == "superfluous":
        (folder / "stray.bin").write_bytes(b"x")
        assert store.find_or_set_aside(STAGE, KEY, told.append) is not None and told == []
        return
    for name in ("counts.json", "manifest.json"):
        (folder / name).unlink()
        if kind == "folder":
            (folder / name / "inner").mkdir(parents=True)
        else:
            (folder / name).symlink_to(folder / "nowhere")
        assert store.find_or_set_aside(STAGE, KEY, told.append) is None
        compute(store)
        assert store.find(STAGE, KEY) is not None
    # A manifest that is a link to nowhere is no manifest.
    assert len(told) == (2 if kind == "folder" else 1)


@pytest.mark.parametrize("file", ["counts.json", "shard-00001.zip", "manifest.json"])
def test_a_file_that_may_not_be_read_is_set_aside(file: str) -> None:
    def attempt() -> None:
        _drop_rights()
        told: list[str] = []
        assert store.find_or_set_aside(STAGE, KEY, told.append) is None
        compute(store)
        assert store.find(STAGE, KEY) is not None
        raise StoreError(told[0])

    with tempfile.TemporaryDirectory() as folder:  # nobody may enter the folders of pytest
        store = open_store(folder)
        published(store)
        for path in (Path(folder), *Path(folder).rglob("*")):
            path.chmod(0o777)
        Path(folder, STAGE, KEY, file).chmod(0)
        said = _in_child(attempt)
    assert file in said and "cannot be read: Permission denied" in said


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = open_store(str(tmp_path / "file"))
    with pytest.raises(StoreError, match="a file lies where the store needs a folder") as refused:
        store.check_writable()
    assert refused.value.where == str(tmp_path / "file") and "move that file away" in refused.value.remedy
    assert store.find(STAGE, KEY) is None


def test_opening_creates_nothing(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "absent"))
    assert store.find(STAGE, KEY) is None
    assert list(store.list()) == []
    assert not (tmp_path / "absent").exists()
    store.check_writable()
    assert (tmp_path / "absent").is_dir()


def test_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_store("relative").url == str(tmp_path / "relative")
    assert open_store((tmp_path / "a b").as_uri()).url == str(tmp_path / "a b")
    assert open_store("s3://bucket/pre/fix/", tmp_path).url == "s3://bucket/pre/fix"
    for address in ("", "https://host/bucket", "gs://bucket", "s3://", "s3://Bucket_/x", "file://host/x"):
        with pytest.raises(StoreError):
            open_store(address, tmp_path)
    with pytest.raises(StoreError, match="cache"):
        open_store("s3://bucket/x")


@pytest.mark.parametrize("address", ["s3://key:hunter2@bucket/x", "s3://bucket/x?secret_key=hunter2"])
def test_credentials_in_an_address_are_refused_and_not_repeated(address: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="AWS_ENDPOINT_URL") as caught:
        open_store(address, tmp_path)
    assert "hunter2" not in str(caught.value)
