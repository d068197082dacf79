"""Reading parity fixtures: inputs, weights, settings, and comparison with the reference outputs.

A fixture is `<name>.json` beside `<name>.npz`. Shapes, salts, settings, tolerances and the parts of an output
that are stored all come from the files, so that a check runs on any variant of its kind.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import torch

Array = np.ndarray[Any, np.dtype[Any]]
Module = TypeVar("Module", bound=torch.nn.Module)

_VARIANT = re.compile(r"_(?:[a-z]\d*|\d+)$")
_ORDINALS = {
    "second": 2,
    "third": 3,
    "fourth": 4,
    "fifth": 5,
    "sixth": 6,
    "seventh": 7,
    "eighth": 8,
    "ninth": 9,
    "tenth": 10,
}
_BRACKET = re.compile(r"\[([-\d:,\s]+)\]")
_EVERY = re.compile(r"(?:every|and)\s+(\d+)(?:st|nd|rd|th)?\b|every\s+([a-z]+)\b")
_DOTTED = re.compile(r"[A-Za-z_]\w*(?:\.\w+)+")


class ParityError(AssertionError):
    """An output differs from its reference, or a fixture was not compared in full."""


def load_parity_module(path: Path) -> ModuleType:
    """The generator of weights and inputs that lies beside the fixtures (`parity.py`)."""
    spec = importlib.util.spec_from_file_location("parity", path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kind_of(name: str, kinds: Iterable[str]) -> str:
    """The kind a fixture belongs to: its name, or its name without trailing variants such as `_a` or `_h1`.

    Where that is no kind, the longest kind that the name begins with (`mod_fca` of `mod_fca_small`).
    """
    known = set(kinds)
    kind = name
    while kind not in known and _VARIANT.search(kind):
        kind = _VARIANT.sub("", kind)
    if kind in known:
        return kind
    return max((other for other in known if kind.startswith(f"{other}_")), key=len, default=kind)


class Fixture:
    """One fixture: its inputs on demand, its reference outputs, and what has been compared so far."""

    def __init__(self, path: Path, parity: ModuleType) -> None:
        self.path = path
        self.name = path.stem
        self.parity = parity
        self.meta: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as archive:
            self.arrays: dict[str, Array] = {key: archive[key] for key in archive.files}
        self.settings: dict[str, Any] = self.meta.get("settings", {})
        self.errors: dict[str, tuple[float, float]] = {}
        """Output -> (error, tolerance) of what was compared."""

    # ---- inputs ----

    @cached_property
    def _drawn(self) -> dict[str, dict[str, Any]]:
        return {entry["arg"]: entry for entry in self.meta.get("inputs", [])}

    @cached_property
    def _derived(self) -> dict[str, dict[str, Any]]:
        return {entry["arg"]: entry for entry in self.meta.get("derived_inputs", [])}

    def has_input(self, arg: str) -> bool:
        """Whether the fixture describes an input of this name."""
        return arg in self._drawn or arg in self._derived

    def input_names(self) -> list[str]:
        """Names of all inputs, drawn ones first."""
        return [*self._drawn, *self._derived]

    def input(self, arg: str) -> Array:
        """An input as a fresh numpy array: stored, derived (coarse cells plus fine noise), or drawn."""
        if arg in self._derived:
            entry = self._derived[arg]
            value = self.arrays[entry["npz"]].copy() if "npz" in entry else self._coarse_plus_fine(entry)
            expected = tuple(entry["shape"])
            if value.shape != expected:
                raise ParityError(f"{self.name}: input {arg} has shape {value.shape}, described as {expected}")
            return value
        entry = self._drawn[arg]
        return self.parity.tensor(
            entry["name"], tuple(entry["shape"]), entry["low"], entry["high"], entry["salt"]
        ).numpy()

    def tensor(self, arg: str) -> torch.Tensor:
        """`input` as a tensor."""
        return torch.from_numpy(np.ascontiguousarray(self.input(arg)))

    def _coarse_plus_fine(self, entry: dict[str, Any]) -> Array:
        match = re.match(r"(\w+) with each cell repeated (\d+)x(\d+).*?plus (\w+)", entry["how"])
        if match is None:
            raise ParityError(f"{self.name}: no rule for input {entry['arg']}: {entry['how']!r}")
        coarse, fine = self.input(match[1]), self.input(match[4])
        height, width = entry["shape"][-2:]
        repeated = coarse.repeat(int(match[2]), axis=-2).repeat(int(match[3]), axis=-1)
        return np.ascontiguousarray(repeated[..., :height, :width] + fine)

    # ---- weights ----

    def salt(self, network: str) -> int:
        """Salt of the weights of the network whose name starts with `network`."""
        for entry in self.meta.get("weights", []):
            if entry["network"] == network or entry["network"].startswith(network):
                return entry["salt"]
        raise ParityError(f"{self.name}: no weights are described for {network}")

    def fill(
        self, module: Module, network: str | None = None, rename: Callable[[str], str] = lambda name: name
    ) -> Module:
        """Fill a module's weights by the fixture's salt for `network`; `rename` gives the names to hash.

        Without `network` the fixture must describe the weights of one network only.
        """
        if network is None:
            (only,) = self.meta["weights"]
            network = str(only["network"])
        return self.parity.fill_state_dict(module, self.salt(network), rename)

    # ---- references ----

    def outputs(self) -> list[str]:
        """Keys of the reference outputs in the .npz."""
        return [key for key in self.arrays if not key.startswith("in_")]

    def reference(self, name: str) -> Array:
        """A reference output."""
        return self.arrays[name]

    def what(self, name: str) -> str:
        """What the fixture says of an output, or the empty text."""
        return self.meta.get("outputs", {}).get(name, {}).get("what", "")

    def names_in(self, name: str) -> list[str]:
        """Dotted names (parameters) that the description of an output lists, in order."""
        return _DOTTED.findall(self.what(name))

    def sampled(self, name: str, value: Any) -> Array:
        """The part of `value` that the reference of `name` stores.

        A bracket in the description (`[::8, :, 1, 1]`) is applied as written. Otherwise the step along every
        axis is what turns the full length into the stored one; where several would, the description's words
        ("every second row") decide. Axes of length 1 that the reference does not have are dropped.
        """
        full = _as_array(value)
        reference, text = self.arrays[name], self.what(name)
        bracket = _BRACKET.search(text)
        if bracket is not None and ":" in bracket[1]:
            full = full[_parse_slices(bracket[1])]
        if full.ndim > reference.ndim:
            surplus = full.ndim - reference.ndim
            single = [axis for axis in range(full.ndim) if full.shape[axis] == 1]
            # Kernel axes (the last ones) go first: (20, 128, 1, 1) is stored as (20, 128).
            full = full.squeeze(tuple(single[-surplus:])) if len(single) >= surplus else full
        if full.shape == reference.shape:
            return full
        if full.ndim != reference.ndim:
            raise ParityError(f"{self.name}: {name} has shape {full.shape}, reference {reference.shape}")
        spoken = [int(number) if number else _ORDINALS.get(word, 0) for number, word in _EVERY.findall(text)]
        steps = [
            self._step(name, length, stored, spoken) for length, stored in zip(full.shape, reference.shape, strict=True)
        ]
        return full[tuple(slice(None, None, step) for step in steps)]

    def _step(self, name: str, length: int, stored: int, spoken: list[int]) -> int:
        if length == stored:
            return 1
        fitting = [step for step in range(1, length + 1) if -(-length // step) == stored]
        if not fitting:
            raise ParityError(f"{self.name}: {name}: no step takes an axis of {length} to {stored}")
        preferred = [step for step in spoken if step in fitting]
        return preferred[0] if preferred else fitting[0]

    # ---- comparison ----

    def tolerance(self, name: str) -> float:
        """Relative tolerance of a float output."""
        return float(self.meta.get("rtol_overrides", {}).get(name, self.meta["rtol"]))

    def expect(self, name: str, value: Any, atol: float | None = None) -> None:
        """Compare an output with its reference and count it as compared.

        Floats: ||out - ref|| / ||ref|| over the whole array, or with `atol` the largest absolute difference.
        Integers: equal, or equal on the share of elements given by `agreement`; by one at most where the
        description allows a grey level. Raises ParityError.
        """
        if name not in self.arrays or name.startswith("in_"):
            raise ParityError(f"{self.name} has no reference output {name}; it has {self.outputs()}")
        reference, out = self.arrays[name], _as_array(value)
        if out.shape != reference.shape:
            raise ParityError(f"{self.name}: {name} has shape {out.shape}, reference {reference.shape}")
        if np.issubdtype(reference.dtype, np.floating):
            if atol is None:
                error, tolerance = relative_error(out, reference), self.tolerance(name)
            else:
                error, tolerance = float(np.abs(out - reference).max(initial=0.0)), atol
        else:
            if not np.issubdtype(out.dtype, np.integer) and out.dtype != np.bool_:
                raise ParityError(f"{self.name}: {name} is {out.dtype}, reference {reference.dtype}")
            difference = np.abs(out.astype(np.int64) - reference.astype(np.int64))
            allowed = 1 if "by 1 grey level" in self.what(name) else 0
            error = float((difference > allowed).mean()) if difference.size else 0.0
            tolerance = 1.0 - float(self.meta.get("agreement", 1.0))
        self.errors[name] = (error, tolerance)
        # The share of agreeing pixels is compared as a count, free of the rounding of 1 - 0.995.
        if not error <= tolerance + 1e-12:
            raise ParityError(f"{self.name}: {name} differs by {error:.3g}, allowed {tolerance:.3g}")

    def equal(self, name: str, value: Any, expected: Any) -> None:
        """A value that the .json itself states (a checksum, a list of names)."""
        if value != expected:
            raise ParityError(f"{self.name}: {name} is {value!r}, the fixture says {expected!r}")

    def finish(self) -> None:
        """Raise unless every output of the .npz was compared, and .json and .npz list the same ones."""
        stored, described = set(self.outputs()), set(self.meta.get("outputs", {}))
        if stored != described:
            raise ParityError(f"{self.name}: .npz and .json differ in outputs {sorted(stored ^ described)}")
        missed = stored - set(self.errors)
        if missed:
            raise ParityError(f"{self.name}: outputs without a comparison: {sorted(missed)}")


def relative_error(out: Any, reference: Any) -> float:
    """||out - ref|| / ||ref|| in float64; where the reference is all zeros, the largest |out|.

    Infinite when the two are not NaN at the same places.
    """
    a, b = _as_array(out).astype(np.float64), _as_array(reference).astype(np.float64)
    if not np.array_equal(np.isnan(a), np.isnan(b)):
        return float("inf")
    a, b = np.nan_to_num(a), np.nan_to_num(b)
    norm = float(np.linalg.norm(b))
    return float(np.abs(a).max(initial=0.0)) if norm == 0 else float(np.linalg.norm(a - b)) / norm


def _parse_slices(text: str) -> tuple[slice | int, ...]:
    parts: list[slice | int] = []
    for part in text.split(","):
        part = part.strip()
        if ":" in part:
            parts.append(slice(*(int(number) if number.strip() else None for number in part.split(":"))))
        else:
            parts.append(int(part))
    return tuple(parts)


def _as_array(value: Any) -> Array:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
