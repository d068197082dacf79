"""What every store has to do. A back end is tested by a class that inherits StoreConformance and provides `place`."""

from __future__ import annotations

import os
import pickle
import queue
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tests.store.children import KEY, SHARDS, STAGE, check_content, compute, records

from wsss.store import Artifact, DamagedArtifact, Store, StoreError, open_store

CHILDREN = Path(__file__).with_name("children.py")


@dataclass(frozen=True)
class Place:
    """Where a test may create stores.

    Attributes:
        base: address below which each test has its own store.
        cache: folder for downloads.
        lease_seconds: for single flight on object stores.
        takeover_seconds: a waiting run must enter within this time after the holder was killed.
    """

    base: str
    cache: Path
    lease_seconds: float
    takeover_seconds: float

    def open(self) -> Store:
        """A new, empty store."""
        return open_store(f"{self.base}/{uuid.uuid4().hex[:12]}", self.cache, self.lease_seconds)

    @contextmanager
    def child(self, action: str, store: Store, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """Another process that does an action of `children.py`; killed at the end if it still runs."""
        command = [
            sys.executable,
            str(CHILDREN),
            action,
            store.url,
            str(self.cache),
            str(self.lease_seconds),
            *arguments,
        ]
        path = os.pathsep.join(entry for entry in sys.path if entry)
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def damage(store: Store, file: str, change: Callable[[bytes], bytes | None]) -> None:
    """Change what is stored in a file of the artifact of `children.compute`; None removes it."""
    path = f"{STAGE}/{KEY}/{file}"
    content = change(store.backend.read(path) or b"")
    if content is None:
        store.backend.remove(path)
    else:
        store.backend.write(path, content)


def flipped(content: bytes) -> bytes:
    """One bit in the middle is another."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGES = [
    pytest.param("shard-00001.zip", flipped, "(other content)", id="a flipped bit"),
    pytest.param("shard-00001.zip", lambda content: content[:100], "(100 bytes instead of", id="a truncated shard"),
    pytest.param("shard-00001.zip", lambda content: None, "(missing)", id="a missing shard"),
    pytest.param("shard-00001.zip", lambda content: b"", "(0 bytes instead of", id="an empty shard"),
    pytest.param("counts.json", flipped, "(other content)", id="a flipped bit of a file"),
    pytest.param("manifest.json", lambda content: b"", "cannot be read", id="an empty manifest"),
    pytest.param("manifest.json", lambda content: content[:-90], "cannot be read", id="half a manifest"),
    pytest.param("manifest.json", lambda content: b"[]", "cannot be read", id="no manifest"),
    pytest.param(
        "manifest.json",
        lambda content: content.replace(b'"test"', b'"text"'),
        "cannot be read",
        id="a changed manifest",
    ),
]


def contents(store: Store) -> dict[str, bytes | None]:
    """Everything that a store holds, byte for byte."""
    return {path: store.backend.read(path) for path in store.backend.sizes("")}


def published(store: Store) -> Artifact:
    """The artifact that `children.compute` fills, computed here."""
    compute(store)
    artifact = store.find(STAGE, KEY)
    assert artifact is not None
    return artifact


class StoreConformance:
    """Inherit, and provide the fixture `place`."""

    @pytest.fixture
    def store(self, place: Place) -> Store:
        return place.open()

    def test_reader_gets_what_was_written(self, store: Store) -> None:
        given = {
            "b": {"cam": np.linspace(0, 1, 24).reshape(2, 3, 4).astype(np.float16), "keys": np.asarray([3, 7])},
            "a": {"scalar": np.float64(2.5), "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3))},
            "ä 漢": {"empty": np.zeros((0, 5), np.int16), "flags": np.asarray([True, False])},
            "none": {},
        }
        writer = store.writer("cam", "k")
        writer.add_shard(0, given)
        writer.add_file("weights/model.pt", b"\x00\x01")
        artifact = writer.publish({"seed": 3})
        found = store.find("cam", "k")
        assert found is not None
        assert found == artifact
        assert found.images() == ["a", "b", "none", "ä 漢"]
        for image, arrays in given.items():
            read = found.arrays(image)
            assert set(read) == set(arrays)
            for name, array in arrays.items():
                assert read[name].dtype == np.asarray(array).dtype
                np.testing.assert_array_equal(read[name], array)
        assert found.path("weights/model.pt").read_bytes() == b"\x00\x01"
        assert found.path("weights/model.pt").name == "model.pt"
        assert found.provenance == {"seed": 3}
        assert (found.manifest["stage"], found.manifest["key"], found.manifest["format"]) == ("cam", "k", 1)
        assert found.size == sum(entry["size"] for entry in found.files.values()) > 0
        check_content(found)

    def test_files_from_disk_and_json(self, store: Store, tmp_path: Path) -> None:
        large = tmp_path / "large.bin"
        large.write_bytes(np.random.default_rng(0).bytes(200_000))
        writer = store.writer("score", "k")
        writer.add_file("copy.bin", large)
        writer.add_file("miou.json", b'{"miou": 0.7}')
        artifact = writer.publish({})
        assert artifact.path("copy.bin").read_bytes() == large.read_bytes()
        assert artifact.json("miou.json") == {"miou": 0.7}
        assert artifact.images() == []
        with pytest.raises(StoreError, match=r"no file 'absent'(.|\n)*copy\.bin, miou\.json"):
            artifact.path("absent")
        with pytest.raises(StoreError, match="does not exist"):
            store.writer("score", "other").add_file("x", tmp_path / "absent")

    def test_nothing_is_visible_before_publication(self, store: Store) -> None:
        writer = store.writer(STAGE, KEY)
        assert set(writer.finished_images()) == set()
        writer.add_shard(2, records(2))
        writer.add_file("x", b"x")
        assert store.find(STAGE, KEY) is None
        assert list(store.list()) == []
        assert [ref.published for ref in store.list(include_unfinished=True)] == [False]
        assert store.writer(STAGE, KEY).finished_images() == {2: tuple(sorted(records(2)))}

    def test_equal_input_gives_equal_bytes(self, place: Place) -> None:
        one, two = place.open(), place.open()
        compute(one)
        for index in reversed(range(SHARDS)):
            shuffled = dict(reversed(records(index).items()))
            two.writer(STAGE, KEY).add_shard(index, shuffled)
        compute(two)
        assert contents(one) == contents(two)

    def test_publish_wants_the_named_shards(self, store: Store) -> None:
        writer = store.writer(STAGE, KEY)
        writer.add_shard(0, records(0))
        with pytest.raises(StoreError, match=r"2 of 3 shards are not finished, the first is shard-00001\.zip"):
            writer.publish({}, shards=range(3))
        assert store.find(STAGE, KEY) is None
        writer.add_shard(7, records(7))
        artifact = writer.publish({}, shards=[0])
        assert artifact.images() == sorted(records(0))
        assert list(artifact.files) == ["shard-00000.zip"]

    def test_an_image_in_two_shards_is_refused(self, store: Store) -> None:
        writer = store.writer(STAGE, KEY)
        writer.add_shard(0, records(0))
        writer.add_shard(1, {**records(1), "2007_000001": {}})
        with pytest.raises(StoreError, match="'2007_000001' is in shard-00001"):
            writer.publish({})
        writer.discard_shard(1)
        assert set(writer.finished_images()) == {0}
        assert len(writer.publish({}).images()) == 3

    def test_a_shard_can_be_replaced_until_publication(self, store: Store) -> None:
        writer = store.writer(STAGE, KEY)
        writer.add_shard(0, records(5))
        writer.add_shard(0, records(0))
        artifact = writer.publish({})
        assert artifact.images() == sorted(records(0))
        check_content(artifact)
        before = contents(store)
        writer.add_shard(0, records(6))
        writer.add_file("late", b"late")
        assert writer.publish({"other": 1}).provenance == {}
        assert contents(store) == before
        with pytest.raises(StoreError, match="cannot lose a shard"):
            writer.discard_shard(0)

    def test_missing_and_short_files_are_named(self, store: Store) -> None:
        published(store)
        store.backend.write(f"{STAGE}/{KEY}/shard-00001.zip", b"short")
        store.backend.remove(f"{STAGE}/{KEY}/counts.json")
        with pytest.raises(StoreError) as caught:
            store.find(STAGE, KEY)
        assert "counts.json (missing)" in caught.value.what
        assert "shard-00001.zip (5 bytes instead of" in caught.value.what
        assert "shard-00000" not in caught.value.what
        assert isinstance(caught.value, DamagedArtifact) and "run the recipe again" in caught.value.remedy
        assert caught.value.where.startswith(f"{store.url}/{STAGE}/{KEY}")
        assert store.delete(STAGE, KEY)
        compute(store)
        assert store.find(STAGE, KEY) is not None

    def test_reading_finds_a_flipped_bit(self, store: Store) -> None:
        artifact = published(store)
        check_content(artifact)
        damage(store, "shard-00001.zip", flipped)
        damage(store, "counts.json", flipped)
        with pytest.raises(DamagedArtifact, match=r"shard-00001\.zip \(other content\)"):
            for image in artifact.images():
                artifact.arrays(image)
        with pytest.raises(DamagedArtifact, match=r"counts\.json \(other content\)"):
            artifact.json("counts.json")

    @pytest.mark.parametrize(("file", "change", "said"), DAMAGES)
    def test_what_is_damaged_is_set_aside_and_computed_again(
        self, place: Place, store: Store, file: str, change: Callable[[bytes], bytes | None], said: str
    ) -> None:
        undisturbed = place.open()
        compute(undisturbed)
        compute(store)
        damage(store, file, change)
        told: list[str] = []
        store.set_aside(STAGE, KEY, told.append)
        (line,) = told
        assert line.startswith(f"{STAGE}: {file} ") and said in line and "\n" not in line
        assert store.find(STAGE, KEY) is None
        kept = set(store.writer(STAGE, KEY).finished_images())
        assert kept == ({0, 2} if file == "shard-00001.zip" else {0, 1, 2})
        compute(store)
        assert contents(store) == contents(undisturbed)
        store.set_aside(STAGE, KEY, told.append)
        assert len(told) == 1 and store.find_or_set_aside(STAGE, KEY, told.append) is not None

    def test_nothing_of_another_artifact_is_kept(self, place: Place, store: Store) -> None:
        undisturbed = place.open()
        compute(undisturbed)
        writer = store.writer(STAGE, "other")
        writer.add_shard(0, records(7))
        writer.publish({})
        for path, content in contents(store).items():
            store.backend.write(path.replace("/other/", f"/{KEY}/"), content or b"")
        store.delete(STAGE, "other")
        told: list[str] = []
        assert store.find_or_set_aside(STAGE, KEY, told.append) is None
        assert told == [f"{STAGE}: manifest.json belongs to {STAGE}/other; set aside, to be computed again"]
        compute(store)
        assert contents(store) == contents(undisturbed)

    @pytest.mark.parametrize("note", [b"", b"[]", b"{}", b'{"size": 3', b'{"size": "a", "images": 3}'])
    def test_a_damaged_note_is_none(self, store: Store, note: bytes) -> None:
        writer = store.writer(STAGE, KEY)
        writer.add_shard(0, records(0))
        store.backend.write(f"{STAGE}/{KEY}/finished/shard-00000.zip.json", note)
        assert writer.finished_images() == {}
        compute(store)
        assert store.find(STAGE, KEY) is not None

    def test_a_newer_format_is_left_alone(self, store: Store) -> None:
        store.backend.write(f"{STAGE}/{KEY}/manifest.json", b'{"format": 99}')
        for attempt in (
            lambda: store.find(STAGE, KEY),
            lambda: store.find_or_set_aside(STAGE, KEY, print),
            lambda: store.set_aside(STAGE, KEY, print),
        ):
            with pytest.raises(StoreError, match=r"format 99(.|\n)*update wsss"):
                attempt()

    def test_what_was_imported_is_not_computed_in_its_place(self, store: Store) -> None:
        writer = store.writer(STAGE, KEY)
        writer.add_file("weights.pt", b"imported weights")
        writer.publish({"imported": True, "imported_from": "/a/file.pth"})
        damage(store, "weights.pt", lambda content: content[:-1])
        with pytest.raises(StoreError, match=r"imported artifact(.|\n)*import it again(.|\n)*/a/file\.pth"):
            store.find_or_set_aside(STAGE, KEY, print)

    def test_names_that_can_not_be_stored(self, store: Store) -> None:
        writer = store.writer("cam", "k")
        for name in ("../x", "", ".hidden", "a//b", "manifest.json", "finished/x", "shard-00001.zip", "a\\b"):
            with pytest.raises(StoreError, match="name"):
                writer.add_file(name, b"")
        for image in ("a/b", "", "..", "a\nb"):
            with pytest.raises(StoreError, match="name of an image"):
                writer.add_shard(0, {image: {}})
        with pytest.raises(StoreError, match="Python objects"):
            writer.add_shard(0, {"a": {"x": np.asarray([None])}})
        for stage, key in (("../up", "k"), ("cam", "a/b"), ("", "k")):
            with pytest.raises(StoreError, match="name of a"):
                store.find(stage, key)
        assert contents(store) == {}

    def test_an_unknown_image_is_named(self, store: Store) -> None:
        with pytest.raises(StoreError, match="'2099_000000' is not among the 9"):
            published(store).arrays("2099_000000")

    def test_list_sizes_and_delete(self, store: Store) -> None:
        assert (list(store.list()), store.delete("cam", "k")) == ([], False)
        for stage, key in (("crf", "b"), ("cam", "z"), ("cam", "a")):
            writer = store.writer(stage, key)
            writer.add_file("data.bin", b"x" * 5000)
            writer.publish({})
        found = list(store.list())
        assert [(ref.stage, ref.key, ref.published) for ref in found] == [
            ("cam", "a", True),
            ("cam", "z", True),
            ("crf", "b", True),
        ]
        assert all(5000 < ref.size < 7000 for ref in found)
        assert store.delete("cam", "z")
        assert store.find("cam", "z") is None
        assert [ref.key for ref in store.list()] == ["a", "b"]
        assert not any(path.startswith("cam/z") for path in contents(store))

    def test_artifacts_and_stores_travel_by_pickle(self, store: Store) -> None:
        artifact = published(store)
        assert artifact.arrays(artifact.images()[0])
        packed = pickle.dumps(artifact)
        assert len(packed) < 1000
        again: Artifact = pickle.loads(packed)
        assert again.manifest == artifact.manifest
        np.testing.assert_array_equal(again.arrays("2007_001001")["cam"], records(1)["2007_001001"]["cam"])
        assert pickle.loads(pickle.dumps(store)).find(STAGE, KEY) == artifact
        writer = pickle.loads(pickle.dumps(store.writer(STAGE, "other")))
        writer.add_shard(0, records(0))
        assert set(writer.finished_images()) == {0}

    def test_an_artifact_that_was_removed_says_so(self, store: Store) -> None:
        artifact = pickle.loads(pickle.dumps(published(store)))
        store.delete(STAGE, KEY)
        with pytest.raises(StoreError, match="no longer in the store"):
            artifact.images()

    def test_writable(self, store: Store) -> None:
        store.check_writable()
        assert contents(store) == {}

    def test_several_processes_fill_one_artifact(self, place: Place, store: Store) -> None:
        children = [place.child("add_one", store, str(index)) for index in range(SHARDS)]
        processes = [child.__enter__() for child in children]
        try:
            assert [process.wait(timeout=60) for process in processes] == [0] * SHARDS
        finally:
            for child in children:
                child.__exit__(None, None, None)
        assert set(store.writer(STAGE, KEY).finished_images()) == set(range(SHARDS))
        undisturbed = place.open()
        compute(undisturbed)
        compute(store)
        assert contents(store) == contents(undisturbed)

    @pytest.mark.parametrize(
        ("where", "finished"), [("in_shard", {0}), ("before_note", {0}), ("before_manifest", {0, 1, 2})]
    )
    def test_a_killed_run_continues(self, place: Place, store: Store, where: str, finished: set[int]) -> None:
        with place.child("compute_and_die", store, where) as process:
            assert process.wait(timeout=60) == -9
        assert store.find(STAGE, KEY) is None
        assert set(store.writer(STAGE, KEY).finished_images()) == finished
        compute(store)
        undisturbed = place.open()
        compute(undisturbed)
        assert contents(store) == contents(undisturbed)
        self.check_no_leftovers(store, undisturbed)

    def check_no_leftovers(self, store: Store, undisturbed: Store) -> None:
        """A back end that can leave hidden temporary files looks for them here."""

    def test_racing_processes_compute_once(self, place: Place, store: Store, tmp_path: Path) -> None:
        journal = tmp_path / "journal"
        children = [place.child("race", store, str(journal)) for _ in range(3)]
        processes = [child.__enter__() for child in children]
        try:
            outputs = [process.communicate(timeout=90)[0].strip() for process in processes]
        finally:
            for child in children:
                child.__exit__(None, None, None)
        assert outputs == ["9"] * 3
        assert len(journal.read_text().splitlines()) == 1

    def test_another_takes_over_from_a_killed_holder(self, place: Place, store: Store) -> None:
        with place.child("hold", store) as holder, place.child("hold", store) as waiter:
            lines: queue.Queue[tuple[str, str]] = queue.Queue()
            for name, process in (("holder", holder), ("waiter", waiter)):
                threading.Thread(target=_forward, args=(name, process, lines), daemon=True).start()
            first, line = lines.get(timeout=60)
            if line.startswith("waiting"):  # the other was quicker
                second, line = first, line
                first, line = lines.get(timeout=60)
                assert first != second
            else:
                second, waiting = lines.get(timeout=60)
                assert waiting.startswith("waiting for process ")
            assert line == "held"
            (holder if first == "holder" else waiter).kill()
            killed = time.monotonic()
            assert lines.get(timeout=60) == (second, "held")
            assert time.monotonic() - killed < place.takeover_seconds

    def test_threads_exclude_each_other(self, store: Store) -> None:
        inside: list[int] = []
        waited: list[str] = []

        def work() -> None:
            with store.single_flight(STAGE, KEY, on_wait=waited.append):
                inside.append(+1)
                time.sleep(0.3)
                assert sum(inside) == 1
                inside.append(-1)

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        with store.single_flight(STAGE, "another"):
            pass  # another key does not wait
        for thread in threads:
            thread.join(timeout=60)
        assert inside == [1, -1, 1, -1]
        assert len(waited) == 1

    def test_single_flight_is_freed_by_an_error(self, store: Store) -> None:
        with pytest.raises(ZeroDivisionError), store.single_flight(STAGE, KEY):
            raise ZeroDivisionError
        begun = time.monotonic()
        with store.single_flight(STAGE, KEY):
            assert time.monotonic() - begun < 5
        assert list(store.list(include_unfinished=True)) == []


def _forward(name: str, process: subprocess.Popen[str], lines: queue.Queue[tuple[str, str]]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put((name, line.strip()))
