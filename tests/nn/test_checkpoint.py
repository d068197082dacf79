"""Weights in every layout that published files have, and errors that say what does not fit."""

import argparse

import pytest
import torch
from torch import nn

from wsss.nn.checkpoint import (
    CheckpointError,
    canonical_state_dict,
    check_weights_file,
    load_imagenet_body,
    load_weights,
    official_state_dict,
    read_checkpoint,
    state_dict_of,
)

ALIASES = (("stage1.0", "conv"), ("copy", "conv"))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)


@pytest.fixture
def trained() -> Network:
    torch.manual_seed(0)
    network = Network()
    nn.init.normal_(network.norm.weight)
    return network


def _same(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return all(torch.equal(value, right[name]) for name, value in left.items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"net_state_dict": state},
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {"net_state_dict": {"network1": state}},
        lambda state: {"net_state_dict": {"network1": {f"module.{n}": v for n, v in state.items()}}},
        lambda state: {n: v for n, v in state.items() if not n.endswith("num_batches_tracked")},
    ],
    ids=["flat", "net_state_dict", "state_dict", "module", "network", "network and module", "no counters"],
)
def test_layouts(trained, wrap):
    network = Network()
    load_weights(network, wrap(dict(trained.state_dict())))
    assert _same(network, trained)


def test_one_of_two_networks(trained):
    other = Network()
    content = {"net_state_dict": {"network1": dict(other.state_dict()), "network2": dict(trained.state_dict())}}
    network = Network()
    load_weights(network, content, network="network2")
    assert _same(network, trained)
    with pytest.raises(CheckpointError, match="network1, network2"):
        load_weights(network, content)
    with pytest.raises(CheckpointError, match="not network3"):
        load_weights(network, content, network="network3")


def test_aliases_are_written_read_and_checked(trained):
    published = official_state_dict(trained, ALIASES)
    assert {"stage1.0.weight", "copy.bias", "conv.weight"} <= set(published)
    network = Network()
    load_weights(network, published, aliases=ALIASES)
    assert _same(network, trained)
    only_aliases = {name: value for name, value in published.items() if not name.startswith("conv.")}
    load_weights(network, only_aliases, aliases=ALIASES)
    published["copy.weight"] = published["copy.weight"] + 1
    with pytest.raises(CheckpointError, match=r"conv\.weight and copy\.weight"):
        load_weights(network, published, aliases=ALIASES)


def test_the_longest_alias_wins():
    aliases = (("layers.6", "head7"), ("layers.6.4", "shift"))
    state = {"layers.6.0.weight": torch.ones(1), "layers.6.4.mean": torch.zeros(2)}
    assert set(canonical_state_dict(state, aliases)) == {"head7.0.weight", "shift.mean"}


def test_ignored_and_renamed(trained):
    state = {f"features.{name}": value for name, value in trained.state_dict().items()}
    state["fc.weight"] = torch.zeros(2, 2)
    network = Network()
    load_weights(network, state, ignore=(r"fc\..*",), rename=lambda name: name.removeprefix("features."))
    assert _same(network, trained)


def test_what_does_not_fit_is_listed_and_nothing_is_loaded(trained):
    state = dict(trained.state_dict())
    del state["norm.bias"]
    state["extra.weight"] = torch.zeros(1)
    state["conv.weight"] = torch.zeros(4, 3, 3, 3)
    network = Network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        load_weights(network, state, where="weights.pth")
    text = str(error.value)
    assert "missing: norm.bias" in text and "unexpected: extra.weight" in text
    assert "conv.weight (4, 3, 3, 3) instead of (4, 3, 1, 1)" in text and "weights.pth" in text
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_files(trained, tmp_path):
    path = tmp_path / "network.pth"
    torch.save(official_state_dict(trained, ALIASES), path)
    network = Network()
    load_weights(network, read_checkpoint(path), aliases=ALIASES)
    assert _same(network, trained)
    with pytest.raises(CheckpointError, match="no such weights file"):
        read_checkpoint(tmp_path / "absent.pth")
    (tmp_path / "text.pth").write_text("not a checkpoint")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_checkpoint(tmp_path / "text.pth")


def test_a_file_that_would_run_code_is_refused(tmp_path):
    class Payload:
        def __reduce__(self):
            return (print, ("executed",))

    path = tmp_path / "payload.pth"
    torch.save({"weight": Payload()}, path)
    with pytest.raises(CheckpointError, match=r"a pickled object \(.*print\)"):
        read_checkpoint(path)


def test_a_file_without_tensors():
    with pytest.raises(CheckpointError, match="no tensors"):
        state_dict_of({"epoch": 3})


def prefixed(state, prefix):
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model_state": state, "optimizer_state": {"state": {}}, "cur_itrs": 3},
        lambda state: {"model_state_dict": state, "epoch": 1},
        lambda state: {"anything": state, "optimizer": {"state": {}, "param_groups": []}},
        lambda state: {"state_dict": {"model": prefixed(state, "module.")}},
        lambda state: prefixed(state, "module.module."),
        lambda state: prefixed(state, "_orig_mod."),
        lambda state: prefixed(state, "module._orig_mod."),
        lambda state: {"state_dict": prefixed(state, "backbone."), "meta": {"CLASSES": ["a"]}},
        lambda state: prefixed(state, "network.encoder."),
    ],
)
def test_containers_and_prefixes_that_others_write(trained, wrap):
    network = Network()
    load_weights(network, wrap(dict(trained.state_dict())))
    assert _same(network, trained)


def test_a_prefix_of_the_networks_own_stays(trained):
    outer, other = nn.ModuleDict({"backbone": trained}), nn.ModuleDict({"backbone": Network()})
    load_weights(other, dict(outer.state_dict()))
    assert _same(other, outer)
    with pytest.raises(CheckpointError, match="missing: backbone"):
        load_weights(other, dict(trained.state_dict()))


def test_the_body_of_a_classifier_under_a_foreign_prefix(trained, tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"state_dict": prefixed({**trained.state_dict(), "fc.weight": torch.zeros(2)}, "model.")}, path)
    network = Network()
    load_imagenet_body(network, path)
    assert _same(network, trained)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": {"b": {"c": 1}}}, "holds no tensors"),
        ({"generator": {"w": torch.ones(1)}, "critic": {"w": torch.ones(1)}}, "critic, generator"),
        ({0: torch.ones(1)}, "names that are no texts: 0"),
        ({"conv.weight": torch.ones(1, dtype=torch.complex64)}, "conv.weight is torch.complex64"),
        ({"conv.weight": torch.eye(2).to_sparse()}, "conv.weight is torch.float32, torch.sparse_coo"),
        ({"conv.weight": torch.tensor([1.0, float("nan")])}, "conv.weight holds 1 values of 2 that are not finite"),
        ({"norm.bias": torch.tensor([float("-inf")] * 3)}, "norm.bias holds 3 values of 3"),
    ],
)
def test_contents_that_are_no_weights(content, message):
    with pytest.raises(CheckpointError) as caught:
        load_weights(Network(), content, where="w.pth")
    assert message in str(caught.value) and caught.value.where == "w.pth"


def test_a_container_that_holds_itself_ends():
    content: dict = {}
    content["state_dict"] = content
    with pytest.raises(CheckpointError, match="state_dict"):
        state_dict_of(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS"),
        (b"\x89HDF\r\n", "is HDF5"),
        (b"\x1f\x8b\x08", "compressed archive"),
        ((50).to_bytes(8, "little") + b'{"a": {}}', "safetensors"),
        (b"PK\x03\x04 no archive", "cannot be read"),
        (b"\x80\x02}q\x00.", "cannot be read"),
        (b"\x00" * 100, "cannot be read"),
    ],
)
def test_files_that_torch_did_not_write(tmp_path, content, message):
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert message in caught.value.what and caught.value.where == str(path) and caught.value.remedy
    assert "\n" not in caught.value.what


def test_objects_are_never_unpickled(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"net": Network(), "args": argparse.Namespace(lr=1)}, path)
    with pytest.raises(CheckpointError, match=r"pickled object \(.*\): it needs code to unpickle, which is never run"):
        read_checkpoint(path)
    with pytest.raises(CheckpointError, match="is a folder"):
        read_checkpoint(tmp_path)


def test_every_cut_of_a_file_is_refused(trained, tmp_path):
    path = tmp_path / "w.pth"
    for legacy in (False, True):
        torch.save(trained.state_dict(), path, _use_new_zipfile_serialization=not legacy)
        content = path.read_bytes()
        for size in range(0, len(content), max(1, len(content) // 40)):
            path.write_bytes(content[:size])
            with pytest.raises(CheckpointError):
                read_checkpoint(path)


def test_a_file_is_looked_at_before_anything_is_spent(trained, tmp_path):
    path = tmp_path / "w.pth"
    state = dict(trained.state_dict())
    torch.save({**state, "fc.weight": torch.full((2,), torch.nan)}, path)
    check_weights_file(path)  # the classifier is left out
    torch.save({"net_state_dict": {"network1": state, "network2": state}}, path)
    check_weights_file(path)  # the stage chooses
    torch.save({**state, "conv.bias": torch.full((4,), torch.inf)}, path)
    with pytest.raises(CheckpointError, match=r"conv\.bias"):
        check_weights_file(path)
