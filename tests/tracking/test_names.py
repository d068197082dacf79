from __future__ import annotations

import pytest
from mlflow.utils.validation import path_not_unique, validate_param_and_metric_name

from wsss.tracking.names import (
    NAME_CHARACTERS,
    PARAM_CHARACTERS,
    cut_text,
    flatten_params,
    metric_name,
    run_name,
    tag_texts,
)


def test_metric_names_of_the_platform_stay_as_they_are() -> None:
    for name in ("cam/miou_train", "segmentation/miou_val_crf", "pseudo_label/iou_train/potted plant"):
        assert metric_name(name) == name
    assert metric_name("pseudo_label", "iou_train", "aeroplane") == "pseudo_label/iou_train/aeroplane"


@pytest.mark.parametrize(
    "name", ["a%b", "tv(monitor)", "/lead", "a//b", "a/../b", "..", "./a", "a/.", "", " / ", "x" * 600, "a/" * 200]
)
def test_every_name_becomes_one_that_mlflow_accepts(name: str) -> None:
    cleaned = metric_name(name)
    assert validate_param_and_metric_name(cleaned), cleaned
    assert not path_not_unique(cleaned), cleaned
    assert len(cleaned) <= NAME_CHARACTERS


def test_an_overlong_name_keeps_its_end() -> None:
    assert metric_name("x" * 400, "aeroplane").endswith("/aeroplane")


def test_recipes_flatten_to_dotted_keys() -> None:
    recipe = {
        "cam": {"scales": [0.5, 1.0], "crop": (448, 448), "crf": None, "flip": True},
        "steps": [{"rate": 0.1}],
        "empty": {},
    }
    assert flatten_params(recipe) == {
        "cam.scales": "[0.5, 1.0]",
        "cam.crop": "(448, 448)",
        "cam.crf": "None",
        "cam.flip": "True",
        "steps.0.rate": "0.1",
        "empty": "{}",
    }
    assert flatten_params({}) == {}


def test_long_values_are_cut_visibly() -> None:
    value = flatten_params({"list": "x" * 7000})["list"]
    assert len(value) == PARAM_CHARACTERS
    assert value.endswith("[cut, 7000 characters]")
    assert cut_text("short", 100) == "short"


def test_tags_leave_none_out_and_redact() -> None:
    assert tag_texts({"stage": "cam", "split": None, "kind": "", "seed": 0, "store": "https://me:pw@host/x"}) == {
        "stage": "cam",
        "seed": "0",
        "store": "https://[redacted]@host/x",
    }


def test_a_run_is_told_apart_by_its_name() -> None:
    assert run_name("toy", "mini", 3) == "toy mini, seed 3"
    assert run_name("toy", "mini", 3, ["upper_bound", "cam.rate=0.02"]) == (
        "toy mini with upper_bound, cam.rate=0.02, seed 3"
    )
    long = run_name("toy", "mini", 3, ["cam.scales=[" + "1.0, " * 50, "a=1", "b=2", "c=3", "d=4"])
    assert long.endswith("..., a=1, b=2, 2 more, seed 3") and len(long) < 100
