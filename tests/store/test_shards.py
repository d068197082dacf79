"""Packed shards: readable one image at a time, by anybody's zip reader, and equal for equal input."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from wsss.store import ShardIndex, StoreError, encode_shard

RECORDS = {
    "2007_000032": {"cam": np.linspace(0, 1, 12, dtype=np.float16).reshape(1, 3, 4), "keys": np.asarray([1], np.uint8)},
    "2007_000039": {"cam": np.ones((2, 3, 4), np.float16), "keys": np.asarray([2, 19], np.uint8)},
}


def write(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "shard.zip"
    path.write_bytes(content)
    return path


def test_a_plain_zip_reader_and_numpy_can_read_it() -> None:
    with zipfile.ZipFile(io.BytesIO(encode_shard(RECORDS))) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [
            "2007_000032/cam.npy",
            "2007_000032/keys.npy",
            "2007_000039/cam.npy",
            "2007_000039/keys.npy",
        ]
        cam = np.load(io.BytesIO(archive.read("2007_000039/cam.npy")), allow_pickle=False)
    np.testing.assert_array_equal(cam, RECORDS["2007_000039"]["cam"])


def test_bytes_do_not_depend_on_order_layout_or_time(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = encode_shard(RECORDS)
    monkeypatch.setattr("time.time", lambda: 2e9)
    other = {
        image: {name: np.asfortranarray(RECORDS[image][name]) for name in reversed(RECORDS[image])}
        for image in reversed(RECORDS)
    }
    other["2007_000032"]["cam"] = other["2007_000032"]["cam"].astype(">f2")
    assert encode_shard(other) == expected


def test_only_the_wanted_image_is_read(tmp_path: Path) -> None:
    content = bytearray(encode_shard(RECORDS))
    damaged_at = content.index(RECORDS["2007_000039"]["cam"].tobytes())
    content[damaged_at] ^= 1
    index = ShardIndex.open(write(tmp_path, bytes(content)))
    assert tuple(index.entries) == ("2007_000032", "2007_000039")
    np.testing.assert_array_equal(index.arrays("2007_000032")["cam"], RECORDS["2007_000032"]["cam"])
    with pytest.raises(StoreError, match=r"image '2007_000039'|2007_000039/cam\.npy"):
        index.arrays("2007_000039")
    with pytest.raises(KeyError):
        index.arrays("2007_000040")


@pytest.mark.parametrize("kept", [0, 10, 200, -1])
def test_a_cut_shard_is_damaged(tmp_path: Path, kept: int) -> None:
    with pytest.raises(StoreError, match=r"damaged(.|\n)*shard\.zip"):
        ShardIndex.open(write(tmp_path, encode_shard(RECORDS)[:kept]))


def test_a_shard_that_shrinks_after_it_was_opened_is_damaged(tmp_path: Path) -> None:
    path = write(tmp_path, encode_shard(RECORDS))
    index = ShardIndex.open(path)
    for kept in (0, 20, 60):
        path.write_bytes(encode_shard(RECORDS)[:kept])
        with pytest.raises(StoreError, match="damaged"):
            index.arrays("2007_000032")
    path.unlink()
    with pytest.raises(StoreError, match="damaged"):
        index.arrays("2007_000032")


def test_label_maps_shrink_and_cams_stay_as_they_are() -> None:
    label = np.zeros((375, 500), np.uint8)
    label[100:200, 100:300] = 7
    cam = np.random.default_rng(0).random((1, 94, 125)).astype(np.float16)
    assert len(encode_shard({"a": {"label": label}})) < label.nbytes / 50
    assert cam.tobytes() in encode_shard({"a": {"cam": cam}})
