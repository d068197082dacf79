"""`wsss import` of maps that are not those of the pictures, and stages that meet such maps in the store."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wsss.commands.arguments import Selection
from wsss.commands.artifacts import place_of
from wsss.commands.main import main
from wsss.commands.methods import find_method
from wsss.data.dataset import Dataset
from wsss.data.palette import voc_palette, write_palette_mask
from wsss.execution.map_stage import shard_of_jobs
from wsss.execution.stage_job import bind_job
from wsss.map_rules import MapError, strided
from wsss.pipeline import stage_keys
from wsss.recipe import load_recipe
from wsss.store import open_store
from wsss.weights import file_digest

SMALL = [
    f"dataset.shapes.{key}={value}" for key, value in (("train", 6), ("train_aug_extra", 2), ("val", 2), ("size", 48))
]


@pytest.fixture
def selection() -> Selection:
    method = find_method("ssc")
    return Selection(method, "demo", load_recipe(method.recipe_type, method.recipe_path("demo"), SMALL))


def write_cams(folder: Path, dataset: Dataset, change: Callable[[dict[str, Any]], Any] = lambda arrays: None) -> None:
    """The converted dictionaries of a list, that of one picture changed."""
    folder.mkdir()
    view = dataset.view({"images", "image_labels"}, "train_aug")
    for number, name in enumerate(view.names):
        size, keys = view.image_size(name), np.array(view.present_classes(name)) - 1
        arrays: dict[str, Any] = {
            "keys": keys,
            "cam": np.full((len(keys), *strided(size, 4)), 0.5, np.float32),
            "high_res": np.full((len(keys), *size), 0.5, np.float32),
        }
        if number == 3:
            change(arrays)
        np.savez(folder / f"{name}.npz", **arrays)


def scaled(factor: float) -> Callable[[dict[str, Any]], None]:
    return lambda arrays: arrays.update(high_res=arrays["high_res"] * np.float32(factor))


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "one-based": (lambda arrays: arrays.update(keys=arrays["keys"] + 1), "are not among the picture's labels"),
    "transposed": (lambda arrays: arrays.update(high_res=arrays["high_res"].swapaxes(1, 2)), "; it is transposed"),
    "padded": (
        lambda arrays: arrays.update(high_res=np.pad(arrays["high_res"], [(0, 0), (0, 9), (0, 9)])),
        "not padded",
    ),
    "NaN": (scaled(np.nan), "not finite"),
    "infinite": (scaled(np.inf), "not finite"),
    "not divided": (scaled(20), "a value of 10, expected at most 1"),
    "levels of bytes": (lambda arrays: arrays.update(cam=(arrays["cam"] * 255).astype(np.uint8)), "cam is uint8"),
    "text": (lambda arrays: arrays.update(cam=np.full(arrays["cam"].shape, "0.5")), "expected real numbers"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_class_maps_that_do_not_fit_are_refused_at_import(
    home: Path, selection: Selection, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    change, message = REFUSED[kind]
    dataset = place_of(selection, "cam", home).dataset
    write_cams(tmp_path / "cam", dataset, change)
    assert main(["import", "ssc", "cam", str(tmp_path / "cam"), "--recipe", "demo", *SMALL]) == 1
    text = capsys.readouterr().err
    name = dataset.lists["train_aug"][3]
    assert message in text and f"picture {name}" in text and "do:" in text and "Traceback" not in text
    assert main(["ls", "store"]) == 0 and "imported" not in capsys.readouterr().out


def test_files_of_other_pictures_are_said_and_missing_ones_counted(
    home: Path, selection: Selection, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, folder = place_of(selection, "cam", home), tmp_path / "cam"
    write_cams(folder, place.dataset)
    names = place.dataset.lists["train_aug"]
    for name in names[:2]:
        (folder / f"{name}.npz").rename(folder / f"other_{name}.npz")
    assert main(["import", "ssc", "cam", str(folder), "--recipe", "demo", *SMALL]) == 1
    text = capsys.readouterr().err
    assert f"2 of 8 images have no file, the first is {names[0]}.npz, then {names[1]}.npz" in text
    for name in names[:2]:
        (folder / f"{name}.npz").write_bytes((folder / f"other_{name}.npz").read_bytes())
    assert main(["import", "ssc", "cam", str(folder), "--recipe", "demo", *SMALL]) == 0
    text = capsys.readouterr().out
    assert f"2 files in {folder} not read, because the list train_aug has no such image: other_{names[0]}.npz" in text


def test_labels_whose_palette_is_another_are_refused_at_import(
    home: Path, selection: Selection, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    view = place_of(selection, "pseudo_label", home).dataset.view({"images", "image_labels"}, "train_aug")
    for name in view.names:
        label = np.zeros(view.image_size(name), np.uint8)
        label[:9] = view.present_classes(name)[0]
        write_palette_mask(tmp_path / f"{name}.png", label)
    path = tmp_path / f"{view.names[5]}.png"
    colors = Image.fromarray(voc_palette()[np.array(Image.open(path))])
    colors.convert("P", palette=Image.Palette.ADAPTIVE).save(path)
    assert main(["import", "ssc", "pseudo_label", str(tmp_path), "--recipe", "demo", *SMALL]) == 1
    text = capsys.readouterr().err
    assert "its palette has VOC's colours in another order" in text and str(path) in text


@pytest.mark.parametrize("stage", ["cam_score", "ir_label", "random_walk"])
def test_stages_refuse_maps_that_lie_in_the_store(home: Path, selection: Selection, tmp_path: Path, stage: str) -> None:
    """A store may be older than the checks of an import, and a walk declares neither pictures nor labels."""
    place = place_of(selection, "cam", home)
    dataset, store = place.dataset, open_store(str(tmp_path / "store"))
    pipeline = selection.method.pipeline(selection.recipe, dataset)
    keys = stage_keys(pipeline, dataset, file_digest)
    name = dataset.lists["train"][0]
    (label, *_), size = dataset.image_labels[name], dataset.view({"images"}, "train").image_size(name)
    wrong = label % (dataset.num_classes - 1) + 1
    while wrong in dataset.image_labels[name]:
        wrong = wrong % (dataset.num_classes - 1) + 1
    arrays = {
        "keys": np.array([wrong]),
        "high_res": np.full((1, *size), 0.5, np.float16),
        "cam": np.full((1, *strided(size, 4)), 0.5, np.float16),
        "edge": np.zeros(strided(size, 4), np.float32),
    }
    artifacts = {}
    for upstream in ("cam", "edge"):
        writer = store.writer(upstream, keys[upstream])
        writer.add_shard(0, {name: arrays})
        artifacts[upstream] = writer.publish({})
    job = bind_job(pipeline.stage(stage), keys[stage], dataset, store, artifacts, "fast")
    (told,) = shard_of_jobs([job], 0, (name,), use_gpu=False)
    assert isinstance(told, MapError), told
    assert f"class ids [{wrong}]: [{wrong}] are not among the picture's labels" in told.what
    assert re.search(rf"cam/{keys['cam']}, picture {name}", told.where) and "wsss rm cam/" in told.remedy
