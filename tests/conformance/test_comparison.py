"""What a method must have to stand beside the others in a comparison."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsss.commands.comparison_page import pictured_column
from wsss.commands.methods import find_method, method_names
from wsss.data.dataset import load_dataset
from wsss.metric_name import MetricName
from wsss.recipe import load_recipe

SHARED = {"cam", "pseudo_label", "segmentation"}


@pytest.fixture(scope="module")
def shapes_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.mark.parametrize("crf", ["true", "false"])
@pytest.mark.parametrize("name", method_names())
def test_a_comparison_shows_pictures_of_what_methods_share(name: str, crf: str, shapes_home: Path) -> None:
    method = find_method(name)
    recipe = load_recipe(method.recipe_type, method.recipe_path("demo"), [f"crf.enabled={crf}"])
    pipeline = method.pipeline(recipe, load_dataset(recipe.dataset, shapes_home))
    shown = SHARED & {MetricName.parse(number).scored for number in pipeline.headline}
    assert "segmentation" in shown
    for scored in shown:
        column = pictured_column(pipeline.grids, scored)
        assert column is not None, scored
        assert column.stage in {stage.name for stage in pipeline}
