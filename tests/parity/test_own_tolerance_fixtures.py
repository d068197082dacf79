"""The reader of fixtures whose outputs state their own tolerance."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from tests.parity.fixtures import ParityError
from tests.parity.shared_fixtures import OwnToleranceFixture


def _fixture(folder: Path, reference: np.ndarray, **entry: Any) -> OwnToleranceFixture:
    np.savez(folder / "thing.npz", allow_pickle=False, y=reference)
    (folder / "thing.json").write_text(json.dumps({"inputs": {}, "outputs": {"y": entry}}))
    return OwnToleranceFixture(folder / "thing.json", ModuleType("parity"))


def test_few_entries_may_differ_and_each_by_little(tmp_path: Path) -> None:
    reference = np.full(100, 7, dtype=np.uint8)
    fixture = _fixture(tmp_path, reference, abs_tol=2, max_fraction_different=0.02)
    fixture.expect("y", np.where(np.arange(100) < 2, 9, 7))
    with pytest.raises(ParityError, match=r"differs in 0\.03 of its entries"):
        fixture.expect("y", np.where(np.arange(100) < 3, 8, 7))
    with pytest.raises(ParityError, match="differs by 3, allowed 2"):
        fixture.expect("y", np.where(np.arange(100) < 1, 10, 7))
    _fixture(tmp_path, reference, abs_tol=2).expect("y", reference + 2)


def test_outputs_without_a_comparison_fail(tmp_path: Path) -> None:
    fixture = _fixture(tmp_path, np.ones(3), rel_tol=1e-3)
    with pytest.raises(ParityError, match="without a comparison"):
        fixture.finish()
    with pytest.raises(ParityError, match="no reference output"):
        fixture.expect("z", np.ones(3))
    with pytest.raises(ParityError, match="shape"):
        fixture.expect("y", np.ones(4))
    fixture.expect("y", np.ones(3) * (1 + 9e-4))
    fixture.finish()
