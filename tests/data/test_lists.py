"""List files as people bring them: what is unambiguous is read, the rest is named line by line."""

from pathlib import Path

import pytest

from wsss.data.config import DatasetConfig
from wsss.data.dataset import load_dataset
from wsss.data.errors import DataError
from wsss.data.lists import read_list

NAMES = ("2007_000032", "2007_000039", "frame_1.5")


@pytest.mark.parametrize(
    "content",
    [
        "\n".join(NAMES).encode(),
        "\r\n".join(NAMES).encode(),
        "\r".join(NAMES).encode(),
        ("\n".join(NAMES) + "\n\n").encode("utf-8-sig"),
        "\n".join(f"  {name}\t" for name in NAMES).encode(),
        "\r\n".join(NAMES).encode("utf-16"),
    ],
)
def test_how_the_file_was_saved_makes_no_difference(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "train.txt"
    path.write_bytes(content)
    assert read_list(path) == (NAMES, [])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("a.jpg", "it ends with .jpg"),
        ("a.JPG", "it ends with .JPG"),
        ("a.jpeg", "it ends with .jpeg"),
        ("a.mat", "it ends with .mat"),
        ("JPEGImages/a", "it holds a folder"),
        ("JPEGImages\\a", "it holds a folder"),
        ("a b", "it holds blanks"),
        ("a 1", "it holds blanks"),
        ("a\u200bb", "characters that cannot be seen"),
        ("x" * 5000, "it is too long"),
    ],
)
def test_other_lines_are_malformed(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "train.txt"
    path.write_text(f"2007_000032\n{line}\n", encoding="utf-8")
    names, (problem,) = read_list(path)
    assert names == ("2007_000032",)
    assert reason in problem.what and problem.where == f"{path}, line 2" and len(str(problem)) < 400


def test_many_wrong_lines_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_text("".join(f"{number}.jpg\n" for number in range(10_582)))
    names, problems = read_list(path)
    assert names == () and len(problems) == 11 and problems[-1].what == "10572 further malformed lines"


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"a\0b\n", "NUL"), ("ä".encode("latin-1"), "save it as UTF-8"), (b"", "the list is empty"), (b"\n \n", "empty")],
)
def test_what_is_no_list(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "train.txt"
    path.write_bytes(content)
    assert message in read_list(path)[1][0].what
    assert "it is a folder" in read_list(tmp_path)[1][0].what
    assert "the list is missing" in read_list(tmp_path / "val.txt")[1][0].what


@pytest.mark.parametrize("value", ["x" * 5000, "~nobody-is-called-so/train.txt", "x/" * 3000])
def test_a_list_that_no_file_can_be(voc_root: Path, tmp_path: Path, value: str) -> None:
    with pytest.raises(DataError) as caught:
        load_dataset(DatasetConfig(name="voc2012", root=voc_root, train_list=value), tmp_path)
    assert "the list" in caught.value.what and len(str(caught.value)) < 1000


def test_numbers_instead_of_names_are_told_once_a_line(voc_root: Path, tmp_path: Path) -> None:
    pictures, lists = voc_root / "JPEGImages", voc_root / "ImageSets" / "Segmentation"
    (pictures / "2101_000000.jpg").rename(pictures / "2007_000032.jpg")
    (lists / "train.txt").write_text("2007000032\n")
    config = DatasetConfig(name="voc2012", root=voc_root)
    with pytest.raises(DataError, match="2007000032 is a number; the name of the image is 2007_000032"):
        load_dataset(config, tmp_path)
    (pictures / "2007_000032.jpg").rename(pictures / "2007000032.jpg")  # a data set may have such names
    assert load_dataset(config, tmp_path).names("train") == ("2007000032",)
