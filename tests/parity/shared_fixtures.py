"""Reading parity fixtures in which each output states its own tolerance (two layouts of the .json).

Inputs are a list with `kind` "parity.tensor", "npz" or "literal", or a mapping by name with `kind` "tensor", "stored"
or "value". An output states `rtol`, `rel_tol`, `abs_tol` or `min_agreement`, or in words how many entries are equal.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import torch
from tests.parity.fixtures import ParityError, relative_error
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)
_NAMED = {"parity.tensor": "tensor", "npz": "stored", "literal": "value"}
_CLAMP = re.compile(r"clamp\(min=([-\d.]+)\)")
_SHARE = re.compile(r"at least ([\d.]+) % equal")


class OwnToleranceFixture:
    """One fixture: inputs on demand, reference outputs, what has been compared. `double`: computed in float64."""

    def __init__(self, path: Path, parity: ModuleType) -> None:
        self.name = path.stem
        self.parity = parity
        self.meta: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as archive:
            self.arrays: dict[str, np.ndarray] = {key: archive[key] for key in archive.files}
        inputs = self.meta["inputs"]
        entries = inputs if isinstance(inputs, list) else [{"name": name, **entry} for name, entry in inputs.items()]
        self.inputs = {entry.get("name", entry.get("key", "").removeprefix("in.")): entry for entry in entries}
        self.double = self.meta.get("compute_dtype") == "float64"
        self.errors: dict[str, tuple[float, float]] = {}

    def input(self, name: str) -> Any:
        """An input: array, or the literal value."""
        entry = self.inputs[name]
        kind = _NAMED.get(entry["kind"], entry["kind"])
        if kind == "value":
            return entry["value"]
        if kind == "stored":
            return self.arrays[entry["key"]].copy()
        drawn = entry.get("name", name)
        value = self.parity.tensor(drawn, tuple(entry["shape"]), entry["low"], entry["high"], entry["salt"]).numpy()
        after = _CLAMP.fullmatch(entry.get("then", ""))
        return value.clip(float(after[1]), None) if after else value

    def tensor(self, name: str) -> Tensor:
        """`input` as a tensor, float64 where the fixture was computed so."""
        value = torch.from_numpy(np.ascontiguousarray(self.input(name)))
        return value.double() if self.double and value.is_floating_point() else value

    def fill(self, module: Module, rename: Callable[[str], str] = lambda name: name) -> Module:
        """Fill a module's weights; `rename` gives the published names."""
        module = self.parity.fill_state_dict(module, self.meta["weights"]["salt"], rename)
        return module.double() if self.double else module

    def outputs(self) -> list[str]:
        """Names of the reference outputs."""
        return list(self.meta["outputs"])

    def expect(self, name: str, value: Any) -> None:
        """Compare an output with its reference by the tolerance that it states. Raises ParityError."""
        if name not in self.meta["outputs"]:
            raise ParityError(f"{self.name} has no reference output {name}; it has {self.outputs()}")
        entry, reference = self.meta["outputs"][name], self.arrays[name]
        out = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        if "slice" in entry:
            out = eval(f"out{entry['slice']}", {"out": out})  # the fixtures' own subscript
        if out.shape != reference.shape:
            raise ParityError(f"{self.name}: {name} has shape {out.shape}, reference {reference.shape}")
        if entry.get("compare", "").startswith("clip both at 0 first"):
            out, reference = out.clip(0), reference.clip(0)
        tolerance = entry.get("rtol", entry.get("rel_tol"))
        if tolerance is not None:
            error = relative_error(out, reference)
        elif "abs_tol" in entry:
            tolerance = float(entry["abs_tol"])
            error = float(np.abs(out.astype(np.float64) - reference.astype(np.float64)).max(initial=0.0))
            differing, share = float((out != reference).mean()), entry.get("max_fraction_different", 1.0)
            if differing > share:
                raise ParityError(f"{self.name}: {name} differs in {differing:.3g} of its entries, allowed {share:.3g}")
        elif "min_agreement" in entry:
            tolerance, error = 1 - entry["min_agreement"], float((out != reference).mean())
        else:
            share = _SHARE.match(entry["compare"])
            if share is None and entry["compare"] != "exact":
                raise ParityError(f"{self.name}: no rule for {entry['compare']!r}")
            tolerance = 1 - float(share[1]) / 100 if share else 0.0
            error = float((out != reference).mean())
        self.errors[name] = (error, tolerance)
        if not error <= tolerance + 1e-12:
            raise ParityError(f"{self.name}: {name} differs by {error:.3g}, allowed {tolerance:.3g}")

    def finish(self) -> None:
        """Raise unless every output was compared."""
        missed = set(self.outputs()) - set(self.errors)
        if missed:
            raise ParityError(f"{self.name}: outputs without a comparison: {sorted(missed)}")


class CaseFixture:
    """Fixtures that list cases, each with inputs, options and outputs, under one relative tolerance."""

    def __init__(self, path: Path, parity: ModuleType) -> None:
        self.name = path.stem
        self.parity = parity
        self.meta: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as archive:
            self.arrays: dict[str, np.ndarray] = {key: archive[key] for key in archive.files}
        self.cases: list[dict[str, Any]] = self.meta["cases"]
        self.errors: dict[str, tuple[float, float]] = {}

    def tensor(self, case: dict[str, Any], name: str) -> Tensor:
        """The input of a case that is in force under that name."""
        entry, value = self._entry(case, name), self._made(case, name)
        post = None if "npz" in entry else entry.get("post")
        return value.relu() if post == "relu" else value.softmax(1) if post else value

    def before_post(self, case: dict[str, Any], name: str) -> Tensor:
        """`tensor` before the relu or softmax that follows, as a leaf that asks for its gradient."""
        return self._made(case, name).requires_grad_()

    def _entry(self, case: dict[str, Any], name: str) -> dict[str, Any]:
        (entry,) = [entry for entry in case["inputs"] if entry["name"] == name and not entry.get("superseded")]
        return entry

    def _made(self, case: dict[str, Any], name: str) -> Tensor:
        entry = self._entry(case, name)
        if "npz" in entry:
            return torch.from_numpy(self.arrays[entry["npz"]].copy())
        return self.parity.tensor(name, tuple(entry["shape"]), entry["low"], entry["high"], entry["salt"])

    def fill(
        self,
        case: dict[str, Any],
        module: Module,
        rename: Callable[[str], str] = lambda name: name,
        salt: str = "fill_state_dict_salt",
    ) -> Module:
        """Fill the weights of a network of the case; `rename` gives the published names, `salt` where its salt is."""
        return self.parity.fill_state_dict(module, case["weights"][salt], rename)

    def expect(self, case: dict[str, Any], name: str, value: Any, levels: int = 0) -> None:
        """Compare one output of a case; raises ParityError.

        Floats by `rtol` (`step1_rtol` for outputs of a second step), all-zero references by 1e-6, bytes by the share
        that may differ, or at most by `levels` everywhere, other integers exactly.
        """
        key = f"{case['name']}/{name}"
        out = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        reference = self.arrays[key]
        if out.shape != reference.shape:
            raise ParityError(f"{self.name}: {key} has shape {out.shape}, reference {reference.shape}")
        if np.issubdtype(reference.dtype, np.floating):
            error = relative_error(out, reference)
            tolerance = float(self.meta["step1_rtol" if name.startswith("step1.") else "rtol"])
            tolerance = tolerance if reference.any() else 1e-6
        elif levels:
            error, tolerance = float(np.abs(out.astype(int) - reference.astype(int)).max(initial=0)), float(levels)
        else:
            error = float((out != reference).mean())
            tolerance = float(self.meta.get("label_mismatch_max", 0.0)) if reference.dtype == np.uint8 else 0.0
        self.errors[key] = (error, tolerance)
        if not error <= tolerance:
            raise ParityError(f"{self.name}: {key} differs by {error:.3g}, allowed {tolerance:.3g}")

    def finish(self) -> None:
        """Raise unless every output of every case was compared."""
        missed = {f"{case['name']}/{name}" for case in self.cases for name in case["outputs"]} - set(self.errors)
        if missed:
            raise ParityError(f"{self.name}: outputs without a comparison: {sorted(missed)}")
