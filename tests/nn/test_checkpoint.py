"""Weights in every layout that published files have, and errors that say what does not fit."""

import pytest
import torch
from torch import nn

from wsss.nn.checkpoint import (
    CheckpointError,
    canonical_state_dict,
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
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_checkpoint(path)


def test_a_file_without_tensors():
    with pytest.raises(CheckpointError, match="no tensors"):
        state_dict_of({"epoch": 3})
