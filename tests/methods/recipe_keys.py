"""What the tests of a method's stage keys share: a data set that is hardly there, pinned keys, owners of settings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from PIL import Image

from wsss.data.dataset import Dataset
from wsss.method import Method
from wsss.pipeline import Pipeline, stage_keys
from wsss.recipe import load_recipe, settings_of
from wsss.weights import file_digest


@dataclass(frozen=True)
class FakeData:
    """A data set by its digest alone; pictures of its names lie in its folder, for stages that look at their sizes."""

    root: Path
    home: Path | None = None
    cache: Path | None = None
    label_provenance: str = "file: labels"

    @property
    def lists(self) -> dict[str, tuple[str, ...]]:
        return {"train": ("a", "b"), "train_aug": ("a", "b", "c"), "val": ("d",)}

    def names(self, list_name: str) -> tuple[str, ...]:
        return self.lists[list_name]

    def image_path(self, name: str) -> Path:
        return self.root / "JPEGImages" / f"{name}.jpg"

    def digest(self, image_list: str | None, reads: frozenset[Any]) -> str:
        return f"{image_list}:{','.join(sorted(reads))}"


def data_folder(folder: Path, weights: Mapping[str, str]) -> Path:
    """A data set's folder, with weight files beside it whose content never changes. weights: name -> content."""
    (folder / "weights").mkdir()
    for name, content in weights.items():
        (folder / "weights" / f"{name}.pth").write_bytes(content.encode())
    (folder / "weights" / "mobilenet_v2_keras_int8-7edfbd0e.pth").write_bytes(b"mobilenet_v2")
    (folder / "set" / "JPEGImages").mkdir(parents=True)
    for name in "abcd":
        Image.new("RGB", (6, 4)).save(folder / "set" / "JPEGImages" / f"{name}.jpg")
    return folder / "set"


def given_weights(root: Path, names: Iterable[str]) -> list[str]:
    """Overrides that give the files of `data_folder`."""
    return [f"weights.{name}={root.parent / 'weights' / name}.pth" for name in names]


@dataclass(frozen=True)
class StageKeys:
    """Pipelines and keys of a method's recipes on `FakeData`."""

    method: Method

    def build(self, root: Path, recipe_name: str, *overrides: str) -> Pipeline:
        recipe = load_recipe(self.method.recipe_type, self.method.recipe_path(recipe_name), overrides)
        return self.method.pipeline(recipe, cast(Dataset, FakeData(root)))

    def of(self, root: Path, recipe_name: str, *overrides: str) -> dict[str, str]:
        return stage_keys(self.build(root, recipe_name, *overrides), FakeData(root), file_digest)

    def assert_pinned(self, root: Path, pinned: Path, recipe_name: str, *overrides: str) -> None:
        """A change means that stored results are computed again: raise a version or change a recipe on purpose.

        When it is on purpose, put the printed keys into the file `pinned`.
        """
        keys, expected = self.of(root, recipe_name, *overrides), json.loads(pinned.read_text()).get(recipe_name, {})
        changed = sorted(name for name in {*keys, *expected} if keys.get(name) != expected.get(name))
        assert changed == [], json.dumps({recipe_name: keys}, indent=1)

    def assert_changes(self, root: Path, override: str, owners: Sequence[str], base: Sequence[str] = ()) -> None:
        """In the demo with `base`, an override changes the stages `owners`, what follows them, and nothing else.

        From random weights, as the demo's files fit one width.
        """
        base = (*self.without_weights(), *base)
        pipeline = self.build(root, "demo", *base)
        before, after = self.of(root, "demo", *base), self.of(root, "demo", *base, override)
        assert before != after, f"the demo has {override} already: try another value"
        assert set(before) == set(after)
        expected = set().union(*(pipeline.downstream(owner) for owner in owners))
        assert {name for name in before if before[name] != after[name]} == expected

    def without_weights(self) -> list[str]:
        """Overrides that start every network from random weights."""
        names = (key for key in settings_of(self.method.recipe_type) if key.startswith("weights."))
        return [f"{name}=none" for name in names if name != "weights.allow_random"]

    def settings(self) -> set[str]:
        """Keys of the recipe that enter keys of stages, without the data set's."""
        known = settings_of(self.method.recipe_type)
        return {key for key, info in known.items() if info.in_key and not key.startswith(("dataset.", "references."))}


def owners_of(key: str, owners: Mapping[str, Sequence[str]]) -> Sequence[str]:
    """The stages of a setting, or of its section where the setting has no line of its own."""
    return owners.get(key) or owners[key.split(".")[0]]
