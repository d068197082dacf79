"""The store in a bucket: conformance on moto and on a real Swift, leases, and what goes wrong with networks."""

from __future__ import annotations

import os
import pickle
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from tests.store.bad_connection import BadConnection
from tests.store.children import KEY, STAGE, check_content, compute, records
from tests.store.conformance import Place, StoreConformance, flipped, published
from tests.store.conftest import free_port

from wsss.store import Store, StoreError, open_store, s3
from wsss.store.s3 import S3Files

LEASE_SECONDS = 2.0


def _place(address: str, tmp_path: Path) -> Place:
    # Silence of one lease, the pauses between two looks, and a loaded machine.
    return Place(address, tmp_path / "cache", LEASE_SECONDS, takeover_seconds=LEASE_SECONDS + 6)


class TestMoto(StoreConformance):
    @pytest.fixture
    def place(self, moto: str, tmp_path: Path) -> Place:
        return _place(moto, tmp_path)


@pytest.mark.slow
class TestSwift(StoreConformance):
    @pytest.fixture
    def place(self, swift: str, tmp_path: Path) -> Place:
        return _place(swift, tmp_path)

    def test_wrong_credentials(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        store = place.open()
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
        for attempt in (store.check_writable, lambda: store.find(STAGE, KEY), lambda: list(store.list())):
            with pytest.raises(StoreError, match="refused the credentials") as caught:
                attempt()
            assert "hunter2" not in str(caught.value)
            assert "AWS_SECRET_ACCESS_KEY" in caught.value.remedy


@pytest.fixture
def place(moto: str, tmp_path: Path) -> Place:
    return _place(moto, tmp_path)


@pytest.fixture
def store(place: Place) -> Store:
    return place.open()


def test_files_are_downloaded_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = published(store)
    first = artifact.path("counts.json")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    assert artifact.path("counts.json") == first
    assert artifact.json("counts.json") == {"images": 9}


@pytest.mark.parametrize("change", [lambda content: content[:3], flipped, lambda content: b""])
def test_a_damaged_cached_copy_is_fetched_again(store: Store, change: Callable[[bytes], bytes]) -> None:
    artifact = published(store)
    path = artifact.path("counts.json")
    whole = path.read_bytes()
    path.write_bytes(change(whole))
    assert artifact.path("counts.json").read_bytes() == whole
    shard = artifact.path("shard-00001.zip")
    shard.write_bytes(change(shard.read_bytes()))
    for image, arrays in records(1).items():
        for name, array in arrays.items():
            assert artifact.arrays(image)[name].tobytes() == array.tobytes()


def test_other_content_under_the_same_key_is_not_served_from_the_cache(store: Store) -> None:
    for content in (b"one", b"two"):
        writer = store.writer("score", "k")
        writer.add_file("x.txt", content)
        assert writer.publish({}).path("x.txt").read_bytes() == content
        store.delete("score", "k")


def test_a_heartbeat_keeps_the_lease(place: Place, store: Store) -> None:
    order: list[str] = []
    held = threading.Event()
    quick = open_store(store.url, place.cache, lease_seconds=1.0)

    def hold() -> None:
        with quick.single_flight(STAGE, KEY):
            held.set()
            time.sleep(3.5)
            order.append("holder leaves")

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(timeout=20)
    with quick.single_flight(STAGE, KEY):
        order.append("other enters")
    thread.join()
    assert order == ["holder leaves", "other enters"]


def test_a_holder_whose_lease_was_taken_over_leaves_it_alone(place: Place, store: Store) -> None:
    backend = store.backend
    assert isinstance(backend, S3Files)
    path = f".leases/{STAGE}/{KEY}.json"
    foreign = b'{"owner": "somebody else", "holder": "process 1 on elsewhere", "beat": 7}'
    with open_store(store.url, place.cache, lease_seconds=0.4).single_flight(STAGE, KEY):
        assert backend.read(path)
        backend.write(path, foreign)
        time.sleep(0.5)
    assert backend.read(path) == foreign


@pytest.mark.parametrize("lease", [b"", b"not json", b"[1]"])
def test_a_broken_lease_goes_stale(place: Place, store: Store, lease: bytes) -> None:
    store.backend.write(f".leases/{STAGE}/{KEY}.json", lease)
    begun = time.monotonic()
    waited: list[str] = []
    with open_store(store.url, place.cache, lease_seconds=0.5).single_flight(STAGE, KEY, on_wait=waited.append):
        assert 0.4 < time.monotonic() - begun < 10
    assert len(waited) == 1


def test_a_missing_bucket_is_named(place: Place) -> None:
    store = open_store("s3://no-such-bucket/x", place.cache)
    for attempt in (store.check_writable, lambda: store.find(STAGE, KEY), lambda: compute(store)):
        with pytest.raises(StoreError, match="the bucket 'no-such-bucket' does not exist"):
            attempt()


def test_no_credentials_at_all(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StoreError, match=r"no credentials(.|\n)*AWS_ACCESS_KEY_ID"):
        store.check_writable()


def test_a_refused_endpoint_is_named_within_bounded_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://someone:hunter2@127.0.0.1:{port}")
    for attempt in (store.check_writable, lambda: store.find(STAGE, KEY)):
        begun = time.monotonic()
        with pytest.raises(StoreError, match=rf"cannot reach the object store at http://127\.0\.0\.1:{port}") as caught:
            attempt()
        assert time.monotonic() - begun < 20
        assert "hunter2" not in str(caught.value)


def test_an_endpoint_that_swallows_packets_is_given_up(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        address = server.getsockname()
        full = [socket.socket() for _ in range(4)]  # the kernel drops connections beyond the queue
        for waiting in full:
            waiting.setblocking(False)
            waiting.connect_ex(address)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{address[1]}")
        begun = time.monotonic()
        with pytest.raises(StoreError, match="cannot reach the object store"):
            store.check_writable()
        assert time.monotonic() - begun < 20
        for waiting in full:
            waiting.close()


@contextmanager
def hiccups(faults: list[int]) -> Iterator[str]:
    """A proxy to the endpoint that cuts the answer of each connection after so many bytes; then it behaves."""
    target = urlsplit(os.environ["AWS_ENDPOINT_URL"])
    server = socket.create_server(("127.0.0.1", 0))

    def serve(client: socket.socket, limit: int | None) -> None:
        with client, socket.create_connection((str(target.hostname), int(target.port or 80))) as upstream:
            forward = threading.Thread(target=_pump, args=(client, upstream, None), daemon=True)
            forward.start()
            _pump(upstream, client, limit)

    def accept() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            limit = faults.pop(0) if faults else None
            threading.Thread(target=serve, args=(client, limit), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
    finally:
        server.close()


def _pump(source: socket.socket, sink: socket.socket, limit: int | None) -> None:
    sent = 0
    try:
        with suppress(OSError):  # either side may be gone: that is what this is for
            while content := source.recv(1 << 16):
                if limit is not None:
                    content = content[: limit - sent]
                sink.sendall(content)
                sent += len(content)
                if limit is not None and sent >= limit:
                    break
    finally:
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def test_hiccups_while_writing_are_retried(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = [0, 0]
    with hiccups(faults) as endpoint, monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        compute(store)
    assert faults == []
    found = store.find(STAGE, KEY)
    assert found is not None
    check_content(found)


def test_an_object_store_that_has_answered_may_be_away_for_seconds(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The four tries of a first call are over within a second. A worker has not called before, but its driver has."""
    connection = BadConnection(os.environ["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", connection.url)
    assert store.find(STAGE, KEY) is None
    travelling = pickle.dumps(store)
    s3._answered.clear()
    store = pickle.loads(travelling)
    connection.set("unavailable")
    back = threading.Timer(7.0, connection.set, ["good"])
    back.start()
    begun = time.monotonic()
    assert store.find(STAGE, KEY) is None
    assert time.monotonic() - begun > 6.9 and connection.faults >= 3
    back.join()
    connection.close()


def test_one_that_stays_away_is_told_once_and_asked_for_about_two_minutes(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    connection = BadConnection(os.environ["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", connection.url)
    assert store.find(STAGE, KEY) is None
    connection.set("refused")
    pauses: list[float] = []
    monkeypatch.setattr("botocore.endpoint.time", SimpleNamespace(sleep=pauses.append, time=time.time))
    with pytest.raises(StoreError, match="cannot reach the object store"):
        store.find(STAGE, KEY)
    assert len(pauses) == 20 and 45 < sum(pauses) < 200  # random: 123 s on average, with a deviation of 19
    assert [record.message for record in caplog.records if "does not answer" in record.message] == [
        f"the object store at {connection.url} does not answer; it is asked again for about two minutes"
    ]
    connection.close()


def test_a_download_that_breaks_in_the_middle_continues(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = published(store)
    assert artifact.manifest
    faults = [100_000, 60_000]
    with hiccups(faults) as endpoint, monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        cam = artifact.arrays("2007_001001")["cam"]
    assert faults == []
    assert cam.tobytes() == records(1)["2007_001001"]["cam"].tobytes()


def test_large_files_go_in_parts(store: Store, tmp_path: Path) -> None:
    large = tmp_path / "large.bin"
    block = uuid.uuid4().bytes * 65536
    with large.open("wb") as file:
        for _ in range(34):
            file.write(block)
    writer = store.writer("train", "k")
    writer.add_file("weights.pt", large)
    artifact = writer.publish({})
    assert artifact.size == 34 << 20
    check_content(artifact)
