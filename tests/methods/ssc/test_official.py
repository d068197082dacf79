"""The official best_ckpt.pth layout, read and written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from wsss.nn.backbones import SegmentationBackbone
from wsss.nn.checkpoint import CheckpointError
from wsss.nn.deeplabv2 import DeepLabV2
from wsss_methods.ssc.official import read_cotraining_checkpoint, write_cotraining_checkpoint


def network(seed: int) -> DeepLabV2:
    torch.manual_seed(seed)
    return DeepLabV2(3, SegmentationBackbone("resnet18", width=0.125))


def assert_loads(states: dict[str, dict[str, Tensor]]) -> None:
    for name, seed in (("network1", 1), ("network2", 2)):
        loaded = network(9)
        loaded.load_state_dict(states[name])
        for key, value in network(seed).state_dict().items():
            assert torch.equal(loaded.state_dict()[key], value), key


def test_written_file_has_the_official_layout_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "best_ckpt.pth"
    write_cotraining_checkpoint(path, network(1).state_dict(), network(2).state_dict())
    content = torch.load(path, weights_only=True)
    assert list(content) == ["net_state_dict"]
    assert list(content["net_state_dict"]) == ["network1", "network2"]
    assert set(content["net_state_dict"]["network1"]) == set(network(1).state_dict())
    assert_loads(read_cotraining_checkpoint(path))


def test_variants_of_the_layout_are_read(tmp_path: Path) -> None:
    states = {
        "network1": {f"module.{k}": v for k, v in network(1).state_dict().items()},
        "network2": {k: v for k, v in network(2).state_dict().items() if not k.endswith("num_batches_tracked")},
    }
    path = tmp_path / "ckpt_epoch_3.pth"
    torch.save(states, path)
    assert_loads(read_cotraining_checkpoint(path))
    torch.save({"net_state_dict": states, "optim_state_dict": {"lr": 0.1}, "model_state_dict": {}}, path)
    assert_loads(read_cotraining_checkpoint(path))


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "best_ckpt.pth"
    torch.save({"net_state_dict": {"network1": network(1).state_dict()}}, path)
    with pytest.raises(CheckpointError, match="network2"):
        read_cotraining_checkpoint(path)
    path.write_bytes(b"not a file of weights")
    with pytest.raises(CheckpointError, match=r"best_ckpt\.pth"):
        read_cotraining_checkpoint(path)
