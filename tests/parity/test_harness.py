"""The harness itself: it must notice what is wrong in an output or a fixture."""

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from tests.parity.check_modules import discover, method_of_module
from tests.parity.conftest import fixture_files, method_of
from tests.parity.fixtures import Fixture, ParityError, kind_of, relative_error

PARITY = ModuleType("parity")
PARITY.tensor = lambda name, shape, low, high, salt: torch.full(shape, low + salt / 10, dtype=torch.float32)  # pyright: ignore


def _fixture(folder: Path, outputs: dict[str, np.ndarray], **meta) -> Fixture:
    described = {
        name: {"shape": list(value.shape), "what": meta.pop(f"what_{name}", "")}
        for name, value in outputs.items()
        if not name.startswith("in_")
    }
    np.savez(folder / "thing_a.npz", allow_pickle=False, **outputs)
    content = {"outputs": described, "rtol": 1e-3, **meta}
    (folder / "thing_a.json").write_text(json.dumps(content))
    return Fixture(folder / "thing_a.json", PARITY)


def test_kinds_lose_their_variants():
    kinds = ["drs", "path_index", "norm_b"]
    assert kind_of("drs_h1", kinds) == "drs" and kind_of("path_index_a", kinds) == "path_index"
    assert kind_of("drs_a_2", kinds) == "drs" and kind_of("norm_b", kinds) == "norm_b"
    assert kind_of("unknown_b", kinds) == "unknown"
    assert kind_of("drs_small", kinds) == "drs" and kind_of("path_index_small_b", [*kinds, "path"]) == "path_index"


def test_check_modules_belong_to_methods():
    assert method_of_module("ssc_cam_checks") == "ssc" and method_of_module("ssc_checks") == "ssc"
    with pytest.raises(ValueError, match="belongs to no method"):
        method_of_module("nobody_checks")
    found = discover()
    assert set(found) >= {"ssc"} and all(checks.checks and checks.manifests for checks in found.values())
    assert found["ssc"].complete and method_of_module("nobody_shared_checks") == "nobody"


def test_inputs_come_from_the_files(tmp_path):
    fixture = _fixture(
        tmp_path,
        {"out": np.zeros(1), "in_label": np.array([[1, 2]])},
        inputs=[
            {"arg": "x_coarse", "name": "x.c", "shape": [1, 1, 2, 2], "low": 1, "high": 2, "salt": 3},
            {"arg": "x_fine", "name": "x.f", "shape": [1, 1, 5, 3], "low": 0, "high": 1, "salt": 3},
        ],
        derived_inputs=[
            {
                "arg": "x",
                "shape": [1, 1, 5, 3],
                "how": "x_coarse with each cell repeated 3x2, cropped to 5x3, plus x_fine",
            },
            {"arg": "label", "npz": "in_label", "shape": [1, 2], "how": "stored"},
        ],
    )
    np.testing.assert_allclose(fixture.input("x"), 1.6)
    assert fixture.input("x").shape == (1, 1, 5, 3) and fixture.input("label").tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("what", "full", "stored"),
    [
        ("[::8, ::16]", (32, 48, 1, 1), (4, 3)),
        ("[::4, :, 1, 1]", (16, 5, 3, 3), (4, 5)),
        ("after the steps, every 16th input channel", (20, 48, 1, 1), (20, 3)),
        ("every third path, every fourth source", (2, 2, 34, 48), (2, 2, 12, 12)),
        ("every 8 rows and 8 columns", (1, 16, 17), (1, 2, 3)),
        ("every second row and column", (1, 3, 5, 5), (1, 3, 3, 3)),
        ("", (7, 3), (7, 3)),
    ],
)
def test_stored_parts_are_cut_out(tmp_path, what, full, stored):
    value = np.arange(int(np.prod(full)), dtype=np.float64).reshape(full)
    fixture = _fixture(tmp_path, {"out": np.zeros(stored)}, what_out=what)
    assert fixture.sampled("out", value).shape == stored
    if what == "every third path, every fourth source":
        assert np.array_equal(fixture.sampled("out", value), value[:, :, ::3, ::4])


def test_tolerances_and_overrides(tmp_path):
    reference = np.array([3.0, 4.0])
    fixture = _fixture(tmp_path, {"out": reference, "loose": reference}, rtol_overrides={"loose": 0.5})
    fixture.expect("out", reference * 1.0005)
    with pytest.raises(ParityError, match="out differs"):
        fixture.expect("out", reference * 1.002)
    fixture.expect("loose", reference * 1.4)
    with pytest.raises(ParityError, match="shape"):
        fixture.expect("out", np.array([3.0]))
    with pytest.raises(ParityError, match="out differs"):
        fixture.expect("out", np.array([np.nan, 4.0]))


def test_integers_are_equal_or_agree_on_a_share(tmp_path):
    reference = np.zeros(1000, dtype=np.uint8)
    exact = _fixture(tmp_path, {"out": reference})
    one_off = reference.copy()
    one_off[0] = 1
    exact.expect("out", reference)
    with pytest.raises(ParityError):
        exact.expect("out", one_off)
    with pytest.raises(ParityError, match="float64"):
        exact.expect("out", reference.astype(np.float64))
    _fixture(tmp_path, {"out": reference}, agreement=0.999).expect("out", one_off)
    _fixture(tmp_path, {"out": reference}, what_out="may differ by 1 grey level").expect("out", one_off)


def test_outputs_without_a_comparison_fail(tmp_path):
    fixture = _fixture(tmp_path, {"first": np.zeros(1), "second": np.zeros(1)})
    fixture.expect("first", np.zeros(1))
    with pytest.raises(ParityError, match="without a comparison: \\['second'\\]"):
        fixture.finish()
    fixture.expect("second", np.zeros(1))
    fixture.finish()
    with pytest.raises(ParityError, match="no reference output third"):
        fixture.expect("third", np.zeros(1))


def test_an_output_that_only_one_of_the_files_knows_fails(tmp_path):
    fixture = _fixture(tmp_path, {"out": np.zeros(1)})
    fixture.arrays["surplus"] = np.zeros(1)
    fixture.expect("out", np.zeros(1))
    with pytest.raises(ParityError, match="surplus"):
        fixture.finish()


def test_files_of_a_folder(tmp_path):
    for name in ("drs_a.json", "drs_a.npz", "lonely.npz", "state_dict.net.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "index.json").write_text(json.dumps({"method": "ssc", "fixtures": {"absent": "..."}}))
    assert [path.stem for path in fixture_files(tmp_path)] == ["absent", "drs_a", "lonely"]
    assert method_of(tmp_path) == "ssc"
    (tmp_path / "index.json").unlink()
    assert method_of(tmp_path) == tmp_path.name


def test_relative_error():
    assert relative_error([1.0, 1.0], [1.0, 1.0]) == 0
    assert relative_error([0.0, 2e-7], [0.0, 0.0]) == pytest.approx(2e-7)
    assert relative_error([float("nan")], [1.0]) == float("inf")
