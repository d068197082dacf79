"""What holds for every search space that is shipped. A space inherits these tests by lying in search_spaces/."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsss.commands.methods import find_method, recipe_names
from wsss.data.dataset import load_dataset
from wsss.recipe import load_recipe
from wsss.search.space.file import load_space, space_method
from wsss.search.space.levels import derive_levels
from wsss.search.space.pipelines import KeyedPipelines, metrics_of

ROOT = Path(__file__).resolve().parents[2]
SPACES = sorted((ROOT / "search_spaces").glob("*.yaml"))
SMALL = (
    "dataset.name=shapes",
    "dataset.shapes.train=6",
    "dataset.shapes.train_aug_extra=4",
    "dataset.shapes.val=4",
    "dataset.shapes.size=48",
)

pytestmark = pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)


def test_the_space_fits_every_recipe_of_its_method(path: Path) -> None:
    method = find_method(space_method(path))
    for name in recipe_names(method):
        space = load_space(path, load_recipe(method.recipe_type, method.recipe_path(name)))
        assert space.method == method.name and space.keys


def test_every_key_reaches_a_metric(path: Path, tmp_path: Path) -> None:
    """A key that changes no number would be searched for nothing."""
    method = find_method(space_method(path))
    recipe = load_recipe(method.recipe_type, method.recipe_path("demo"), SMALL)
    pipelines = KeyedPipelines(method, load_dataset(recipe.dataset, tmp_path))
    base = pipelines.of(recipe)
    space = load_space(path, recipe)
    reaching: dict[str, set[str]] = {}
    for metric in metrics_of(base.pipeline):
        for key in derive_levels(space.keys, pipelines, base, metric, {}, None):
            if key.level != "unused":
                assert key.stage in base.keys
                reaching.setdefault(key.key, set()).add(metric)
    assert set(reaching) == {key.key for key in space.keys}
