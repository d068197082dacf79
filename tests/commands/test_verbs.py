"""The verbs of `wsss`, called in this process on a finished run."""

import dataclasses
import importlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.commands.conftest import SMALL, Checkout

from wsss.commands.main import VERBS, main, usage
from wsss.data.dataset import Dataset
from wsss.execution.import_stage import source_digest
from wsss.method import Exporter
from wsss.run_record import RunRecord, find_runs
from wsss.store import Artifact, ArtifactWriter


def wsss(*words: str) -> int:
    return main(list(words))


def test_usage_lists_every_verb_and_every_verb_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert wsss() == 2 and wsss("--help") == 0
    for verb in VERBS:
        assert f"  {verb} " in usage()
        with pytest.raises(SystemExit) as stop:
            wsss(verb, "--help")
        assert stop.value.code == 0
        assert f"wsss {verb}" in capsys.readouterr().out
    assert wsss("tnue") == 2


def test_ls_methods(example: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert wsss("ls") == 0
    assert f"{example}  A centered blob" in capsys.readouterr().out


@pytest.mark.parametrize("width", [60, 200])
def test_ls_method_fits_the_width_and_counts_its_keys(
    example: str, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert wsss("ls", example) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines) <= width
    assert any(line.split() == ["cam", "map", "train", "superpixels"] for line in lines)
    assert any(line.split() == ["cam", "1", "width"] for line in lines)
    assert "standard deviation" not in "".join(lines)


def test_ls_of_a_part_shows_the_stage_and_the_keys_of_that_name(
    example: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert wsss("ls", example, "cam") == 0
    text = capsys.readouterr().out
    assert "stage cam\n" in text and "reads: image_labels, images" in text and "settings: width 0.25" in text
    assert "cam.width = 0.25" in text and "number in (0, 1]" in text and "standard deviation of the blob" in text
    assert "superpixels.segments" not in text
    assert wsss("ls", example, "pseudo_label_score") == 0
    assert "reads: masks" in capsys.readouterr().out
    assert wsss("ls", example, "all") == 0
    text = capsys.readouterr().out
    assert "stage cam_score\n" in text and "superpixels.segments = " in text and "of stage keys" in text


def test_ls_of_an_unknown_part_names_the_nearest(example: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert wsss("ls", example, "cam.widht") == 2
    assert "did you mean 'cam.width'?" in capsys.readouterr().err
    assert wsss("ls", "runs", "cam") == 2
    assert "has no parts" in capsys.readouterr().err


@pytest.mark.usefixtures("finished")
def test_ls_runs_and_store(example: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert wsss("ls", "runs") == 0 and wsss("ls", "store") == 0
    text = capsys.readouterr().out
    assert f"{example}-demo-s0" in text and "finished" in text and "pseudo_label/miou_train " in text
    assert "cam_score" in text and "8 artifacts" in text


@pytest.mark.usefixtures("finished")
def test_plan(example: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert wsss("plan", example, *SMALL) == 0
    assert "Everything is there already" in capsys.readouterr().out


@pytest.mark.usefixtures("finished", "example")
def test_explain_walks_back_to_the_first_stage(checkout: Checkout, capsys: pytest.CaptureFixture[str]) -> None:
    record = find_runs(checkout.home)[0]
    assert wsss("explain", record.run_id, "cam/miou_train") == 0
    text = capsys.readouterr().out
    assert f"cam/miou_train = {record.metrics['cam/miou_train']:.6g}" in text
    upstream = ("superpixels", "cam", "cam_score", "cam_evaluation")
    for stage, key in record.keys.items():
        assert (f"{stage}/{key}" in text) == (stage in upstream)
    assert record.data_digest in text and "commit" in text and "seed 0" in text and "mode fast" in text
    assert wsss("explain", record.run_id, "cam/miou_trian") == 2
    assert "did you mean 'cam/miou_train'?" in capsys.readouterr().err


@pytest.mark.usefixtures("finished", "example")
def test_report_is_written_again_and_into_a_readme(
    checkout: Checkout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = find_runs(checkout.home)[0]
    report = checkout.home / "runs" / record.run_id / "report"
    shutil.rmtree(report)
    readme = tmp_path / "README.md"
    readme.write_text(
        "before\n<!-- table:mini -->\nold\n<!-- /table -->\nafter\n<!-- table:other -->\n<!-- /table -->\n"
    )
    assert wsss("report", record.run_id, "--readme", str(readme), "--block", "mini") == 0
    assert (report / "index.html").is_file()
    text = readme.read_text()
    percent = f"{100 * record.metrics['cam/miou_train']:.2f}"
    assert f"`cam/miou_train` {percent}" in text and "old" not in text
    assert text.startswith("before\n<!-- table:mini -->\n") and text.endswith("<!-- /table -->\n")
    assert wsss("report", record.run_id, "--readme", str(readme), "--block", "paper") == 2
    assert "0 blocks are named 'paper'" in capsys.readouterr().err


def copy_of(checkout: Checkout, record: RunRecord, seed: int, **changes: Any) -> str:
    """Another run of the home that used the same artifacts; the test removes it."""
    name = f"{record.run_id}-copy{seed}"
    dataclasses.replace(record, run_id=name, seed=seed, **changes).save(checkout.home / "runs" / name)
    return name


@pytest.mark.usefixtures("finished", "example")
def test_runs_are_compared_and_the_table_goes_into_a_readme(
    checkout: Checkout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = find_runs(checkout.home)[0]
    wider = {**record.recipe, "cam": {**record.recipe["cam"], "width": 0.5}}
    seed, other, running = (
        copy_of(checkout, record, 1),
        copy_of(checkout, record, 2, recipe=wider, data_digest="that of a run with more stages"),
        copy_of(checkout, record, 3, status="failed"),
    )
    readme = tmp_path / "README.md"
    readme.write_text("<!-- table:variants -->\n<!-- /table -->\n")
    try:
        block = ("--readme", str(readme), "--block", "variants", "--metric", "cam/miou_train")
        assert wsss("compare", record.run_id, seed, other, *block) == 0
        percent = f"{100 * record.metrics['cam/miou_train']:.2f}"
        first, second = [line for line in readme.read_text().splitlines() if line.startswith("| center_prior")]
        assert f"| 0, 1 | {percent} ± 0.00 |" in first
        assert "cam.width=0.5 | 2 |" in second and "(+0.00: +0.00 to +0.00)" in second
        assert "not told apart" in capsys.readouterr().out

        assert wsss("compare", "--dataset", "shapes", "--recipe", "demo") == 2, "all of them change the shipped recipe"
        assert "no finished run of recipe 'demo'" in capsys.readouterr().err
        assert wsss("compare", record.run_id, running) == 2
        assert "the run is failed" in capsys.readouterr().err
        assert wsss("compare", record.run_id, "--metric", "cam/miou_trian") == 2
        assert "did you mean 'cam/miou_train'?" in capsys.readouterr().err
        assert wsss("compare") == 2 and "say which runs" in capsys.readouterr().err
        assert wsss("compare", "--dataset", "voc2012", "--recipe", "paper") == 2
    finally:
        for name in (seed, other, running):
            shutil.rmtree(checkout.home / "runs" / name)


@pytest.mark.usefixtures("finished", "example")
def test_an_unknown_run_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert wsss("report", "19990101") == 2
    assert "there is no run '19990101'" in capsys.readouterr().err


def write_cams(artifact: Artifact, dataset: Dataset, folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    for name in artifact.images():
        np.savez(folder / f"{name}.npz", allow_pickle=False, **artifact.arrays(name))
    return len(artifact.images())


def read_cams(source: Path, dataset: Dataset, names: tuple[str, ...], writer: ArtifactWriter) -> None:
    writer.add_shard(0, {name: dict(np.load(source / f"{name}.npz", allow_pickle=False)) for name in names})


@pytest.fixture
def with_layout(example: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The example method with an official layout of its CAMs."""
    module = importlib.import_module(f"wsss_methods.{example}")
    exporter = Exporter("cam", "one .npz an image", write_cams, read_cams)
    monkeypatch.setattr(module, "METHOD", dataclasses.replace(module.METHOD, exporters={"cam_folder": exporter}))
    return example


@pytest.mark.usefixtures("finished")
def test_export_and_import_round_trip(
    with_layout: str, checkout: Checkout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, store = tmp_path / "cams", str(tmp_path / "store")
    record = find_runs(checkout.home)[0]
    assert wsss("export", record.run_id, "cam", str(folder)) == 0
    assert wsss("export", with_layout, "cam_folder", str(tmp_path / "again"), *SMALL) == 0
    assert source_digest(folder) == source_digest(tmp_path / "again")
    assert len(list(folder.glob("*.npz"))) == 12

    assert wsss("import", with_layout, "cam", str(folder), *SMALL, "--store", store, "--note", "from a friend") == 0
    assert wsss("plan", with_layout, *SMALL, "--store", store) == 0
    text = capsys.readouterr().out
    assert "cached (imported)" in text and "6 of 8 stages to compute" in text
    assert wsss("import", with_layout, "cam", str(folder), *SMALL, "--store", store) == 2
    assert "in the store already (imported)" in capsys.readouterr().err
    assert wsss("rm", "cam/", "--store", store) == 2
    assert wsss("rm", f"cam/{record.keys['cam'][:8]}", "--store", store) == 0
    assert wsss("ls", "store", "--store", store) == 0
    assert "0 artifacts" in capsys.readouterr().out


@pytest.mark.usefixtures("finished")
def test_export_of_what_was_never_computed(
    with_layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert wsss("export", with_layout, "cam", str(tmp_path / "out"), "cam.width=0.9", *SMALL) == 2
    assert "has not been computed" in capsys.readouterr().err
    assert wsss("export", with_layout, "cam_score", str(tmp_path / "out"), *SMALL) == 2
    assert "no official layout" in capsys.readouterr().err


@pytest.mark.usefixtures("home")
def test_data_check_counts_and_finds_what_is_wrong(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    assert wsss("data", "check", "shapes", *SMALL) == 0
    assert "0 errors" in capsys.readouterr().out
    next(home.glob("data/*/SegmentationClass/*.png")).unlink()
    assert wsss("data", "check", "shapes", *SMALL) == 1
    assert "error: " in capsys.readouterr().out
    assert wsss("data", "check", "shapes", "dataset.shapes.trian=1") == 2
    assert wsss("data", "fetch", "coco2015") == 2


@pytest.mark.usefixtures("home")
def test_track_sync_without_leftovers(capsys: pytest.CaptureFixture[str]) -> None:
    assert wsss("track", "sync") == 0
    assert "everything has arrived" in capsys.readouterr().out
