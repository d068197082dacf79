"""Search spaces: every problem at once with the nearest key; distributions held against the recipe's ranges."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from wsss.recipe import setting
from wsss.search.space.file import (
    SearchSpace,
    SpaceError,
    contains,
    is_active,
    load_space,
    number_of_values,
    space_method,
    values_of,
)


@dataclass(frozen=True)
class Crf:
    enabled: bool = setting(True)
    iterations: int = setting(10, minimum=1, maximum=20)
    rgb_std: float = setting(5.0, above=0, maximum=100)


@dataclass(frozen=True)
class Train:
    learning_rate: float = setting(0.1, above=0)
    crop_size: int = setting(64, minimum=16, multiple_of=16)
    scales: tuple[float, ...] = setting((1.0, 0.5), above=0, maximum=4)
    backbone: str = setting("resnet50", choices=("resnet50", "mobilenet_v2"))
    workers: int = setting(1, minimum=0, in_key=False)


@dataclass(frozen=True)
class Recipe:
    train: Train = Train()
    crf: Crf = Crf()
    seed: int = setting(0, minimum=0)


def load(tmp_path: Path, text: str) -> SearchSpace:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    return load_space(path, Recipe())


def test_a_space_has_typed_distributions_and_the_recipes_defaults(tmp_path: Path) -> None:
    space = load(
        tmp_path,
        """
method: toy
keys:
  train.learning_rate: {float: [1e-3, 1], log: true}
  train.crop_size: {int: [32, 96], step: 16}
  train.scales: {categorical: [[1], [1, 0.5]]}
  train.backbone: {categorical: [resnet50, mobilenet_v2]}
  crf.rgb_std: {float: [1, 9], when: {crf.enabled: [true], crf.iterations: [10, 5]}}
""",
    )
    assert (space.name, space.method, space_method(tmp_path / "space.yaml")) == ("space", "toy", "toy")
    by_name = {key.key: key for key in space.keys}
    rate, crop, scales = by_name["train.learning_rate"], by_name["train.crop_size"], by_name["train.scales"]
    assert (rate.kind, rate.low, rate.high, rate.log, rate.default) == ("float", 1e-3, 1.0, True, 0.1)
    assert (values_of(crop), crop.default) == ([32, 48, 64, 80, 96], 64)
    assert (scales.choices, scales.default) == (([1.0], [1.0, 0.5]), [1.0, 0.5])
    assert by_name["crf.rgb_std"].conditions == {"crf.enabled": [True], "crf.iterations": [10, 5]}
    assert is_active(by_name["crf.rgb_std"], {"crf.enabled": True, "crf.iterations": 5})
    assert not is_active(by_name["crf.rgb_std"], {"crf.enabled": False, "crf.iterations": 5})
    assert number_of_values([crop, scales]) == 10 and number_of_values([rate]) is None
    assert contains(crop, 48) and not contains(crop, 50) and not contains(crop, 112)


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(SpaceError) as caught:
        load(
            tmp_path,
            """
method: toy
kyes: 1
keys:
  train.learning_rte: {float: [0.1, 0.2]}
  train.learning_rate: {float: [0, 1]}
  train.crop_size: {int: [30, 96]}
  train.scales: {float: [1, 2]}
  train.backbone: {categorical: [resnet50, resnet5]}
  train.workers: {int: [1, 2]}
  crf.iterations: {float: [1, 5]}
  crf.rgb_std: {float: [5, 2], logg: true, when: {crf.enable: [true]}}
  crf.enabled: {categorical: [true]}
  seed: {int: [0, 5]}
""",
        )
    text = str(caught.value)
    for part in (
        "unknown entry 'kyes'; did you mean 'keys'?",
        "unknown key 'train.learning_rte'; did you mean 'train.learning_rate'?",
        "train.learning_rate: 0 must be number in (0, inf)",
        "train.crop_size: 30 must be integer in [16, inf), a multiple of 16",
        "train.scales: is list of number in (0, 4]; write {categorical: [...]}",
        "did you mean 'resnet50'?",
        "train.workers: is not searched",
        "crf.iterations: is an integer; write {int: [low, high]}",
        "crf.rgb_std: 5 is not below 2",
        "unknown option 'logg'",
        "when names the unknown key 'crf.enable'; did you mean 'crf.enabled'?",
        "crf.enabled: categorical takes a list of at least two values",
        "seed: is not searched",
        "space.yaml",
    ):
        assert part in text, part


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("{float: [0.1, 1], log: true, step: 0.1}", "log needs a range above 0 and no step"),
        ("{float: 3}", "float takes [low, high]"),
        ("{float: [0.1, 1], int: [1, 2]}", "exactly one of"),
        ("0.5", "exactly one of"),
        ("{float: [0.1, 1], when: [1]}", "when maps other keys"),
        ("{float: [0.1, 1], when: {crf.enabled: true}}", "needs a list of values"),
        ("{float: [0.1, 1], when: {crf.enabled: [3]}}", "when crf.enabled = 3"),
        ("{float: [0.1, 1], when: {train.learning_rate: [0.5]}}", "depends on itself"),
        ("{float: [0.1, 1], step: -1}", "step a number above 0"),
        ("{float: [0.1, 1], step: .nan}", "step a number above 0"),
        ("{float: [0.1, 1], step: 1e-300}", "step a number above 0"),
        ("{float: [0.1, 1], step: 1.0e-300}", "makes more than 1000000 values"),
        ("{float: [0.1, .inf]}", "inf must be number"),
        ("{float: [0.1, 1], float: [0.2, 1]}", "key 'float' stands twice in line 3"),
        ("{flaot: [0.1, 1]}", "did you mean 'float'?"),
        ("{float: [0.1, 1], lgo: true}", "unknown option 'lgo'; did you mean 'log'?"),
        ("{float: [0.1, 1], 1: 2}", "unknown option 1"),
    ],
)
def test_distributions_that_make_no_sense_are_refused(tmp_path: Path, entry: str, problem: str) -> None:
    with pytest.raises(SpaceError, match="problem") as caught:
        load(tmp_path, f"method: toy\nkeys:\n  train.learning_rate: {entry}\n")
    assert problem in str(caught.value)


@pytest.mark.parametrize("text", ["", "- 1", "method: toy", "method: toy\nkeys: {}", "keys: {a: 1}", "a: [", "3"])
def test_what_is_no_space_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(SpaceError):
        load(tmp_path, text)


def test_keys_are_ordered_so_that_conditions_come_first(tmp_path: Path) -> None:
    space = load(
        tmp_path,
        """
method: toy
keys:
  crf.rgb_std: {float: [1, 9], when: {crf.iterations: [10]}}
  crf.iterations: {int: [1, 20], when: {crf.enabled: [true]}}
  crf.enabled: {categorical: [true, false]}
""",
    )
    assert [key.key for key in space.keys] == ["crf.enabled", "crf.iterations", "crf.rgb_std"]


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    def missing() -> Any:
        return load_space(tmp_path / "none.yaml", Recipe())

    with pytest.raises(SpaceError, match=r"none\.yaml"):
        missing()
