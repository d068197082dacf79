"""What `wsss data check` says about pictures whose pixels change, doubtful masks and labels, and how it counts."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from wsss.commands.main import main
from wsss.data.check import check_dataset
from wsss.data.config import DatasetConfig
from wsss.data.errors import DataError
from wsss.data.palette import write_palette_mask
from wsss.data.reading import read_image, read_label_map

Pixels = np.ndarray[Any, np.dtype[Any]]


def turned(path: Path, pixels: Pixels) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(path, exif=exif)


def with_profile(name: str) -> Callable[[Path, Pixels], None]:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile(name)).tobytes()  # type: ignore[arg-type]
    return lambda path, pixels: Image.fromarray(pixels).save(path, icc_profile=profile)


def animated(path: Path, pixels: Pixels) -> None:
    Image.fromarray(pixels).save(path, "PNG", save_all=True, append_images=[Image.fromarray(255 - pixels)])


def transparent(path: Path, pixels: Pixels) -> None:
    Image.fromarray(np.dstack([pixels, pixels[..., 0]])).save(path, "PNG")


def deep(path: Path, pixels: Pixels) -> None:
    """16 bits a channel, which Pillow cannot write."""
    import cv2

    path.write_bytes(cv2.imencode(".png", pixels.astype(np.uint16) * 257)[1].tobytes())


ODD: dict[str, tuple[Callable[[Path, Pixels], None], str]] = {
    "EXIF": (turned, "an EXIF tag says to turn it"),
    "profile": (with_profile("LAB"), "its colour profile is not sRGB"),
    "CMYK": (lambda path, pixels: Image.fromarray(pixels).convert("CMYK").save(path), "it is in CMYK"),
    "alpha": (transparent, "it is transparent"),
    "frames": (animated, "it has several frames"),
    "16 bits": (deep, "it has 16 bits a value"),
}


@pytest.mark.parametrize("kind", ODD)
def test_pictures_whose_pixels_change_are_counted(voc_config: DatasetConfig, voc_root: Path, kind: str) -> None:
    write, message = ODD[kind]
    names = [f"2101_{number:06d}" for number in range(4)]
    for name in names:
        path = voc_root / "JPEGImages" / f"{name}.jpg"
        write(path, read_image(path))
    problems = check_dataset(voc_config, voc_root.parent / "home")
    assert [problem.severity for problem in problems] == ["warning"]
    assert f"4 pictures: {message}" in problems[0].what
    assert problems[0].where == f"{', '.join(names[:3])} and 1 more" and problems[0].remedy


def test_usual_pictures_are_nothing_to_look_at(voc_config: DatasetConfig, voc_root: Path) -> None:
    first, second = (voc_root / "JPEGImages" / f"2101_{number:06d}.jpg" for number in (0, 1))
    with_profile("sRGB")(first, read_image(first))
    Image.fromarray(read_image(second)[..., 0]).save(second)
    assert check_dataset(voc_config, voc_root.parent / "home") == []


def test_pictures_that_would_be_cut_off_or_are_no_files_are_refused(
    voc_config: DatasetConfig, voc_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [voc_root / "JPEGImages" / f"2101_{number:06d}.jpg" for number in range(5)]
    mask = voc_root / "SegmentationClass" / "2101_000004.png"
    gray = np.full(read_image(images[0]).shape[:2], 40000, np.uint16)
    Image.fromarray(gray).save(images[0], "PNG")
    with pytest.raises(DataError, match=r"more than 8 bits a value[\s\S]*scale it to 8 bits"):
        read_image(images[0])
    images[1].unlink()
    images[1].mkdir()
    images[2].unlink()
    os.mkfifo(images[2])
    images[3].unlink()
    images[3].symlink_to("/dev/zero")
    with monkeypatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        with pytest.raises(DataError, match=r"too large to be decoded[\s\S]*right file"):
            read_image(images[4])
        with pytest.raises(DataError, match="the mask is too large"):
            read_label_map(mask)
    found = {problem.where: problem.what for problem in check_dataset(voc_config, voc_root.parent / "home")}
    for path, what in zip(images, ("more than 8 bits", "is a folder", "is a pipe", "is a device"), strict=False):
        assert what in found[f"{path} (list train)"]


def test_masks_that_count_for_nothing_or_contradict_the_labels(voc_config: DatasetConfig, voc_root: Path) -> None:
    folder = voc_root / "SegmentationClass"
    masks = {path.stem: read_label_map(path).values for path in sorted(folder.glob("*.png"))}
    void, other, *_ = masks
    write_palette_mask(folder / f"{void}.png", np.full_like(masks[void], 255))
    changed = np.where(masks[other] == 255, 0, np.where(masks[other] > 0, 7, 0)).astype(np.uint8)
    write_palette_mask(folder / f"{other}.png", changed)
    found = [problem.what for problem in check_dataset(voc_config, voc_root.parent / "home")]
    assert found == [
        "1 mask: 255 in every pixel, so that none of them counts",
        "1 mask: it shows a class that is not in the image-level label",
    ]


def test_label_files_that_are_not_used_and_missing_masks_of_sbd(voc_config: DatasetConfig, voc_root: Path) -> None:
    (voc_root / "cls_labels.npy").write_bytes(b"")
    aug = voc_root / "SegmentationClassAug"
    for path in aug.glob("*.png"):
        path.rename(path.with_suffix(".mat"))
    texts = [str(problem) for problem in check_dataset(voc_config, voc_root.parent / "home")]
    assert any(
        "cls_labels.npy: 1 label file not used: labels come from 'file: image_labels.txt'" in text for text in texts
    )
    assert any(
        "2 of 7 images of train_aug have no mask: SegmentationClassAug holds .mat files" in text for text in texts
    )


def run(voc_root: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[str]]:
    home = str(voc_root.parent / "home")
    code = main(["data", "check", "voc2012", f"dataset.root={voc_root}", "--home", home, *words])
    return code, [
        line for line in capsys.readouterr().out.splitlines() if line.startswith(("error", "warning", "0 err"))
    ]


def test_strict_makes_warnings_errors(voc_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(voc_root, capsys, "--strict") == (0, ["0 errors, 0 warnings"])
    turned(voc_root / "JPEGImages" / "2101_000000.jpg", read_image(voc_root / "JPEGImages" / "2101_000000.jpg"))
    assert run(voc_root, capsys)[0] == 0
    code, lines = run(voc_root, capsys, "--strict")
    assert code == 1 and "2101_000000: 1 picture: an EXIF tag" in lines[0] and lines[1] == "0 errors, 1 warnings"


def test_many_of_a_kind_are_one_line(voc_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = voc_root / "ImageSets" / "Segmentation" / "train_aug.txt"
    absent = [f"2007_{number:06d}" for number in range(100)]
    path.write_text(path.read_text() + "\n".join(absent) + "\n")
    code, lines = run(voc_root, capsys)
    assert code == 1 and len(lines) == 4
    for what in ("the picture is missing", "the mask is missing", "has no image-level label"):
        (line,) = [line for line in lines if what in line]
        assert "list train_aug, 100 times: 2007_000000" in line and "and 97 more (--all names them)" in line
    assert len(run(voc_root, capsys, "--all")[1]) == 301
