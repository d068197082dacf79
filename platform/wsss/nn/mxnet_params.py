"""Weights saved by MXNet (`.params`), read without MXNet, and the names of its Wide-ResNet-38 here.

The official file `ilsvrc-cls_rna-a1_cls1000_ep-0001.params` of ademxapp is a list of named arrays as `mx.nd.save` wrote
it (`NDArray::Save` and `NDArray::LegacyLoad` of MXNet). All numbers are little-endian.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_LIST_MAGIC = 0x112
# First word of an array: its shape is of 64-bit lengths (V1), and a storage type stands before it (V2). Any other word
# is the number of axes of an array before V1, whose lengths have 32 bits.
_V1, _V2 = 0xF993FAC8, 0xF993FAC9
_DENSE, _FLOAT32 = 0, 0
_MOST_AXES = 32
_NORM_TENSORS = {"gamma": "weight", "beta": "bias", "mean": "running_mean", "var": "running_var"}


class _Cursor:
    """A place in the bytes of a file; ValueError when it would go beyond their end."""

    def __init__(self, content: np.ndarray) -> None:
        self.content, self.at = content, 0

    def take(self, size: int) -> np.ndarray:
        if size > len(self.content) - self.at:
            raise ValueError(f"it ends at byte {len(self.content)}, where {size} more were expected from {self.at} on")
        self.at += size
        return self.content[self.at - size : self.at]

    def numbers(self, form: str) -> tuple[int, ...]:
        form = f"<{form}"
        return struct.unpack(form, self.take(struct.calcsize(form)).tobytes())


def read_params(path: Path) -> dict[str, Tensor]:
    """Named arrays of a file, float32, under the names in the file without `arg:` and `aux:`.

    Raises:
        ValueError: the file is no such list, is cut short, or holds another kind of array than dense float32.
        OSError: the file cannot be opened.
    """
    if not path.stat().st_size:
        raise ValueError("it is empty")
    cursor = _Cursor(np.memmap(path, dtype=np.uint8, mode="r"))
    magic, _ = cursor.numbers("QQ")
    if magic != _LIST_MAGIC:
        raise ValueError(f"it begins with {magic:#x}, a list of MXNet's arrays with {_LIST_MAGIC:#x}")
    (count,) = cursor.numbers("Q")
    # An array takes 4 bytes at least: a count beyond that is damage, and would be looped over.
    if count > len(cursor.content) // 4:
        raise ValueError(f"it claims to hold {count} arrays in {len(cursor.content)} bytes")
    arrays = [_array(cursor, index) for index in range(count)]
    (names_count,) = cursor.numbers("Q")
    if names_count != count:
        raise ValueError(f"it holds {count} arrays and {names_count} names")
    names = [cursor.take(*cursor.numbers("Q")).tobytes().decode("utf-8") for _ in range(count)]
    names = [name.removeprefix("arg:").removeprefix("aux:") for name in names]
    if cursor.at != len(cursor.content):
        raise ValueError(f"{len(cursor.content) - cursor.at} bytes follow the last name")
    if len(set(names)) != count:
        raise ValueError(f"two arrays are named {next(name for name in names if names.count(name) > 1)!r}")
    return dict(zip(names, arrays, strict=True))


def _array(cursor: _Cursor, index: int) -> Tensor:
    (first,) = cursor.numbers("I")
    if first == _V2 and (storage := cursor.numbers("i")[0]) != _DENSE:
        raise ValueError(f"array {index} has storage type {storage}, expected {_DENSE} (dense)")
    axes = cursor.numbers("I")[0] if first in (_V1, _V2) else first
    if not 0 < axes <= _MOST_AXES:
        raise ValueError(f"array {index} has {axes} axes, expected 1 to {_MOST_AXES}")
    shape = cursor.numbers(f"{axes}{'q' if first in (_V1, _V2) else 'I'}")
    if min(shape) < 0:
        raise ValueError(f"array {index} has the shape {shape}")
    _, _, kind = cursor.numbers("iii")  # the device and its number do not matter
    if kind != _FLOAT32:
        raise ValueError(f"array {index} has element type {kind}, expected {_FLOAT32} (float32)")
    values = cursor.take(4 * math.prod(shape)).tobytes()
    return torch.from_numpy(np.frombuffer(values, dtype="<f4").astype(np.float32)).reshape(shape)


def wide_resnet38_state(params: dict[str, Tensor]) -> dict[str, Tensor]:
    """State dict of a Wide-ResNet-38 from the arrays of the official file, without its classifier.

    `res4b3_branch2a_weight` becomes `b4_3.conv_branch2a.weight`, `bn5a_branch2b1_moving_var`
    `b5.bn_branch2b1.running_var`.

    Raises:
        ValueError: a name is of another network, or two become one.
    """
    state: dict[str, Tensor] = {}
    for name, value in params.items():
        own = _own_name(name)
        if own in state:
            raise ValueError(f"two of its arrays become {own}, the second is {name!r}")
        if own is not None:
            state[own] = value
    return state


def _own_name(name: str) -> str | None:
    first, *rest = name.split("_")
    if "linear1000" in first:
        return None
    if "conv1a" in first:
        return "conv1a.weight"
    branch = bool(rest) and "branch" in rest[0]
    if branch and "res" in first:
        return f"{_block(first, name)}.conv_{rest[0]}.weight"
    if not rest or rest[-1] not in _NORM_TENSORS:
        raise ValueError(f"its array {name!r} is none of a Wide-ResNet-38")
    layer = f"{_block(first, name)}.bn_{rest[0]}" if branch else "bn7"
    return f"{layer}.{_NORM_TENSORS[rest[-1]]}"


def _block(first: str, name: str) -> str:
    """`res4a` and `bn4a` belong to b4, `res4b3` and `bn4b3` to b4_3."""
    if first.endswith("a") and first[-2:-1].isdigit():
        return f"b{first[-2]}"
    if first[-3:-2].isdigit() and first[-1:].isdigit():
        return f"b{first[-3]}_{first[-1]}"
    raise ValueError(f"its array {name!r} is none of a Wide-ResNet-38")
