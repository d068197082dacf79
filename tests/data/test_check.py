import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile
from tests.data.conftest import SMALL

from wsss.commands.main import main
from wsss.data.check import check_dataset, preflight, summarize_dataset
from wsss.data.config import DatasetConfig
from wsss.data.dataset import Dataset, load_dataset
from wsss.data.errors import DataError
from wsss.data.palette import write_palette_mask
from wsss.data.reading import read_label_map


def test_a_sound_set_has_no_problem(shapes: Dataset):
    seen: list[tuple[int, int]] = []
    assert check_dataset(shapes, progress=lambda done, total: seen.append((done, total))) == []
    assert seen == [(number, 10) for number in range(1, 11)]
    assert check_dataset(shapes, quick=True) == []
    preflight(shapes, ["train", "val"], {"images", "image_labels", "masks"})


def test_every_fault_is_reported_at_once(voc_config, voc_root, tmp_path):
    lists = voc_root / "ImageSets" / "Segmentation"
    images, masks, aug = (voc_root / name for name in ("JPEGImages", "SegmentationClass", "SegmentationClassAug"))
    train = (lists / "train.txt").read_text().split()
    extra = [name for name in (lists / "train_aug.txt").read_text().split() if name not in train]
    val = (lists / "val.txt").read_text().split()

    absent = "2101_999999"
    (lists / "train.txt").write_text("\n".join([*train, train[0], absent, val[0]]) + "\n")
    cut = images / f"{train[0]}.jpg"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    write_palette_mask(masks / f"{train[1]}.png", np.zeros((5, 6), np.uint8))
    wild = read_label_map(masks / f"{train[2]}.png").values
    wild[0, :3] = 77
    write_palette_mask(masks / f"{train[2]}.png", wild)
    Image.open(masks / f"{train[3]}.png").convert("RGB").save(masks / f"{train[3]}.png")
    (masks / f"{train[4]}.png").unlink()
    (aug / f"{extra[0]}.png").write_bytes(b"no picture")
    labels = (voc_root / "image_labels.txt").read_text().splitlines()
    labels = [line for line in labels if not line.startswith(val[1])]
    labels = [f"{val[2]} aeroplain" if line.startswith(val[2]) else line for line in labels]
    (voc_root / "image_labels.txt").write_text("\n".join(labels) + "\n")

    expected = [
        ("train.txt, line 6", f"{train[0]} is also in line 1"),
        ("lists train and val", val[0]),
        (f"{absent}.jpg (list train)", "missing"),
        (f"{cut.name} (list train)", "truncated"),
        (f"{masks.name}/{train[1]}.png (list train)", "5x6"),
        (f"{masks.name}/{train[2]}.png (list train)", "77 in 3 pixels"),
        (f"{masks.name}/{train[3]}.png (list train)", "mode RGB"),
        (f"{masks.name}/{train[4]}.png (list train)", "missing"),
        (f"{masks.name}/{absent}.png (list train)", "missing"),
        (f"{extra[0]}.png (list train_aug)", "cannot be decoded"),
        ("list val", f"{val[1]} has no image-level label"),
        ("image_labels.txt, line", "unknown class 'aeroplain'"),
        ("list train", f"{absent} has no image-level label"),
        ("list train", f"{val[0]} "),
    ]
    problems = check_dataset(voc_config, tmp_path / "home")
    for where, what in expected[:-1]:
        assert [p for p in problems if where in p.where and what in p.what], (where, what)
    assert all(problem.remedy for problem in problems)
    errors = [problem for problem in problems if problem.severity == "error"]
    assert len(errors) == len(expected) - 1
    # The image with the misspelt class is left without any.
    assert [p.what for p in problems if p.severity == "warning"] == [
        f"image {val[2]} has an image-level label without any class"
    ]

    # The quick variant sees all but what needs decoding.
    quick = {problem.where for problem in check_dataset(voc_config, tmp_path / "home", quick=True)}
    full = {problem.where for problem in problems}
    unseen = full - quick
    assert len(unseen) == 2
    assert any(cut.name in where for where in unseen)
    assert any(f"{train[2]}.png" in where for where in unseen)


def test_a_configuration_without_folder_or_lists(tmp_path, voc_config, voc_root):
    problems = check_dataset(DatasetConfig(name="voc2012", root=tmp_path / "nothing"), tmp_path)
    assert [(p.what, p.severity) for p in problems] == [("the folder of the data set is missing", "error")]
    (voc_root / "ImageSets" / "Segmentation" / "train.txt").unlink()
    (voc_root / "ImageSets" / "Segmentation" / "val.txt").write_text("")
    whats = [problem.what for problem in check_dataset(voc_config, tmp_path / "home")]
    assert whats == ["the list is missing", "the list is empty"]
    asked = check_dataset(voc_config, tmp_path / "home", lists=["train_aug", "test"], quick=True)
    assert "there is no list 'test'" in [problem.what for problem in asked]


def test_truncated_files_are_found_even_when_pillow_was_told_to_accept_them(
    voc_config, voc_root, tmp_path, monkeypatch
):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    path = voc_root / "JPEGImages" / "2101_000000.jpg"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    problems = check_dataset(voc_config, tmp_path / "home")
    assert [problem for problem in problems if path.name in problem.where]
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_preflight_looks_at_what_the_run_reads(voc_config, voc_root, tmp_path):
    dataset = load_dataset(voc_config, tmp_path / "home")
    train, val = dataset.names("train"), dataset.names("val")
    (voc_root / "SegmentationClass" / f"{train[0]}.png").unlink()
    write_palette_mask(voc_root / "SegmentationClass" / f"{train[1]}.png", np.zeros((5, 6), np.uint8))
    (voc_root / "JPEGImages" / f"{val[0]}.jpg").unlink()
    preflight(dataset, "train", {"images", "image_labels"})
    preflight(dataset, ["train_aug"], {"images", "masks"})
    for reads in ({"masks"}, {"images", "masks"}):
        with pytest.raises(DataError) as caught:
            preflight(dataset, ["train"], reads)
        assert f"{train[0]}.png" in str(caught.value)
        assert f"{train[1]}.png" in str(caught.value)
        assert "2 problems" in str(caught.value)
    preflight(dataset, ["val"], {"masks", "image_labels"})
    with pytest.raises(DataError, match=rf"missing[\s\S]*{val[0]}\.jpg"):
        preflight(dataset, None, {"images"})
    with pytest.raises(DataError, match="no list 'other'"):
        preflight(dataset, ["other"], set())
    unlabeled = dataclasses.replace(dataset, image_labels={})
    with pytest.raises(DataError, match="3 problems"):
        preflight(unlabeled, "val", {"image_labels"})
    overlapping = dataclasses.replace(dataset, lists={**dataset.lists, "val": train})
    with pytest.raises(DataError, match="both in train and in val"):
        preflight(overlapping, "train", {"image_labels"})


def test_summary(shapes: Dataset):
    summary = summarize_dataset(shapes)
    lists = {entry.name: entry for entry in summary.lists}
    assert [(entry.images, entry.masks, entry.labeled) for entry in lists.values()] == [(5, 5, 5), (7, 7, 7), (3, 3, 3)]
    expected = sum("disc" in [shapes.classes[k] for k in shapes.image_labels[n]] for n in shapes.names("train"))
    assert lists["train"].class_counts["disc"] == expected > 0
    assert set(lists["val"].class_counts) == {"disc", "square", "triangle"}
    assert lists["train"].full_count is None


def test_a_folder_of_saliency_maps_is_checked_as_well(
    shapes: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One missing, two of another size, one in colors, one cut off: all are named, and counted."""
    folder, names = tmp_path / "saliency", shapes.names("train_aug")
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in names:
        size = shapes.view({"images"}, "train_aug").image_size(name)
        Image.fromarray(rng.integers(0, 256, size).astype(np.uint8)).save(folder / f"{name}.png")

    def check(*words: str) -> tuple[int, str]:
        options = [f"dataset.shapes.{key}={value}" for key, value in dataclasses.asdict(SMALL).items()]
        code = main(["data", "check", "shapes", *options, "--saliency", str(folder), *words, "--home", str(tmp_path)])
        return code, capsys.readouterr().out

    code, text = check()
    assert code == 0 and f"saliency in {folder}: nothing wrong, of 7 in train_aug" in text
    (folder / f"{names[0]}.png").unlink()
    for name in names[1:3]:
        Image.new("L", (5, 6)).save(folder / f"{name}.png")
    Image.new("RGB", (48, 48)).save(folder / f"{names[3]}.png")
    cut = folder / f"{names[4]}.png"
    cut.write_bytes(cut.read_bytes()[:600])
    code, text = check()
    counts = "1 missing, 2 of another size, 1 in another mode, 1 unreadable, of 7 in train_aug"
    assert code == 1 and f"saliency in {folder}: {counts}" in text and "5 errors" in text
    for name, what in zip(names, ("missing", "6x5", "6x5", "its mode is RGB, expected L", "truncated"), strict=False):
        assert [line for line in text.splitlines() if f"{name}.png" in line and what in line], (name, text)
    assert "4 errors" in check("--quick")[1]  # headers alone


def test_real_data_is_sound(shared_data, tmp_path):
    config = DatasetConfig(name="voc2012", root=shared_data / "voc_resized")
    assert check_dataset(config, tmp_path) == []
    dataset = load_dataset(DatasetConfig(name="voc2012", root=shared_data / "voc_mini"), tmp_path)
    preflight(dataset, list(dataset.lists), {"images", "image_labels", "masks"})
    (train, *_) = summarize_dataset(dataset).lists
    assert (train.images, train.full_count, train.class_counts["cat"]) == (438, 1464, 131)
