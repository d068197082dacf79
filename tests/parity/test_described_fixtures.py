"""The reader of WS-FCN's fixture format: it must notice what is wrong in an output or a fixture."""

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from tests.parity.fixtures import ParityError
from tests.parity.wsfcn_fixtures import DescribedFixture, parse_subscript
from torch import nn

PARITY = ModuleType("parity")
PARITY.tensor = lambda name, shape, low, high, salt: torch.full(shape, low + salt / 10, dtype=torch.float32)  # pyright: ignore


def _fixture(folder: Path, full: dict[str, np.ndarray], index: str = "", **meta) -> DescribedFixture:
    outputs, stored = {}, {}
    for name, value in full.items():
        stored[name] = value[parse_subscript(index)] if index else value
        outputs[name] = {"shape": list(stored[name].shape), "dtype": str(value.dtype)}
        if index:
            norm = float(np.linalg.norm(value))
            outputs[name] |= {"index": index, "full_shape": list(value.shape), "full_norm": float(f"{norm:.6g}")}
        outputs[name] |= meta.pop(f"entry_{name}", {})
    np.savez(folder / "thing.npz", allow_pickle=False, **stored, **meta.pop("stored", {}))
    content = {"outputs": outputs, "inputs": {}, "tolerance": {"relative_l2": 1e-3}, **meta}
    (folder / "thing.json").write_text(json.dumps(content))
    return DescribedFixture(folder / "thing.json", PARITY)


def test_subscripts():
    array = np.arange(24).reshape(2, 3, 4)
    for text in ("[:, ::2]", "[[0, 1]]", "[..., 1]", "[1, :2, 1::2]", "[-1]"):
        assert np.array_equal(array[parse_subscript(text)], eval(f"array{text}"))
    for text in ("[__import__('os')]", "(1)", "[x]"):
        with pytest.raises((ValueError, SyntaxError)):
            parse_subscript(text)


def test_inputs_by_kind(tmp_path):
    inputs = {
        "drawn": {"kind": "tensor", "name": "a", "shape": [2], "low": 1, "high": 2, "salt": 3},
        "smooth": {
            "kind": "smooth",
            "name": "a",
            "small_shape": [1, 1, 2, 2],
            "size": [4, 5],
            "low": 0,
            "high": 1,
            "salt": 3,
        },
        "labels": {"kind": "multi_hot", "shape": [2, 3], "positive_indices": [[0, 2], []], "dtype": "float32"},
        "image": {"kind": "stored", "npz_key": "in_image", "shape": [1]},
        "made": {"kind": "derived", "recipe": "by hand"},
    }
    fixture = _fixture(tmp_path, {"y": np.ones(1)}, inputs=inputs, stored={"in_image": np.array([7], np.uint8)})
    assert np.allclose(fixture.input("drawn"), 1.3) and fixture.input("smooth").shape == (1, 1, 4, 5)
    assert fixture.input("labels").tolist() == [[1, 0, 1], [0, 0, 0]] and fixture.input("image").tolist() == [7]
    assert fixture.recipe("made") == "by hand" and fixture.outputs() == ["y"]
    with pytest.raises(ParityError, match="only its check"):
        fixture.input("made")


def test_parts_are_compared_and_the_rest_by_its_norm(tmp_path):
    full = np.linspace(1, 2, 12).reshape(3, 4)
    fixture = _fixture(tmp_path, {"y": full}, index="[:, ::2]")
    fixture.expect("y", full)
    other = full.copy()
    other[:, 1] *= 1.5  # not stored
    with pytest.raises(ParityError, match="norm"):
        fixture.expect("y", other)
    with pytest.raises(ParityError, match="shape"):
        fixture.expect("y", full[:, ::2])


def test_tolerances_of_the_notes(tmp_path):
    full = {"y": np.array([3.0, 4.0]), "z": np.array([3.0, 4.0]), "label": np.zeros((20, 50), np.uint8)}
    fixture = _fixture(tmp_path, full, notes="z: relative_l2 1e-2. Label maps: at most 0.2% of the pixels may differ.")
    fixture.expect("z", full["z"] * 1.005)
    with pytest.raises(ParityError, match="y differs"):
        fixture.expect("y", full["y"] * 1.005)
    label = full["label"].copy()
    label[0, :2] = 1
    fixture.expect("label", label)
    label[0, 2] = 1
    with pytest.raises(ParityError, match="label differs"):
        fixture.expect("label", label)
    assert fixture.differing_share(np.zeros(5, np.uint8)) == 0


def test_exact_outputs_and_entries(tmp_path):
    full = {"y": np.array([1.0, 2.0]), "change": np.array([0.0, 2.0])}
    notes = "Compare change entry by entry with relative tolerance 0.02; its zero entries must be exactly zero."
    fixture = _fixture(tmp_path, full, entry_y={"compare": "exact"}, notes=notes)
    fixture.expect_each("change", np.array([0.0, 2.03]))
    for wrong in ([1e-9, 2.0], [0.0, 2.05]):
        with pytest.raises(ParityError, match="change"):
            fixture.expect_each("change", np.array(wrong))
    with pytest.raises(ParityError, match="without a comparison"):
        fixture.finish()
    with pytest.raises(ParityError, match="y differs"):
        fixture.expect("y", np.array([1.0, 2.0 + 1e-12]))
    fixture.expect("y", full["y"])
    fixture.finish()


def test_weights_are_filled_scaled_and_shifted(tmp_path):
    seen = {}

    def fill(module, salt, rename):
        for name, value in module.state_dict().items():
            seen[rename(name)] = salt
            value.fill_(1.0)

    PARITY.fill_state_dict = fill  # pyright: ignore
    weights = {"salt": 5, "scale_after_fill": {"x.weight": 3.0}, "add_after_fill": {"x.bias": -2.0}}
    fixture = _fixture(tmp_path, {"y": np.ones(1)}, weights=weights)
    module = fixture.fill(nn.Linear(2, 2), lambda name: f"x.{name}")
    assert seen == {"x.weight": 5, "x.bias": 5}
    assert module.weight.eq(3).all() and module.bias.eq(-1).all()
