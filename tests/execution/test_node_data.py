"""Nodes are asked for the data of a stage before they get work, and named with what they lack. Ray is played."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.data.conftest import SMALL, voc_config, voc_root  # noqa: F401  fixtures
from tests.store.conftest import moto, moto_environment  # noqa: F401  fixtures

from wsss.data import fetched
from wsss.data.config import DatasetConfig
from wsss.data.dataset import Dataset, load_dataset
from wsss.data.fetched import packed_files
from wsss.data.packed import push
from wsss.execution import node_data
from wsss.execution.node_data import NodeDataError, check_nodes
from wsss.recipe import Address


class Nodes:
    """A head that the driver is on, and worker nodes with homes of their own, all played by this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.monkeypatch, self.folder = monkeypatch, folder
        self.there, self.asked, self.said = ["a", "b"], [], []
        self.accident: dict[str, Callable[[pytest.MonkeyPatch], None]] = {}
        look = node_data._look._function  # pyright: ignore[reportAttributeAccessIssue]
        self.look = look
        options = SimpleNamespace(options=lambda label_selector: SimpleNamespace(remote=self._remote(label_selector)))
        monkeypatch.setattr(node_data, "_look", options)
        monkeypatch.setattr(node_data, "_ready", set())
        monkeypatch.setattr(node_data.ray, "nodes", lambda: [self.node("head", 0), *map(self.node, self.there)])
        monkeypatch.setattr(node_data.ray, "get", lambda answer: answer)
        context = SimpleNamespace(get_node_id=lambda: "head")
        monkeypatch.setattr(node_data.ray, "get_runtime_context", lambda: context)

    @staticmethod
    def node(name: str, cpus: int = 2) -> dict[str, Any]:
        return {"NodeID": name, "NodeManagerAddress": f"10.0.0.{name}", "Alive": True, "Resources": {"CPU": cpus}}

    def home(self, name: str) -> Path:
        return self.folder / f"home_{name}"

    def _remote(self, label_selector: dict[str, str]) -> Callable[[Any], Any]:
        def run(wanted: Any) -> Any:
            (name,) = label_selector.values()
            self.asked.append(name)
            with self.monkeypatch.context() as patch:
                patch.setenv("WSSS_HOME", str(self.home(name)))
                self.accident.get(name, lambda patch: None)(patch)
                return pickle.loads(pickle.dumps(self.look(pickle.loads(pickle.dumps(wanted)))))

        return run

    def check(self, dataset: Dataset, *files: Path) -> None:
        check_nodes("cam_train", dataset, files, self.said.append)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Nodes:
    return Nodes(monkeypatch, tmp_path)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load_dataset(DatasetConfig(shapes=SMALL), tmp_path_factory.mktemp("home"))


@pytest.fixture
def dataset(voc_config: DatasetConfig, tmp_path: Path) -> Dataset:  # noqa: F811
    return load_dataset(voc_config, tmp_path / "home")


@pytest.fixture
def packed(dataset: Dataset, moto: str, tmp_path: Path) -> Dataset:  # noqa: F811
    address = f"{moto}/{tmp_path.name}"
    push(dataset.name, dataset.files.belongings(), packed_files(address), dataset.cache)
    return load_dataset(DatasetConfig(name="voc2012", root=Address(address)), tmp_path / "home")


def test_every_node_fetches_a_packed_data_set_once_into_its_own_home(packed: Dataset, nodes: Nodes) -> None:
    nodes.check(packed)
    nodes.check(packed)
    nodes.there.append("c")
    nodes.check(packed)
    assert nodes.asked == ["a", "b", "c"], "the driver's node has it, and nobody is asked twice"
    assert len(nodes.said) == 3 and all("fetched 3" in line for line in nodes.said)
    for name in nodes.there:
        assert (nodes.home(name) / packed.root.relative_to(packed.home or Path())).is_dir()


def test_a_node_without_room_says_so(packed: Dataset, nodes: Nodes) -> None:
    usage = shutil.disk_usage(nodes.folder)
    full = usage._replace(free=2_000)
    nodes.accident["b"] = lambda patch: patch.setattr(fetched.shutil, "disk_usage", lambda path: full)
    with pytest.raises(NodeDataError, match="1 node cannot take the work") as caught:
        nodes.check(packed)
    said = str(caught.value)
    assert "node 10.0.0.b" in said and "10.0.0.a" not in said
    assert "has no room" in said and "2.0 kB are free" in said and "stage cam_train" in said
    del nodes.accident["b"]
    nodes.check(packed)
    assert nodes.asked == ["a", "b", "b"]


def test_a_node_that_does_not_share_the_folder_is_named(dataset: Dataset, nodes: Nodes) -> None:
    nodes.check(dataset)
    assert nodes.said == []
    nodes.there = ["c", "d"]
    away = dataset.root.with_name("away")

    def unmounted(patch: pytest.MonkeyPatch) -> None:
        dataset.root.rename(away)

    nodes.accident["d"] = unmounted
    with pytest.raises(NodeDataError) as caught:
        nodes.check(dataset)
    said = str(caught.value)
    assert "node 10.0.0.d: the data set is not there" in said and "10.0.0.c" not in said
    assert str(dataset.root) in said and "wsss data push" in said


def test_a_generated_set_needs_nothing(shapes: Dataset, nodes: Nodes) -> None:
    nodes.check(shapes)
    assert nodes.asked == ["a", "b"]
    assert (nodes.home("b") / "data" / shapes.root.name / "JPEGImages").is_dir()


def test_weight_files_are_looked_for_too(dataset: Dataset, nodes: Nodes) -> None:
    weights, own = nodes.folder / "shared.pth", nodes.folder / "home" / "weights" / "own.pth"
    for path in (weights, own):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"weights")
    nodes.check(dataset, weights)
    own_there = nodes.home("a") / "weights" / "own.pth"
    own_there.parent.mkdir(parents=True)
    own_there.write_bytes(b"weights")
    with pytest.raises(NodeDataError) as caught:
        nodes.check(dataset, weights, own)
    said = str(caught.value)
    assert "node 10.0.0.b: a weight file is not there" in said and "10.0.0.a" not in said
    assert str(nodes.home("b") / "weights" / "own.pth") in said
