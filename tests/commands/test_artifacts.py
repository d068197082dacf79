"""Recipes of recorded runs."""

from __future__ import annotations

from wsss.commands.artifacts import selection_of
from wsss.commands.methods import find_method, method_names
from wsss.recipe import load_recipe, to_dict
from wsss.run_record import RunRecord


def test_a_run_that_is_older_than_a_key_is_read_with_its_default() -> None:
    method = find_method(method_names()[0])
    recipe = to_dict(load_recipe(method.recipe_type, method.recipe_path("demo"), ["seed=3"]))
    del recipe["dataset"]["val_list"]
    del recipe["execution"]
    record = RunRecord(
        run_id="old",
        method=method.name,
        recipe_name="demo",
        recipe=recipe,
        seed=3,
        dataset="shapes",
        store_url="",
        keys={},
        protocol={},
        provenance={},
    )
    read = selection_of(record).recipe
    assert read.seed == 3 and read.dataset.val_list == ""
    assert read.execution == method.recipe_type().execution
