"""A released model from the command line: imported, scored without what is before it, judged as what it is."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tests.commands.conftest import ROOT, SMALL, Checkout
from tests.contributing import write_example
from torch.nn import functional

import wsss_methods
from wsss.commands.data import DataRecipe
from wsss.commands.reproduce import main
from wsss.data.dataset import load_dataset
from wsss.evaluation.confusion import confusion_matrix, miou
from wsss.ops.cam import thresholded_argmax
from wsss.recipe import load_recipe
from wsss.run_record import find_runs
from wsss.stages.pseudo_label import PseudoLabelConfig

NAME = "center_released"
# The example method, with a file of all CAMs as its released model, and claims on what the demo runs on.
PACKAGE = """
import dataclasses
from pathlib import Path

import numpy as np

from wsss.errors import WsssError
from wsss.method import Exporter, ReleasedCheckpoint
from wsss_methods import center_prior


def unused(artifact, dataset, folder):
    raise AssertionError


def read(path, dataset, names, writer):
    with np.load(path, allow_pickle=False) as content:
        records = {
            name: {"walk": content[name], "keys": content[name + "_keys"]} for name in dataset.lists["train"]
        }
    writer.add_shard(0, records)


def check(path, recipe, dataset):
    try:
        with np.load(path, allow_pickle=False) as content:
            missing = [name for name in dataset.lists["train"] if name not in content]
    except (OSError, ValueError) as error:
        raise WsssError("the file is no archive of CAMs", str(path), "give the released file") from error
    if missing:
        raise WsssError(f"the file has no {missing[0]}", str(path), "give the released file")


METHOD = dataclasses.replace(
    center_prior.METHOD,
    name="center_released",
    folder=Path(__file__).parent,
    exporters={"cam_file": Exporter("cam", "cams.npz", unused, read)},
    released=ReleasedCheckpoint("cam_file", check),
)
"""
CLAIM = """\
  - {{id: {id}, value: {value}, metric: cam/miou_train, dataset: shapes, split: train, protocol: none,
     source: readme, citation: {id}, tolerance: 100, recipe: demo, released: {released}}}
"""


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    root = tmp_path_factory.mktemp("released")
    for folder in ("platform", "methods"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "reproduce.py", root)
    example = write_example(root)
    package = example.with_name(NAME)
    shutil.copytree(example, package)
    (package / "pipeline.py").unlink()
    demo: dict[str, Any] = {"name": "shapes", "shapes": {}}
    for text in SMALL:
        key, _, value = text.removeprefix("dataset.shapes.").partition("=")
        demo["shapes"][key] = int(value)
    (package / "recipes" / "demo.yaml").write_text(yaml.safe_dump({"dataset": demo}))
    (package / "__init__.py").write_text(PACKAGE)
    claims = [CLAIM.format(id=id, value=50, released=flag) for id, flag in (("training", "false"), ("file", "true"))]
    (package / "claims.yaml").write_text("claims:\n" + "".join(claims))
    return Checkout(root, root / "home")


def write_cams(home: Path, path: Path) -> None:
    """A file in the released layout: the true masks as CAMs of the data set that the runs are on."""
    recipe = load_recipe(DataRecipe, None, SMALL)
    view = load_dataset(recipe.dataset, home).view({"masks", "image_labels"}, "train")
    content: dict[str, np.ndarray] = {}
    for name in view.names:
        keys = np.array(view.present_classes(name))
        content[name] = (view.mask(name)[::4, ::4] == keys[:, None, None]).astype(np.float16)
        content[f"{name}_keys"] = keys
    np.savez(path, allow_pickle=False, **content)


def miou_of_quarter_masks(home: Path) -> float:
    """mIoU of the maps of `write_cams` as labels, enlarged four times and cut to the picture."""
    view = load_dataset(load_recipe(DataRecipe, None, SMALL).dataset, home).view({"masks", "image_labels"}, "train")
    threshold = PseudoLabelConfig().sem_seg_bg_thres
    total = np.zeros((view.num_classes, view.num_classes), dtype=np.int64)
    for name in view.names:
        mask, keys = view.mask(name), np.array(view.present_classes(name))
        maps = torch.from_numpy((mask[None, ::4, ::4] == keys[:, None, None]).astype(np.float32))
        large = functional.interpolate(maps[None], scale_factor=4, mode="bilinear", align_corners=False)[0].numpy()
        label = thresholded_argmax(large[:, : mask.shape[0], : mask.shape[1]], keys, threshold)
        total += confusion_matrix(mask, label, view.num_classes)
    return float(miou(total))


@pytest.fixture
def importable(released: Checkout, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    """The methods of the copy in this process too."""
    folder = str(released.root / "methods" / "wsss_methods")
    monkeypatch.setattr(wsss_methods, "__path__", [*wsss_methods.__path__, folder])
    monkeypatch.setenv("WSSS_HOME", str(released.home))
    return released


def test_a_dry_run_imports_nothing(importable: Checkout, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cams(importable.home, tmp_path / "cams.npz")
    before = len(find_runs(importable.home))
    store = ("--store", str(tmp_path / "store"))
    assert main(["--method", NAME, "--from-checkpoint", str(tmp_path / "cams.npz"), "--dry-run", *store]) == 0
    text = capsys.readouterr().out
    assert "released model cams.npz" in text and "7 of 7 stages to compute" in text
    assert len(find_runs(importable.home)) == before and not list(tmp_path.glob("store/cam*"))


def test_a_released_model_is_scored_and_judged_as_one(released: Checkout, tmp_path: Path) -> None:
    checkpoint = tmp_path / "cams.npz"
    write_cams(released.home, checkpoint)
    done = released.reproduce("--method", NAME, "--from-checkpoint", str(checkpoint), "--until", "cam_evaluation")
    assert done.returncode == 0, done.stdout + done.stderr
    text = " ".join(done.stdout[done.stdout.index("Verdict") :].split())
    assert text.count("reproduced") == 1 and "ours is the released model" in text
    assert "was imported" not in text, "that it was imported is what the claim is about, not an obstacle"
    (record,) = find_runs(released.home)
    assert record.checkpoint == str(checkpoint)
    assert [(stage.name, stage.kind, stage.status, stage.imported) for stage in record.stages] == [
        ("cam", "import", "executed", True),
        ("cam_score", "map", "executed", False),
        ("cam_evaluation", "reduce", "executed", False),
    ]
    assert record.metrics["cam/miou_train"] == pytest.approx(miou_of_quarter_masks(released.home), abs=1e-12)
    assert record.protocol["released model"].startswith("cams.npz, sha256 ")
    report = (released.home / "runs" / record.run_id / "report" / "report.md").read_text()
    assert "imported" in report and "cams.npz" in report and "readme, released model" in report


def test_a_wrong_file_is_one_error_before_anything_runs(
    importable: Checkout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong.npz"
    np.savez(wrong, allow_pickle=False, other=np.zeros(3))
    before = len(find_runs(importable.home))
    for name, file, options, code, expected in (
        (NAME, wrong, (), 1, "the file has no 2101_000000"),
        (NAME, tmp_path / "none.npz", (), 1, "does not exist"),
        ("center_prior", wrong, (), 1, "does not say how a released model of it is read"),
        (NAME, wrong, ("--seeds", "0,1"), 2, "one seed, its own"),
    ):
        assert main(["--method", name, "--from-checkpoint", str(file), *options]) == code
        text = capsys.readouterr().err
        assert text.count("error:") == 1 and expected in text
    assert len(find_runs(importable.home)) == before
