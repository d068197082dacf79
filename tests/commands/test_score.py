"""`wsss score` in this process, on the generated data set."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from tests.commands.conftest import SMALL

from wsss.commands.data import DataRecipe
from wsss.commands.main import main
from wsss.data.dataset import load_dataset
from wsss.data.palette import write_palette_mask
from wsss.recipe import load_recipe


@pytest.fixture
def masks(home: Path, tmp_path: Path) -> Path:
    """The truth of val with 255 as background, of which one row is wrong."""
    folder = tmp_path / "masks"
    folder.mkdir()
    view = load_dataset(load_recipe(DataRecipe, None, SMALL).dataset, home).view({"masks"}, "val")
    for name in view.names:
        mask = np.where(view.mask(name) == 255, 0, view.mask(name)).astype(np.uint8)
        mask[:1] = 1
        write_palette_mask(folder / f"{name}.png", mask)
    return folder


def test_prints_and_writes_the_numbers(masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / "out" / name for name in ("score.json", "score.csv")]
    options = [word for file in files for word in ("--out", str(file))]
    assert main(["score", "--masks", str(masks), *SMALL, *options]) == 0
    text = capsys.readouterr().out
    values = json.loads(files[0].read_text())
    assert (values["dataset"], values["list"], values["images"], values["images_in_list"]) == ("shapes", "val", 2, 2)
    assert values["sizes"] == "at the size of the masks" and values["truth_digest"] and values["code"]
    metrics = values["metrics"]
    assert 0.5 < metrics["miou_defined"] < 1
    assert metrics["miou_truth_low"] <= metrics["miou_truth"] <= metrics["miou_truth_high"]
    for name in ("miou_defined", "miou_truth", "pixel_accuracy"):
        assert f"{100 * metrics[name]:.2f}" in text
    assert "2 images of shapes val; at the size of the masks; truth given" in text
    rows = dict(list(csv.reader(files[1].open()))[1:])
    assert float(rows["miou_truth"]) == metrics["miou_truth"] and rows["images"] == "2"
    assert {name for name in rows if name.startswith("iou/")} == {f"iou/{row['class']}" for row in values["per_class"]}


def test_what_cannot_be_scored_is_one_error(masks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = sorted(masks.iterdir())
    paths[0].unlink()
    words = ["score", "--masks", str(masks), *SMALL]
    assert main(words) == 1
    assert f"{paths[0].name}: the PNG is missing" in capsys.readouterr().err
    assert main([*words, "--only-present"]) == 0
    assert "1 image of shapes val, 1 without a PNG left out" in capsys.readouterr().out
    for options, code, expected in (
        (["--only-present", "--ignore-to", "9"], 2, "there is no class 9"),
        (["--only-present", "--out", "score.txt"], 2, "neither .json nor .csv"),
        (["--list", "test"], 1, "there is no list 'test'"),
        (["--only-present", "--truth-sizes", "20x20"], 1, "the truth 20x20"),
    ):
        assert main([*words, *options]) == code
        assert expected in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*words, "--truth-sizes", "20,20"])
    assert "is no size such as 480x480" in capsys.readouterr().err
    assert main([*words, "--only-present", "--truth-sizes", "20x20", "--size-from", "truth"]) == 0
    assert "truth resized to 20x20 (height x width), then prediction resized" in capsys.readouterr().out
