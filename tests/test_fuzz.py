"""Whatever bytes stand in a recipe, a search space, a list, a label file, a mask or a checkpoint: a WsssError, or none.

The default suite tries a few, always the same ones. `WSSS_FUZZ_SECONDS=600 python -m pytest -m slow tests/test_fuzz.py`
tries others for so long.
"""

import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from torch import nn

from wsss.commands.methods import find_method
from wsss.data.errors import DataError
from wsss.data.labels import read_label_file
from wsss.data.lists import read_list
from wsss.data.palette import encode_palette_png
from wsss.data.reading import read_mask
from wsss.data.voc import VOC_CLASSES
from wsss.errors import WsssError
from wsss.nn.checkpoint import CheckpointError, check_weights_file, load_weights, read_checkpoint
from wsss.recipe import RecipeError, load_recipe, settings_of, to_dict
from wsss.search.space.file import SpaceError, load_space

METHOD = find_method("ssc")
RECIPE = load_recipe(METHOD.recipe_type, METHOD.recipe_path("demo"))
# An input must be refused, or taken, within so much time of this process.
SECONDS = 20.0
TOKENS = [
    *(b"&a ", b"*a", b"<<: ", b"{", b"}", b"[", b"]", b": ", b"- ", b"\n", b"\t", b"#", b"'", b'"', b"!!int ", b"!!x "),
    *(b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xe4", b"\r\n", b"9" * 500, b"1e999", b".nan", b".inf", b"010", b"null"),
    *(b"true", b"~x/", b"../", b"${dataset.root}", b"cam.width", b"float", b"step", b"when", b"2024-99-99", b"1:2"),
]
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Content with a few pieces cut out, doubled, moved or replaced."""
    for _ in range(draw(st.integers(1, 5))):
        begin = draw(st.integers(0, len(content)))
        end = min(len(content), begin + draw(st.integers(0, 40)))
        piece = draw(st.sampled_from([b"", content[begin:end] * 2, *TOKENS]) | st.binary(max_size=6))
        content = content[:begin] + piece + content[end:]
    return content


def written(values: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    return values.map(lambda value: yaml.safe_dump(value, allow_unicode=True).encode(errors="replace"))


KEYS = st.sampled_from(list(settings_of(METHOD.recipe_type))) | st.text(max_size=12)
DEMO = yaml.safe_dump(to_dict(RECIPE)).encode()
SPACE = (
    b"method: ssc\nkeys:\n  cam.width: {float: [0.5, 1], step: 0.25}\n  cam.crop_size: {int: [32, 96], step: 16}\n"
    b"  cam.backbone: {categorical: [resnet50, mobilenet_v2], when: {cam.width: [0.5]}}\n"
)
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "float": PLAIN | st.lists(st.floats(), max_size=3),
        "int": PLAIN | st.lists(st.integers(), max_size=3),
        "categorical": PLAIN | st.lists(PLAIN, max_size=3),
        "log": PLAIN,
        "step": PLAIN | st.floats(),
        "when": PLAIN | st.dictionaries(KEYS, PLAIN, max_size=2),
    },
)
SPACES = st.fixed_dictionaries({"method": PLAIN | st.just("ssc"), "keys": st.dictionaries(KEYS, ENTRIES, max_size=3)})
LABELS = json.dumps({"2007_000032": ["cat"], "2007_000039": ["dog", "person"]}).encode()


def saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)


WEIGHTS = dict(Network().state_dict())
TENSORS = st.sampled_from(
    [*WEIGHTS.values(), torch.tensor(float("nan")), torch.ones(2, dtype=torch.complex64), torch.eye(2).to_sparse()]
)
NAMES = st.sampled_from(["conv.weight", "conv.bias", "module.conv.weight", "state_dict", "x.y"]) | st.integers()
CONTAINERS = st.recursive(
    TENSORS | st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.dictionaries(NAMES, inner, max_size=3) | st.lists(inner, max_size=2),
    max_leaves=8,
)


def recipe(path: Path) -> None:
    load_recipe(METHOD.recipe_type, path)


def override(path: Path) -> None:
    load_recipe(METHOD.recipe_type, None, [path.read_bytes().decode(errors="surrogateescape")])


def space(path: Path) -> None:
    load_space(path, RECIPE)


def lists_and_labels(path: Path) -> None:
    read_list(path)
    read_label_file(path, VOC_CLASSES)
    read_label_file(path.rename(path.with_suffix(".json")), VOC_CLASSES)


def mask(path: Path) -> None:
    read_mask(path, 21)


def checkpoint(path: Path) -> None:
    content = read_checkpoint(path)
    check_weights_file(path)
    load_weights(Network(), content)


TARGETS: dict[str, tuple[Callable[[Path], None], type[WsssError], st.SearchStrategy[bytes]]] = {
    "recipe": (recipe, RecipeError, damaged(DEMO) | written(st.dictionaries(KEYS, PLAIN, max_size=4)) | st.binary()),
    "override": (
        override,
        RecipeError,
        st.tuples(KEYS, PLAIN.map(str) | st.text()).map(lambda pair: "=".join(pair).encode(errors="replace")),
    ),
    "space": (space, SpaceError, damaged(SPACE) | written(SPACES) | st.binary()),
    "lists and labels": (
        lists_and_labels,
        DataError,
        damaged(b"2007_000032 cat\n2007_000039 dog\n") | damaged(LABELS) | st.binary(),
    ),
    "mask": (mask, DataError, damaged(encode_palette_png(np.eye(16, dtype=np.uint8))) | st.binary()),
    "checkpoint": (checkpoint, CheckpointError, damaged(saved(WEIGHTS)) | CONTAINERS.map(saved) | st.binary()),
}


def fuzz(target: str, path: Path, examples: int, number: int | None) -> None:
    use, error, contents = TARGETS[target]

    def try_one(content: bytes) -> None:
        path.write_bytes(content)
        begun = time.process_time()
        try:
            use(path)
        except error as refused:
            assert len(str(refused)) < 20_000
        assert time.process_time() - begun < SECONDS

    limits = settings(
        max_examples=examples,
        database=None,
        derandomize=number is None,
        suppress_health_check=list(HealthCheck.__members__.values()),
        phases=(Phase.generate, Phase.shrink),
    )
    test = limits(given(contents)(try_one))
    (test if number is None else seed(number)(test))()


@pytest.mark.parametrize("target", TARGETS)
def test_a_few_inputs(target: str, tmp_path: Path) -> None:
    fuzz(target, tmp_path / "input", 15, None)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_many_inputs(target: str, tmp_path: Path) -> None:
    until = time.monotonic() + float(os.environ.get("WSSS_FUZZ_SECONDS", "60")) / len(TARGETS)
    number = time.time_ns()
    while time.monotonic() < until:
        fuzz(target, tmp_path / "input", 50, number)
        number += 1
