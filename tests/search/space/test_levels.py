"""Stages of search keys are derived from the pipeline: levels, curves, keys that do not matter, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.execution import toy_method
from tests.search import planted_method
from tests.search.planted_method import METRIC, QUALITY, SMALL

from wsss.data.dataset import load_dataset
from wsss.errors import WsssError
from wsss.recipe import load_recipe
from wsss.search.records import SearchedKey
from wsss.search.request import SweepError, prepare_sweep
from wsss.search.space.file import SpaceError, load_space
from wsss.search.space.levels import derive_levels
from wsss.search.space.pipelines import KeyedPipelines, MetricError, metric_stage, metrics_of


def levels_of(home: Path, seconds: dict[str, float | None], limit: float | None) -> dict[str, SearchedKey]:
    request = planted_method.request(home)
    space = load_space(request.space_path, request.recipe)
    pipelines = KeyedPipelines(request.method, load_dataset(request.recipe.dataset, home))
    base = pipelines.of(request.recipe)
    return {key.key: key for key in derive_levels(space.keys, pipelines, base, METRIC, seconds, limit)}


def test_stages_are_found_by_changing_the_key(tmp_path: Path) -> None:
    keys = levels_of(tmp_path, {}, None)
    assert {key.key: (key.stage, key.level) for key in keys.values()} == {
        "base.position": ("base", "inner"),
        "detail.kind": ("detail", "inner"),
        "detail.scale": ("detail", "inner"),
        "detail.radius": ("detail", "inner"),  # only under kind = round
        "evaluation.threshold": ("detail_evaluation", "curve"),
    }


def test_a_costly_stage_makes_its_keys_outer_ones(tmp_path: Path) -> None:
    keys = levels_of(tmp_path, {"base": 100.0, "detail": 1.0}, 10.0)
    assert keys["base.position"].level == "outer" and keys["base.position"].trains == ()
    assert keys["detail.scale"].level == "inner"
    # Limits below both: everything but the curve.
    keys = levels_of(tmp_path, {"base": 100.0, "detail": 100.0}, 10.0)
    assert [key.key for key in keys.values() if key.level != "outer"] == ["evaluation.threshold"]


def test_what_an_outer_key_depends_on_is_outer(tmp_path: Path) -> None:
    keys = (
        SearchedKey("detail.kind", "categorical", choices=("blunt", "round"), default="blunt"),
        SearchedKey("base.position", "float", 0, 1, default=0.1, conditions={"detail.kind": ["round"]}),
    )
    request = planted_method.request(tmp_path)
    pipelines = KeyedPipelines(request.method, load_dataset(request.recipe.dataset, tmp_path))
    derived = derive_levels(keys, pipelines, pipelines.of(request.recipe), METRIC, {"base": 9.0}, 1.0)
    assert [key.level for key in derived] == ["outer", "outer"]


def test_training_makes_a_key_outer(tmp_path: Path) -> None:
    recipe = load_recipe(toy_method.ToyRecipe, None, SMALL)
    keys = (
        SearchedKey("train.learning_rate", "float", 0.1, 1, default=0.2),
        SearchedKey("score.power", "float", 0.5, 2, default=1.0),
    )
    pipelines = KeyedPipelines(toy_method.METHOD, load_dataset(recipe.dataset, tmp_path))
    derived = derive_levels(keys, pipelines, pipelines.of(recipe), "toy/miou_train", {}, None)
    assert [(key.level, key.trains) for key in derived] == [("outer", ("toy_train",)), ("inner", ())]


def test_an_unknown_metric_is_answered_with_those_that_there_are(tmp_path: Path) -> None:
    request = planted_method.request(tmp_path)
    pipeline = request.method.pipeline(request.recipe, load_dataset(request.recipe.dataset, tmp_path))
    assert metrics_of(pipeline) == {QUALITY: "base_evaluation", METRIC: "detail_evaluation"}
    with pytest.raises(MetricError, match="planted/miou_train"):
        metric_stage(pipeline, "planted/miou_val")


def refused(home: Path, *overrides: str, **options: Any) -> str:
    with pytest.raises(WsssError) as caught:
        prepare_sweep(planted_method.request(home, overrides, **options))
    return str(caught.value)


def test_sweeps_that_can_not_work_are_refused_before_anything_runs(tmp_path: Path) -> None:
    assert "planted/miou_train" in refused(tmp_path, metric="planted/miou_val")
    assert "--sampler" in refused(tmp_path, sampler="tpr")
    assert "several objectives" in refused(tmp_path, sampler="nsga2")
    assert "--early-stop" in refused(tmp_path, early_stop=True)
    assert "--trials" in refused(tmp_path, trials=0)
    assert "--name" in refused(tmp_path, name="../x")
    other = tmp_path / "other.yaml"
    other.write_text("method: other\nkeys: {base.position: {float: [0, 1]}}\n")
    assert "is of method 'other'" in refused(tmp_path, space_path=other)
    only_curve = tmp_path / "curve.yaml"
    only_curve.write_text("method: planted\nkeys: {evaluation.threshold: {float: [0.2, 0.5], step: 0.01}}\n")
    assert "no key of the space changes" in refused(tmp_path, space_path=only_curve)


def test_a_key_of_which_no_value_fits_the_recipe_is_named(tmp_path: Path) -> None:
    space = tmp_path / "planted.yaml"
    space.write_text("method: planted\nkeys: {base.position: {float: [0, 2]}}\n")
    with pytest.raises(SpaceError, match=r"base\.position"):
        prepare_sweep(planted_method.request(tmp_path))


def test_the_same_request_is_the_same_sweep_and_another_is_another(tmp_path: Path) -> None:
    def sweep_id(*overrides: str, **options: Any) -> str:
        return prepare_sweep(planted_method.request(tmp_path, overrides, **options)).sweep_id

    first = sweep_id()
    assert first.startswith("planted-small-planted-planted.miou_train-")
    assert sweep_id() == first
    assert sweep_id(trials=30, batch=2, concurrency=2) == first, "more of the same continues it"
    assert sweep_id("execution.map_workers=1", "pause=1.0") == first
    different = [
        sweep_id("base.position=0.5"),
        sweep_id("seed=1"),
        sweep_id("dataset.shapes.seed=1"),
        sweep_id(seed=1),
        sweep_id(select="oracle"),
        sweep_id(sampler="random"),
        sweep_id(flat=True),
    ]
    assert len({first, *different}) == 8
    prepared = prepare_sweep(planted_method.request(tmp_path, new=True))
    assert prepared.sweep_id == first, "nothing is there yet"
    prepared.folder.mkdir(parents=True)
    assert sweep_id(new=True) == f"{first}-2"
    (prepared.folder.parent / f"{first}-2").mkdir()
    assert sweep_id() == f"{first}-2", "without --new the last one continues"


def test_the_plan_counts_the_stage_executions(tmp_path: Path) -> None:
    prepared = prepare_sweep(planted_method.request(tmp_path, trials=12))
    assert {each.stage.name: each.executions for each in prepared.expected()} == {
        "base": 12,
        "detail": 12,
        "detail_score": 12,
        "detail_evaluation": 12,
    }
    (tmp_path / "costs.json").write_text("{}")
    no_key = tmp_path / "detail.yaml"
    no_key.write_text("method: planted\nkeys: {detail.scale: {float: [0, 1]}}\n")
    prepared = prepare_sweep(planted_method.request(tmp_path, trials=12, space_path=no_key))
    assert [each.executions for each in prepared.expected()] == [1, 12, 12, 12]
    with pytest.raises(SweepError):
        prepare_sweep(planted_method.request(tmp_path, space_path=no_key, early_stop=True, flat=True))
