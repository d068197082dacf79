"""MXNet's list of arrays in its three headers, and the official Wide-ResNet-38 in it."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest
import torch
from torch import Tensor

from wsss.nn.affinity_net import AffinityNet
from wsss.nn.checkpoint import CheckpointError, load_imagenet_body
from wsss.nn.mxnet_params import read_params, wide_resnet38_state
from wsss.nn.wide_resnet38 import WideResNet38

V1, V2 = 0xF993FAC8, 0xF993FAC9


def encoded(array: Tensor, header: str, storage: int = 0, kind: int = 0) -> bytes:
    """One array as `NDArray::Save` of three times writes it, on GPU 3."""
    axes = len(array.shape)
    start = {
        "legacy": struct.pack(f"<I{axes}I", axes, *array.shape),
        "v1": struct.pack(f"<II{axes}q", V1, axes, *array.shape),
        "v2": struct.pack(f"<IiI{axes}q", V2, storage, axes, *array.shape),
    }[header]
    return start + struct.pack("<iii", 2, 3, kind) + array.numpy().astype("<f4").tobytes()


def a_list(arrays: dict[str, bytes]) -> bytes:
    names = [struct.pack("<Q", len(name)) + name.encode() for name in arrays]
    start = struct.pack("<QQQ", 0x112, 0, len(arrays))
    return start + b"".join(arrays.values()) + struct.pack("<Q", len(names)) + b"".join(names)


def official_name(name: str) -> str:
    """Inverse of the rule: `b4_3.conv_branch2a.weight` -> `arg:res4b3_branch2a_weight`."""
    if name == "conv1a.weight":
        return "arg:conv1a_weight"
    block, *layer, tensor = name.split(".")
    norm = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_var"}[tensor]
    place = "aux" if "running" in tensor else "arg"
    if block == "bn7":
        return f"{place}:bn7_{norm}"
    number, _, index = block.removeprefix("b").partition("_")
    where = f"{number}b{index}" if index else f"{number}a"
    kind, _, branch = layer[0].partition("_")
    return f"arg:res{where}_{branch}_weight" if kind == "conv" else f"{place}:bn{where}_{branch}_{norm}"


@pytest.fixture(scope="module")
def source() -> WideResNet38:
    torch.manual_seed(0)
    network = WideResNet38(0.125)
    for value in network.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.randn(value.shape))
    return network


def arrays_of(network: WideResNet38) -> dict[str, bytes]:
    headers = ("legacy", "v1", "v2")
    state = {name: value for name, value in network.state_dict().items() if "num_batches" not in name}
    arrays = {official_name(name): encoded(value, headers[i % 3]) for i, (name, value) in enumerate(state.items())}
    return {**arrays, "arg:linear1000_weight": encoded(torch.zeros(10, 4), "v2")}


@pytest.mark.parametrize("header", ["legacy", "v1", "v2"])
def test_arrays_are_read_as_they_were_written(header: str, tmp_path: Path) -> None:
    arrays = {"arg:a": torch.randn(2, 3, 1, 4), "aux:b_mean": torch.randn(5)}
    (tmp_path / "x.params").write_bytes(a_list({name: encoded(each, header) for name, each in arrays.items()}))
    read = read_params(tmp_path / "x.params")
    assert list(read) == ["a", "b_mean"]
    assert all(torch.equal(value, arrays[name]) for name, value in zip(arrays, read.values(), strict=True))


def test_the_official_file_starts_a_body_and_a_network_with_new_layers(source: WideResNet38, tmp_path: Path) -> None:
    path = tmp_path / "ilsvrc-cls_rna-a1_cls1000_ep-0001.params"
    path.write_bytes(a_list(arrays_of(source)))
    body, network = WideResNet38(0.125), AffinityNet(0.125)
    load_imagenet_body(body, path)
    head = network.f9.weight.detach().clone()
    network.load_backbone(path)
    for name, value in source.state_dict().items():
        if "num_batches" not in name:
            assert torch.equal(body.state_dict()[name], value), name
            assert torch.equal(network.state_dict()[name], value), name
    assert torch.equal(network.f9.weight, head)


def test_a_file_that_lacks_an_array_is_refused_and_changes_nothing(source: WideResNet38, tmp_path: Path) -> None:
    arrays = arrays_of(source)
    del arrays["arg:res4b3_branch2a_weight"]
    path = tmp_path / "part.params"
    path.write_bytes(a_list(arrays))
    body = WideResNet38(0.125)
    before = body.conv1a.weight.detach().clone()
    with pytest.raises(CheckpointError, match=r"missing: b4_3\.conv_branch2a\.weight[\s\S]*part\.params"):
        load_imagenet_body(body, path)
    assert torch.equal(body.conv1a.weight, before)
    with pytest.raises(CheckpointError, match="no such weights file"):
        load_imagenet_body(body, tmp_path / "absent.params")


ONE = encoded(torch.ones(2, 3), "v2")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"PK\x03\x04 an archive of torch", "begins with"),
        (a_list({"a": ONE})[:-1], "it ends at byte"),
        (a_list({"a": ONE}) + b"\0", "1 bytes follow"),
        (a_list({"a": encoded(torch.ones(2, 3), "v2", kind=2)}), "element type 2"),
        (a_list({"a": encoded(torch.ones(2, 3), "v2", storage=1)}), "storage type 1"),
        (a_list({"a": struct.pack("<II", V1, 1 << 30)}), "1073741824 axes"),
        (a_list({"a": struct.pack("<IIqiii", V1, 1, 1 << 60, 1, 0, 0)}), "were expected"),
        (struct.pack("<QQQ", 0x112, 0, 1 << 40), "claims to hold"),
        (a_list({"a": ONE}).replace(struct.pack("<Q", 1) + struct.pack("<Q", 1), struct.pack("<QQ", 2, 1)), "2 names"),
        (a_list({"arg:a": ONE, "aux:a": ONE}), "two arrays are named 'a'"),
    ],
)
def test_damage_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "damaged.params"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"cannot be read[\s\S]*{re.escape(message)}[\s\S]*damaged\.params"):
        load_imagenet_body(WideResNet38(0.125), path)


@pytest.mark.parametrize("name", ["res4c_branch2a_weight", "fullyconnected_weight"])
def test_names_of_other_networks_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        wide_resnet38_state({name: torch.ones(1)})
    with pytest.raises(ValueError, match=r"two of its arrays become bn7\.weight"):
        wide_resnet38_state({"bn7_gamma": torch.ones(1), "bn8_gamma": torch.ones(1)})
