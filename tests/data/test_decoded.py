"""Before the first run on a data set every file is decoded once: what would end a run late is found early."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsss.data import check, told
from wsss.data.check import preflight
from wsss.data.config import DatasetConfig
from wsss.data.dataset import load_dataset
from wsss.data.decoded import picture_contents
from wsss.data.errors import DataError
from wsss.data.palette import write_palette_mask
from wsss.data.reading import read_label_map
from wsss.data.told import Told

ALL = {"images", "image_labels", "masks"}


@pytest.mark.parametrize("kept", [0.3, 0.9])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_picture_that_is_cut_off_is_found_at_an_eighth_of_its_size(
    tmp_path: Path, kept: float, progressive: bool
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (200, 300, 3)).astype(np.uint8)
    path = tmp_path / "picture.jpg"
    Image.fromarray(pixels).save(path, progressive=progressive)
    assert picture_contents(path) == {"size": [200, 300], "oddities": []}
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(DataError, match=r"cannot be decoded: .*truncated[\s\S]*picture\.jpg"):
        picture_contents(path)


def test_the_first_run_decodes_what_it_reads_and_the_second_nothing(
    voc_config: DatasetConfig, voc_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[Path] = []
    for name in ("picture_contents", "mask_contents"):
        read = getattr(check, name)
        monkeypatch.setattr(check, name, lambda path, read=read: decoded.append(path) or read(path))
    dataset = load_dataset(voc_config, tmp_path / "home")
    preflight(dataset, "train", {"images", "image_labels"})
    assert len(decoded) == 5 and {path.parent.name for path in decoded} == {"JPEGImages"}
    preflight(dataset, "train", ALL)
    assert len(decoded) == 10
    preflight(dataset, "train", ALL)
    assert len(decoded) == 10
    # The same content elsewhere is known; a changed file alone is decoded again.
    moved = voc_root.rename(voc_root.with_name("moved"))
    mask = moved / "SegmentationClass" / "2101_000000.png"
    write_palette_mask(
        mask, np.where(read_label_map(mask).values == 255, 0, read_label_map(mask).values).astype(np.uint8)
    )
    preflight(load_dataset(DatasetConfig(name="voc2012", root=moved), tmp_path / "home"), "train", ALL)
    assert decoded[10:] == [mask]


def test_what_ends_a_run_late_is_refused_early_unless_headers_are_enough(
    voc_config: DatasetConfig, voc_root: Path, tmp_path: Path
) -> None:
    picture = voc_root / "JPEGImages" / "2101_000000.jpg"
    picture.write_bytes(picture.read_bytes()[: picture.stat().st_size * 2 // 3])
    for number, value in ((1, 21), (2, 254)):
        path = voc_root / "SegmentationClass" / f"2101_{number:06d}.png"
        mask = read_label_map(path).values.copy()
        mask[0, :3] = value
        write_palette_mask(path, mask)
    dataset = load_dataset(voc_config, tmp_path / "home")
    preflight(dataset, "train", ALL, decode=False)
    for _ in range(2):  # what is damaged is not remembered as sound
        with pytest.raises(DataError) as caught:
            preflight(dataset, "train", ALL)
        text = str(caught.value)
        assert "3 problems" in text and "2101_000000.jpg (list train): the picture cannot be decoded" in text
        assert "no class: 21 in 3 pixels" in text and "no class: 254 in 3 pixels" in text


def test_long_work_says_how_long_it_will_take(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(told.time, "monotonic", lambda: now[0])
    tell = Told("files are read", "a setting leaves it out")
    for done in range(1, 101):
        now[0] += 0.25
        tell(done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "files are read: 20 of 100, about 19.0 s left (a setting leaves it out)",
        "files are read: 40 of 100, about 14.6 s left",
        "files are read: 60 of 100, about 9.8 s left",
        "files are read: 80 of 100, about 4.9 s left",
    ]
