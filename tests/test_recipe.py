"""Recipes: types, ranges, overrides, and errors that name everything at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from wsss.recipe import RecipeError, flat_dict, key_values, load_recipe, setting, settings_of, to_dict


@dataclass(frozen=True)
class Crf:
    iterations: int = setting(10, minimum=1, maximum=20)
    bilateral_rgb_std: float = setting(5.0, above=0.0, maximum=100.0)


@dataclass(frozen=True)
class Train:
    learning_rate: float = setting(0.1, above=0.0)
    crop_size: int = setting(64, minimum=16, multiple_of=16)
    scales: tuple[float, ...] = setting((1.0, 0.5), above=0.0, maximum=4.0)
    backbone: str = setting("resnet50", choices=("resnet50", "mobilenet_v2"))
    weights: Path | None = setting(None, in_key=False)
    low: float = setting(0.1)
    high: float = setting(0.3)

    def check(self) -> list[str]:
        return ["low must be below train.high"] if self.low >= self.high else []


@dataclass(frozen=True)
class Recipe:
    train: Train = Train()
    crf: Crf = Crf()
    seed: int = setting(0, minimum=0)


def test_values_come_from_defaults_then_file_then_overrides(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("train:\n  learning_rate: 1e-3\n  crop_size: 32\ncrf.iterations: 4\n")
    recipe = load_recipe(Recipe, path, ["train.crop_size=48", "train.scales=[1, 2]"])
    assert recipe.train.learning_rate == 1e-3  # YAML 1.1 reads this as text
    assert recipe.train.crop_size == 48
    assert recipe.train.scales == (1.0, 2.0)
    assert recipe.crf.iterations == 4
    assert recipe.crf.bilateral_rgb_std == 5.0


def test_every_problem_is_reported_at_once_with_the_nearest_key(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        "train:\n  learning_rte: 0.1\n  crop_size: 50\n  backbone: resnet5\nseed: -1\ncrf:\n  iterations: ten\n"
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe(Recipe, path, ["crf.bilateral_rgb_std=0", "iterations=3", "nonsense"])
    text = str(caught.value)
    assert len(caught.value.problems) == 8
    for part in (
        "unknown key 'train.learning_rte' in bad.yaml; did you mean 'train.learning_rate'?",
        "a multiple of 16",
        "did you mean 'resnet50'?",
        "seed = -1",
        "crf.iterations = 'ten'",
        "crf.bilateral_rgb_std = 0",
        "did you mean 'crf.iterations'?",
        "'nonsense' is not of the form key=value",
        str(path),
    ):
        assert part in text, part


@pytest.mark.parametrize("value", ["nan", ".inf", "true", "null", "[1]"])
def test_a_number_must_be_a_finite_number(value: str) -> None:
    with pytest.raises(RecipeError):
        load_recipe(Recipe, None, [f"train.learning_rate={value}"])


def test_relations_between_keys_are_checked() -> None:
    with pytest.raises(RecipeError, match=r"train\.low must be below"):
        load_recipe(Recipe, None, ["train.low=0.5"])


def test_missing_file_and_broken_yaml_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"absent\.yaml"):
        load_recipe(Recipe, tmp_path / "absent.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("train: [")
    with pytest.raises(RecipeError, match=r"broken\.yaml"):
        load_recipe(Recipe, broken)


def test_round_trip_and_key_values(tmp_path: Path) -> None:
    recipe = load_recipe(Recipe, None, ["train.weights=w.pth", "train.crop_size=32"])
    assert recipe.train.weights == Path("w.pth")
    assert "weights" in to_dict(recipe)["train"]
    assert "weights" not in key_values(recipe)["train"]
    assert key_values(recipe)["train"]["crop_size"] == 32
    assert set(flat_dict(recipe)) == set(settings_of(Recipe))
    assert "train.crop_size" in settings_of(Recipe)
    assert settings_of(Recipe)["train.crop_size"].describe() == "integer in [16, inf), a multiple of 16"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nseed: 2\n", "key 'seed' stands in line 1 and again in line 2"),
        ("train: {low: 0.2}\ntrain.low: 0.2\n", "'train.low' stands twice in r.yaml"),
        ("train: 5\n", "unknown key 'train' in r.yaml: it is a section; write the keys below it, such as train.learn"),
        ("train: {learning_rate: [1, 2]}\n", "must be number"),
        ("train: {learning_rate: 1e400}\n", "must be number in"),
        ("train: {low: " + "9" * 350 + "}\n", "is beyond all numbers"),
        ("seed: 9223372036854775808\n", "must be integer"),
        ("train: {weights: ''}\n", "must be a path"),
        ("train: {weights: '~nobody-is-called-so/w.pth'}\n", "home directory"),
        ('train: {weights: "a\\0b"}\n', "cannot hold NUL"),
        ("train: {weights: " + "x" * 5000 + "}\n", "the path is too long"),
        ("yes: 1\n", "key 'True' is read as bool"),
    ],
)
def test_what_a_file_cannot_say(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(Recipe, path)
    assert message in str(caught.value) and caught.value.where == str(path)
    assert max(map(len, str(caught.value).splitlines())) < 400


def test_a_section_whose_keys_are_all_commented_out_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("train:\n#  learning_rate: 1\ncrf:\n  iterations: 3\n")
    assert load_recipe(Recipe, path) == load_recipe(Recipe, None, ["crf.iterations=3"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.weights=/data/run #1"], "takes all after # for a comment"),
        (["train.crop_size=032"], "could be another number"),
        (["x" * 5000 + "=1"], "(5000 characters)"),
        (["train=1"], "it is a section"),
        (["train.weights=["], "is not valid YAML"),
    ],
)
def test_what_the_command_line_cannot_say(overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(Recipe, None, overrides)
    assert message in str(caught.value) and caught.value.where == "command line"
    assert load_recipe(Recipe, None, ["seed=1", "seed=1"]).seed == 1


def test_many_problems_are_counted() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(Recipe, None, [f"nothing{number}=1" for number in range(500)])
    assert "500 problems" in str(caught.value) and "... and 480 more" in str(caught.value)


def test_a_later_setting_is_in_no_key_where_nothing_changes() -> None:
    @dataclass(frozen=True)
    class Later:
        rate: float = setting(0.1, above=0.0)
        optimizer: str = setting("sgd", choices=("sgd", "adamw"), key_at_default=False)

    assert key_values(Later()) == {"rate": 0.1}
    assert key_values(Later(optimizer="adamw")) == {"rate": 0.1, "optimizer": "adamw"}
    assert to_dict(Later())["optimizer"] == "sgd"
