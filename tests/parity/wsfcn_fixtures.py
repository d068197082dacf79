"""Reading WS-FCN's parity fixtures, whose .json differs from the other methods' (README beside the fixtures).

Inputs are a mapping by kind (`tensor`, `smooth`, `stored`, `multi_hot`, `derived`), stored parts of an output are given
by a NumPy subscript, and one `tolerance.relative_l2` holds for all outputs that `compare` and `notes` do not except.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from tests.parity.fixtures import ParityError, relative_error
from torch import Tensor, nn

Array = np.ndarray[Any, np.dtype[Any]]
Module = TypeVar("Module", bound=nn.Module)

_NORM_DIGITS = 1e-5  # `full_norm` is printed with six digits


class DescribedFixture:
    """One fixture: inputs on demand, reference outputs, and what has been compared so far.

    Attributes:
        meta: the .json.
        parameters: its `parameters`, or nothing.
        errors: output -> (error, tolerance) of what was compared.
    """

    def __init__(self, path: Path, parity: ModuleType) -> None:
        self.name = path.stem
        self.parity = parity
        self.meta: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as archive:
            self.arrays: dict[str, Array] = {key: archive[key] for key in archive.files}
        self.parameters: dict[str, Any] = self.meta.get("parameters", {})
        self.what: str = self.meta.get("what", "")
        self.notes: str = self.meta.get("notes", "")
        self.errors: dict[str, tuple[float, float]] = {}

    # ---- inputs ----

    def has_input(self, name: str) -> bool:
        """Whether the fixture describes an input of this name."""
        return name in self.meta["inputs"]

    def recipe(self, name: str) -> str:
        """The words that describe a derived input."""
        return self.meta["inputs"][name].get("recipe", "")

    def input(self, name: str) -> Array:
        """An input as a fresh array. Derived ones are the checks' business."""
        entry = self.meta["inputs"][name]
        kind = entry["kind"]
        if kind == "tensor":
            return self._drawn(entry, entry["shape"]).numpy()
        if kind == "smooth":
            small = self._drawn(entry, entry["small_shape"])
            return F.interpolate(small, size=tuple(entry["size"]), mode="bilinear", align_corners=True).numpy()
        if kind == "stored":
            return self.arrays[entry["npz_key"]].copy()
        if kind == "multi_hot":
            values = np.zeros(entry["shape"], dtype=entry["dtype"])
            for row, indices in enumerate(entry["positive_indices"]):
                values[row, indices] = 1
            return values
        raise ParityError(f"{self.name}: input {name} is of kind {kind!r}, which only its check can make")

    def tensor(self, name: str) -> Tensor:
        """`input` as a tensor."""
        return torch.from_numpy(np.ascontiguousarray(self.input(name)))

    def _drawn(self, entry: dict[str, Any], shape: list[int]) -> Tensor:
        return self.parity.tensor(entry["name"], tuple(shape), entry["low"], entry["high"], entry["salt"])

    # ---- weights ----

    @torch.no_grad()
    def fill(self, module: Module, rename: Callable[[str], str] = lambda name: name) -> Module:
        """Fill a module, then scale and shift what the fixture says; `rename` gives the published names.

        The constants of `restore_after_fill` are no buffers of ours and need no restoring.
        """
        weights = self.meta["weights"]
        self.parity.fill_state_dict(module, weights["salt"], rename)
        state = {rename(name): value for name, value in module.state_dict().items()}
        for name, factor in weights.get("scale_after_fill", {}).items():
            state[name].mul_(factor)
        for name, shift in weights.get("add_after_fill", {}).items():
            state[name].add_(shift)
        return module

    # ---- references ----

    def outputs(self) -> list[str]:
        """Names of the reference outputs."""
        return [key for key in self.arrays if not key.startswith("in_")]

    def has_output(self, name: str) -> bool:
        """Whether there is such a reference."""
        return name in self.outputs()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an output before a part of it was stored."""
        entry = self.meta["outputs"][name]
        return tuple(entry.get("full_shape", entry["shape"]))

    # ---- comparison ----

    def expect(self, name: str, value: Any) -> None:
        """Compare an output with its reference and count it as compared. Raises ParityError."""
        if not self.has_output(name):
            raise ParityError(f"{self.name} has no reference output {name}; it has {self.outputs()}")
        entry, reference = self.meta["outputs"][name], self.arrays[name]
        full = _as_array(value)
        if full.ndim == 0:
            full = full.reshape(1)
        if full.shape != self.shape(name):
            raise ParityError(f"{self.name}: {name} has shape {full.shape}, reference {self.shape(name)}")
        out = full[parse_subscript(entry["index"])] if "index" in entry else full
        if out.shape != reference.shape:
            raise ParityError(f"{self.name}: the stored part of {name} is {reference.shape}, ours {out.shape}")
        if entry.get("compare") == "exact":
            error, tolerance = float((out != reference).mean()), 0.0
        elif np.issubdtype(reference.dtype, np.floating):
            error, tolerance = relative_error(out, reference), self.tolerance(name)
            if "full_norm" in entry:  # what is not stored is held at least by its norm
                norm = float(np.linalg.norm(full.astype(np.float64)))
                if abs(norm - entry["full_norm"]) > (tolerance + _NORM_DIGITS) * entry["full_norm"]:
                    raise ParityError(f"{self.name}: {name} has norm {norm:.6g}, reference {entry['full_norm']:.6g}")
        else:
            error, tolerance = float((out.astype(np.int64) != reference).mean()), self.differing_share(reference)
        self._record(name, error, tolerance)

    def expect_each(self, name: str, value: Any) -> None:
        """Compare entry by entry with the relative tolerance of the notes; zeros must be exactly zero."""
        stated = re.search(rf"{name} entry by entry with relative tolerance ([\d.e-]+)", self.notes)
        if stated is None:
            raise ParityError(f"{self.name}: the notes state no tolerance for the entries of {name}")
        out, reference = _as_array(value).astype(np.float64), self.arrays[name]
        if out.shape != reference.shape:
            raise ParityError(f"{self.name}: {name} has shape {out.shape}, reference {reference.shape}")
        zero = reference == 0
        if out[zero].any():
            raise ParityError(f"{self.name}: {name} must be zero at {np.flatnonzero(zero & (out != 0)).tolist()}")
        error = np.abs(out[~zero] / reference[~zero] - 1).max(initial=0.0)
        self._record(name, float(error), float(stated[1]))

    def tolerance(self, name: str) -> float:
        """Relative tolerance of a float output; the notes may except one by name."""
        stated = re.search(rf"\b{name}: relative_l2 ([\d.e-]+\d)", self.notes)
        return float(stated[1]) if stated else float(self.meta["tolerance"]["relative_l2"])

    def differing_share(self, reference: Array) -> float:
        """Share of the pixels of an integer map that may differ; vectors must be equal."""
        stated = re.search(r"at most ([\d.]+)% of the pixels", self.notes)
        return float(stated[1]) / 100 if stated and reference.ndim > 1 else 0.0

    def finish(self) -> None:
        """Raise unless every output of the .npz was compared, and .json and .npz list the same ones."""
        stored, described = set(self.outputs()), set(self.meta["outputs"])
        if stored != described:
            raise ParityError(f"{self.name}: .npz and .json differ in outputs {sorted(stored ^ described)}")
        if missed := stored - set(self.errors):
            raise ParityError(f"{self.name}: outputs without a comparison: {sorted(missed)}")

    def _record(self, name: str, error: float, tolerance: float) -> None:
        self.errors[name] = (error, tolerance)
        if not error <= tolerance + 1e-12:
            raise ParityError(f"{self.name}: {name} differs by {error:.3g}, allowed {tolerance:.3g}")


def parse_subscript(text: str) -> tuple[Any, ...]:
    """`[:, ::4]` or `[[0, 2, 7]]` as what it means between the brackets of an array. ValueError for anything else."""
    node = ast.parse(f"x{text}", mode="eval").body
    if not isinstance(node, ast.Subscript):
        raise ValueError(f"{text!r} is no subscript")
    parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    return tuple(_subscript_part(part) for part in parts)


def _subscript_part(part: ast.expr) -> Any:
    if isinstance(part, ast.Slice):
        bounds = (part.lower, part.upper, part.step)
        return slice(*(None if bound is None else ast.literal_eval(bound) for bound in bounds))
    return ast.literal_eval(part)


def _as_array(value: Any) -> Array:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
