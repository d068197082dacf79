import numpy as np
import pytest
from PIL import Image

from wsss.data.errors import DataError
from wsss.data.palette import colorize, voc_palette, write_palette_mask
from wsss.data.reading import read_label_map


def test_palette_holds_the_known_voc_colours():
    palette = voc_palette()
    known = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        2: (0, 128, 0),
        8: (64, 0, 0),
        15: (192, 128, 128),
        20: (0, 64, 128),
        255: (224, 224, 192),
    }
    for index, color in known.items():
        assert tuple(palette[index].tolist()) == color
    assert len({tuple(color) for color in palette.tolist()}) == 256
    assert colorize(np.array([[1]], np.uint8)).tolist() == [[[128, 0, 0]]]


def test_masks_round_trip_with_palette_and_leave_no_temporary_file(tmp_path):
    mask = np.array([[0, 1, 255], [20, 7, 0]], np.uint8)
    write_palette_mask(tmp_path / "a.png", mask)
    np.testing.assert_array_equal(read_label_map(tmp_path / "a.png").values, mask)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P"
        assert (image.getpalette() or [])[3:6] == [128, 0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.png"
    write_palette_mask(path, np.ones((2, 2), np.uint8))
    with pytest.raises(ValueError, match="int64"):
        write_palette_mask(path, np.ones((2, 2), np.int64))
    assert read_label_map(path).values.tolist() == [[1, 1], [1, 1]]


def test_colour_masks_missing_and_damaged_files_are_named(tmp_path):
    Image.new("RGB", (3, 3)).save(tmp_path / "rgb.png")
    with pytest.raises(DataError, match=r"mode RGB[\s\S]*rgb.png[\s\S]*palette PNG"):
        read_label_map(tmp_path / "rgb.png")
    with pytest.raises(DataError, match=r"missing[\s\S]*none.png"):
        read_label_map(tmp_path / "none.png")
    write_palette_mask(tmp_path / "cut.png", np.random.default_rng(0).integers(0, 20, (64, 64), dtype=np.uint8))
    content = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"decoded[\s\S]*cut.png"):
        read_label_map(tmp_path / "cut.png")


def test_official_masks_carry_the_same_palette(shared_data):
    path = next(iter(sorted((shared_data / "voc_mini" / "SegmentationClass").glob("*.png"))))
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.array(image.getpalette())[: 21 * 3].reshape(-1, 3), voc_palette()[:21])
