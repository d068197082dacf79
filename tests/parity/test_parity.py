"""Every fixture found is checked by the check of its kind; a kind without one fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.parity.check_modules import discover
from tests.parity.conftest import method_of
from tests.parity.fixtures import kind_of

METHODS = discover()


@pytest.fixture(autouse=True)
def _exact_arithmetic():
    """Comparison is in float32 without TF32, one thread as in the reference run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_num_threads(threads)


def test_fixture(fixture_file: Path, parity, record_property) -> None:
    method = method_of(fixture_file.parent)
    assert method in METHODS, f"no checks for method {method}"
    checks = METHODS[method].checks
    assert fixture_file.is_file(), f"{fixture_file.name} is missing"
    assert fixture_file.with_suffix(".npz").is_file(), f"{fixture_file.stem}.npz is missing"
    kind = kind_of(fixture_file.stem, checks)
    if kind not in checks and not METHODS[method].complete:
        pytest.skip(f"not checked yet: {kind}")
    assert kind in checks, f"no check for kind {kind}"
    fixture = METHODS[method].fixture(fixture_file, parity)
    try:
        checks[kind](fixture)
        fixture.finish()
    finally:
        if fixture.errors:
            name, (error, tolerance) = max(fixture.errors.items(), key=lambda item: _closeness(*item[1]))
            record_property("parity", f"{name}: {error:.2e} of {tolerance:.0e}")


def _closeness(error: float, tolerance: float) -> float:
    return error / tolerance if tolerance > 0 else error


def test_manifest(manifest_file: Path) -> None:
    method = method_of(manifest_file.parent)
    assert method in METHODS, f"no networks for method {method}"
    manifests = METHODS[method].manifests
    network = manifest_file.name.removeprefix("state_dict.").removesuffix(".json")
    if network not in manifests and not METHODS[method].complete:
        pytest.skip(f"not checked yet: {network}")
    assert network in manifests, f"no network for manifest {network}"
    reference = json.loads(manifest_file.read_text(encoding="utf-8"))
    own = {name: list(shape) for name, shape in manifests[network]().items()}
    missing, surplus = sorted(reference.keys() - own.keys()), sorted(own.keys() - reference.keys())
    assert not missing, f"not in our state dict: {missing[:10]}"
    assert not surplus, f"not in the published state dict: {surplus[:10]}"
    wrong = {name: (own[name], shape) for name, shape in reference.items() if own[name] != shape}
    assert not wrong, f"shapes differ (ours, published): {dict(list(wrong.items())[:10])}"


def test_parameter_groups(parameter_group_file: Path) -> None:
    method = method_of(parameter_group_file.parent)
    assert method in METHODS, f"no networks for method {method}"
    checks = METHODS[method].parameter_groups
    network = parameter_group_file.name.removeprefix("param_groups.").removesuffix(".json")
    assert network in checks, f"no optimizer for {network}"
    checks[network](json.loads(parameter_group_file.read_text(encoding="utf-8")))
