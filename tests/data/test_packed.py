"""A data set in an object store: packed alike each time, fetched once, checked, bounded, the same keys as a folder."""

from __future__ import annotations

import dataclasses
import io
import json
import multiprocessing
import pickle
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.data.coco_set import write_coco
from tests.store.conftest import moto, moto_environment  # noqa: F401  fixtures

from wsss.commands.main import main
from wsss.data import fetched, packed
from wsss.data.check import check_dataset
from wsss.data.config import DatasetConfig
from wsss.data.dataset import Dataset, load_dataset
from wsss.data.errors import DataError, LabelFirewallError
from wsss.data.fetched import fetch_packed, packed_files
from wsss.data.firewall import forbid_mask_reading
from wsss.data.packed import Pushed, push, read_index
from wsss.recipe import Address, RecipeError, load_recipe, to_dict
from wsss.store.s3 import S3Files

READS = ("images", "image_labels", "masks")


@pytest.fixture(autouse=True)
def small_packs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(packed, "PACK_BYTES", 6_000)
    yield
    as_another_process()


def as_another_process() -> None:
    """What this process used is in use no longer."""
    for lock in fetched._used.values():
        lock.close()
    fetched._used.clear()


@pytest.fixture
def address(moto: str, tmp_path: Path) -> str:  # noqa: F811
    return f"{moto}/{tmp_path.name}"


@pytest.fixture
def folder(voc_config: DatasetConfig, tmp_path: Path) -> Dataset:
    return load_dataset(voc_config, tmp_path / "home")


def pushed(dataset: Dataset, address: str) -> Pushed:
    return push(dataset.name, dataset.files.belongings(), packed_files(address), dataset.cache)


def at(address: str, **settings: Any) -> DatasetConfig:
    return DatasetConfig(name="voc2012", root=Address(address), **settings)


def files_of(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def objects_of(address: str) -> dict[str, float]:
    return {path: entry.modified for path, entry in packed_files(address).entries().items()}


def count_requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Packs that are read from now on."""
    read: list[str] = []
    blocks = S3Files.blocks

    def counted(self: S3Files, path: str, start: int = 0) -> Any:
        read.append(path)
        return blocks(self, path, start)

    monkeypatch.setattr(S3Files, "blocks", counted)
    return read


def test_a_packed_data_set_is_used_like_the_folder_and_has_its_keys(
    folder: Dataset, address: str, tmp_path: Path
) -> None:
    index = pushed(folder, address).index
    assert len(index.packs) > 3
    there = load_dataset(at(address), tmp_path / "node")
    wanted = {name: content for name, content in files_of(folder.root).items() if name != "shapes.json"}
    assert files_of(there.root) == wanted
    assert there.root.is_relative_to(tmp_path / "node" / "data" / "fetched" / index.digest)
    for image_list in (None, *folder.lists):
        assert there.digest(image_list, READS) == folder.digest(image_list, READS)
    assert there.label_provenance == folder.label_provenance
    assert there.files.mask_provenance == folder.files.mask_provenance
    assert check_dataset(at(address), tmp_path / "node") == check_dataset(folder)


def test_packs_are_ordinary_tar_files_and_keep_masks_apart(folder: Dataset, address: str) -> None:
    index = pushed(folder, address).index
    found: dict[str, bytes] = {}
    for pack in index.packs:
        content = packed_files(address).read(pack.name)
        assert content is not None
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            members = {member.name: member for member in archive.getmembers()}
            assert len({name.partition("/")[0] for name in members}) == 1
            assert all((member.mtime, member.uid, member.uname) == (0, 0, "") for member in members.values())
            for name in members:
                stream = archive.extractfile(name)
                assert stream is not None
                found[name] = stream.read()
    assert found == {name: content for name, content in files_of(folder.root).items() if name != "shapes.json"}


def test_nothing_is_uploaded_twice_and_a_broken_push_continues(
    folder: Dataset, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken, pytest.raises(OSError, match="cut"):
        write, left = S3Files.write_stream, [2]

        def cut(self: S3Files, path: str, content: Any) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise OSError("cut")
            write(self, path, content)

        broken.setattr(S3Files, "write_stream", cut)
        pushed(folder, address)
    with pytest.raises(DataError, match="no packed data set"):
        load_dataset(at(address), tmp_path / "node")
    assert len(objects_of(address)) == 2
    again = pushed(folder, address)
    assert again.uploaded_packs == len(again.index.packs) - 2 > 0
    before = objects_of(address)
    third = pushed(folder, address)
    assert (third.uploaded_packs, third.uploaded_bytes) == (0, 0) and objects_of(address) == before
    # The same data from elsewhere gives the same objects; a changed file one new pack.
    copy = tmp_path / "copy" / "VOC2012"
    shutil.copytree(folder.root, copy)
    other = load_dataset(DatasetConfig(name="voc2012", root=copy), tmp_path / "other")
    assert pushed(other, address).uploaded_packs == 0
    changed = other.mask_path(other.names("val")[0], "val")
    changed.write_bytes(folder.mask_path(folder.names("val")[1], "val").read_bytes())
    assert pushed(other, address).uploaded_packs == 1


def test_it_is_fetched_once_and_an_interrupted_fetch_continues(
    folder: Dataset, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = pushed(folder, address).index
    write, left = fetched.write_file, [7]

    def cut(target: Path, content: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        write(target, content)

    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(fetched, "write_file", cut)
        fetch_packed(address, tmp_path / "node")
    read = count_requests(monkeypatch)
    whole = fetch_packed(address, tmp_path / "node")
    assert whole.received == index.size - sum(file.size for file in list(index.files)[:6])
    assert len(read) == len(set(read)) <= len(index.packs)
    del read[:]
    assert fetch_packed(address, tmp_path / "node", index.digest).received == 0 and read == []
    # A file that is gone or cut short comes again, alone.
    lost, cut_short = list(index.files)[3], list(index.files)[-1]
    (whole.root / lost.path).unlink()
    (whole.root / cut_short.path).write_bytes(b"")
    assert fetch_packed(address, tmp_path / "node").received == lost.size + cut_short.size
    assert files_of(whole.root) == {name: data for name, data in files_of(folder.root).items() if name != "shapes.json"}


def _fetch_in_child(address: str, home: Path, start: Any, told: Any) -> None:
    start.wait()
    told.put(fetch_packed(address, home).received)


def test_two_processes_of_a_node_fetch_once(folder: Dataset, address: str, tmp_path: Path) -> None:
    index = pushed(folder, address).index
    context = multiprocessing.get_context("spawn")
    start, told = context.Barrier(2), context.Queue()
    children = [
        context.Process(target=_fetch_in_child, args=(address, tmp_path / "node", start, told)) for _ in range(2)
    ]
    for child in children:
        child.start()
    assert sorted(told.get(timeout=600) for _ in children) == [0, index.size]
    for child in children:
        child.join(timeout=60)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("flip", "has another content than was pushed"),
        ("cut", "bytes instead of"),
        ("remove", "is missing"),
        ("index", "the index of the packed data set is damaged"),
        ("escape", "the index of the packed data set is damaged"),
        ("swap", "the index of the packed data set is damaged"),
        ("version", "has format 2"),
        ("other", "is voc2012, not coco2014"),
    ],
)
def test_what_is_damaged_is_refused_with_one_error(
    damage: str, message: str, folder: Dataset, address: str, tmp_path: Path
) -> None:
    pack = pushed(folder, address).index.packs[1]
    objects = packed_files(address)
    content, raw = objects.read(pack.name), json.loads(objects.read("index.json") or b"")
    assert content is not None
    if damage == "flip":
        place = pack.files[0].offset + 5
        objects.write(pack.name, content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    elif damage == "cut":
        objects.write(pack.name, content[:-1000])
    elif damage == "remove":
        objects.remove(pack.name)
    elif damage == "index":
        objects.write("index.json", json.dumps(raw).encode()[:-20])
    elif damage == "escape":
        raw["packs"][0]["files"][0][0] = "../../outside"
    elif damage == "swap":
        raw["packs"][0]["files"][0][2] = raw["packs"][1]["files"][0][2]
    elif damage == "version":
        raw["format"] = 2
    if damage in ("escape", "swap", "version"):
        objects.write("index.json", json.dumps(raw).encode())
    config = dataclasses.replace(at(address), name="coco2014" if damage == "other" else "voc2012")
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(config, tmp_path / "node")
    assert address in str(caught.value) and "do:" in str(caught.value)
    assert not (tmp_path / "outside").exists()
    for path, data in files_of(tmp_path / "node").items():  # what came is whole
        assert not path.endswith(".jpg") or data == (folder.root / "JPEGImages" / Path(path).name).read_bytes()


def test_the_bound_removes_what_was_used_longest_ago_and_nothing_in_use(
    folder: Dataset, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "node"
    found = []
    for number in range(4):
        (folder.root / "Annotations").mkdir(exist_ok=True)
        (folder.root / "Annotations" / "note.xml").write_text(f"set {number}")
        pushed(folder, f"{address}/{number}")
        found.append(read_index(packed_files(f"{address}/{number}")))
    size = found[0].size
    monkeypatch.setenv("WSSS_DATA_GIGABYTES", f"{2.5 * size / 1e9:.12f}")
    for number in (0, 1):
        fetch_packed(f"{address}/{number}", home)
        as_another_process()
    fetch_packed(f"{address}/0", home)
    fetch_packed(f"{address}/2", home)
    left = {path.name for path in (home / "data" / "fetched").iterdir() if path.is_dir()}
    assert left == {found[0].digest, found[2].digest}, "1 was used longest ago"
    with pytest.raises(DataError, match=r"WSSS_DATA_GIGABYTES allows beside .* of others in use") as caught:
        fetch_packed(f"{address}/3", home)
    assert "node " in caught.value.what and "has no room" in caught.value.what
    assert {path.name for path in (home / "data" / "fetched").iterdir() if path.is_dir()} == left
    monkeypatch.setenv("WSSS_DATA_GIGABYTES", "a lot")
    with pytest.raises(DataError, match="no number of gigabytes"):
        fetch_packed(f"{address}/3", tmp_path / "elsewhere")


def test_a_disk_without_room_is_told_before_anything_is_fetched(
    folder: Dataset, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed(folder, address)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(fetched.shutil, "disk_usage", lambda path: usage._replace(free=1_000))
    read = count_requests(monkeypatch)
    with pytest.raises(DataError, match=r"has no room for the data set: .* 1\.0 kB are free on its disk"):
        load_dataset(at(address), tmp_path / "node")
    assert read == []


def test_a_view_that_travels_finds_the_data_in_the_home_of_its_node(
    folder: Dataset, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed(folder, address)
    driver = load_dataset(at(address), tmp_path / "driver")
    sent = pickle.dumps((driver.view(READS, "val"), driver.image_facts("val"), driver.origin))
    shutil.rmtree(tmp_path / "driver")
    monkeypatch.setenv("WSSS_HOME", str(tmp_path / "node"))
    view, facts, origin = pickle.loads(sent)
    ours = folder.view(READS, "val")
    for name in ours.names:
        assert (view.image(name) == ours.image(name)).all() and (view.mask(name) == ours.mask(name)).all()
        assert facts.size(name) == ours.image_size(name)
    assert not (tmp_path / "driver").exists()
    # Masks are closed where the node has them, too.
    training = pickle.loads(pickle.dumps(driver.view({"images", "image_labels"}, "val")))
    there = [origin.here(path) for path in driver.mask_folders]
    assert all(path.is_relative_to(tmp_path / "node") and path.is_dir() for path in there[:1])
    with pytest.raises(LabelFirewallError), forbid_mask_reading(there):
        assert training.image(training.names[0]).any()
        view.mask(ours.names[0])


def test_a_generated_set_is_generated_where_it_is_missing(
    shapes: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = pickle.dumps(shapes.view(READS, "val"))
    monkeypatch.setenv("WSSS_HOME", str(tmp_path / "node"))
    view = pickle.loads(sent)
    assert (view.image(view.names[0]) == shapes.view(READS, "val").image(view.names[0])).all()
    assert files_of(tmp_path / "node" / "data" / shapes.root.name) == files_of(shapes.root)


def test_coco_comes_with_the_masks_that_were_made(address: str, tmp_path: Path) -> None:
    root = write_coco(tmp_path / "COCO2014")
    folder = load_dataset(DatasetConfig(name="coco2014", root=root), tmp_path / "home")
    folder.prepare_masks(None)
    pushed(folder, address)
    there = load_dataset(DatasetConfig(name="coco2014", root=Address(address)), tmp_path / "node")
    assert there.digest(None, READS) == folder.digest(None, READS)
    assert there.files.mask_provenance == folder.files.mask_provenance
    assert there.files.masks("train")[0].folder.is_relative_to(there.root), "none is made again"
    assert any(there.files.masks("train")[0].folder.is_relative_to(path) for path in there.mask_folders)
    assert not (tmp_path / "node" / "data" / "coco2014-masks").exists()


def test_the_command_pushes_and_says_how_recipes_find_it(
    folder: Dataset, address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data", "push", "voc2012", f"dataset.root={folder.root}", address, "--home", str(tmp_path / "home")]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert f"dataset.root={address}" in said and "uploaded now" in said
    assert main(words) == 0 and "0 B uploaded now" in capsys.readouterr().out
    check = ["data", "check", "voc2012", f"dataset.root={address}", "--home", str(tmp_path / "node")]
    assert main(check) == 0 and "0 errors" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("voc2012",), "one address is needed"),
        (("shapes", "s3://bucket/x"), "is not pushed"),
        (("voc2012", "ftp://bucket/x"), "not an address of a store"),
        (("voc2012", "file:///tmp/x"), "lie in an object store"),
    ],
)
def test_a_push_to_nowhere_is_refused(
    words: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "push", *words, "--home", str(tmp_path)]) != 0
    assert message in capsys.readouterr().err


def test_a_root_may_be_an_address_and_stays_one() -> None:
    config = load_recipe(DatasetConfig, None, ["name=voc2012", "root=s3://bucket/prefix"])
    assert config.root == "s3://bucket/prefix" and isinstance(config.root, Address)
    assert type(to_dict(config)["root"]) is str and to_dict(config)["root"] == "s3://bucket/prefix"
    with pytest.raises(RecipeError, match="is an address, and a path is wanted"):
        load_recipe(DatasetConfig, None, ["name=voc2012", "image_label_file=s3://bucket/labels.txt"])
