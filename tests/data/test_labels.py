import json

import numpy as np
import pytest

from wsss.data.labels import labels_from_annotations, labels_from_masks, read_label_file
from wsss.data.palette import write_palette_mask
from wsss.data.voc import VOC_CLASSES


def test_text_labels(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("# made by hand\n2007_000032 person aeroplane person\n\n2007_000033\n")
    labels, problems = read_label_file(path, VOC_CLASSES)
    assert labels == {"2007_000032": (1, 15), "2007_000033": ()}
    assert problems == []


def test_every_bad_line_is_reported_with_its_number(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("a cat\nb caat\nc,dog\na dog\nJPEGImages/d.jpg dog\ne background\n")
    labels, problems = read_label_file(path, VOC_CLASSES)
    assert labels["a"] == (8,)
    found = [(problem.where.rpartition(", ")[2], problem.what) for problem in problems]
    assert [line for line, _ in found] == ["line 2", "line 3", "line 4", "line 5", "line 6"]
    assert "unknown class 'caat'" in found[0][1]
    assert "'cat'" in problems[0].remedy
    assert "malformed" in found[1][1]
    assert "second line" in found[2][1]
    assert "malformed" in found[3][1]
    assert "unknown class 'background'" in found[4][1]


def test_json_labels(tmp_path):
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({"a": ["dog", "cat"], "b": "dog", "c": ["bus", "tram"]}))
    labels, problems = read_label_file(path, VOC_CLASSES)
    assert labels == {"a": (8, 12), "c": (6,)}
    assert ["image b" in str(problems[0]), "'tram'" in str(problems[1]), len(problems)] == [True, True, 2]
    path.write_text("[1, 2")
    assert "not valid JSON" in read_label_file(path, VOC_CLASSES)[1][0].what
    path.write_text("[1, 2]")
    assert "no object" in read_label_file(path, VOC_CLASSES)[1][0].what


@pytest.mark.parametrize("suffix", [".npy", ".pkl", ".pt"])
def test_pickles_are_refused_unread(tmp_path, suffix):
    path = tmp_path / f"cls_labels{suffix}"  # does not even exist: nothing opens it
    labels, problems = read_label_file(path, VOC_CLASSES)
    assert labels == {}
    assert "never loaded" in problems[0].what
    assert "convert it once" in problems[0].remedy


def test_annotations_count_difficult_objects_but_not_parts(tmp_path):
    (tmp_path / "a.xml").write_text(
        "<annotation><object><name>person</name><part><name>head</name></part></object>"
        "<object><name>dog</name><difficult>1</difficult></object></annotation>"
    )
    (tmp_path / "b.xml").write_text("<annotation><object>")
    (tmp_path / "c.xml").write_text("<annotation><object><name>unicorn</name></object></annotation>")
    labels, problems = labels_from_annotations(tmp_path, ["a", "b", "c", "d"], VOC_CLASSES, None)
    assert labels == {"a": (12, 15), "c": ()}
    text = "\n".join(str(problem) for problem in problems)
    assert "b.xml" in text
    assert "d.xml: the file is missing" in text
    assert "unknown class 'unicorn'" in text
    assert len(problems) == 3


def test_labels_from_masks(tmp_path):
    write_palette_mask(tmp_path / "a.png", np.array([[0, 3, 255], [20, 3, 0]], np.uint8))
    write_palette_mask(tmp_path / "b.png", np.array([[0, 77]], np.uint8))
    paths = {name: tmp_path / f"{name}.png" for name in "abc"}
    labels, problems = labels_from_masks(paths, 21, 255, None)
    assert labels == {"a": (3, 20)}
    text = "\n".join(str(problem) for problem in problems)
    assert "no class: 77" in text
    assert "c.png" in text


def test_official_labels_of_the_full_voc(shared_data):
    labels, problems = read_label_file(shared_data / "aux" / "voc12_lists" / "image_level_labels.txt", VOC_CLASSES)
    assert problems == []
    assert len(labels) == 12031
    aug = (shared_data / "aux" / "voc12_lists" / "train_aug.txt").read_text().split()
    counts = np.bincount([len(labels[name]) for name in aug])
    # SSC, section Data: images of train_aug by number of classes.
    assert counts.tolist() == [0, 6249, 3104, 969, 210, 46, 4]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_how_the_file_was_saved_makes_no_difference(tmp_path, encoding):
    (tmp_path / "a.txt").write_text("2007_000032 cat \r\n", encoding=encoding)
    (tmp_path / "a.json").write_text('{"2007_000032": ["cat"]}', encoding=encoding)
    for name in ("a.txt", "a.json"):
        assert read_label_file(tmp_path / name, VOC_CLASSES) == ({"2007_000032": (8,)}, [])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '{"a": ["cat"], "a": ["dog"]}', "image a stands twice"),
        ("a.json", "[" * 100_000, "it nests without end"),
        ("a.json", '{"a": ' + "9" * 5000 + "}", "not valid JSON"),
        ("a.json", '{"a": NaN}', "expected a list of class names, found a number"),
        ("a.json", '{"a": [1]}', "found a list with other things"),
        ("a.json", '{"a": {"cat": 1}}', "found an object"),
        ("a.json", '{"a.jpg": ["cat"]}', "it ends with .jpg"),
        ("a.json", '{"' + "x" * 5000 + '": ["cat"]}', "it is too long"),
        ("a.json", '{"a": ["' + "x" * 5000 + '"]}', "(5000 characters)"),
        ("a.txt", "a\\b cat", "it holds a folder"),
        ("a.txt", "a.JPEG cat", "it ends with .JPEG"),
        ("a.txt", "a " + "x" * 5000, "(5000 characters)"),
        ("a.txt", "a cat\0", "NUL"),
    ],
)
def test_what_no_label_file_says(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_text(content)
    problems = read_label_file(path, VOC_CLASSES)[1]
    assert message in str(problems[0]) and len(str(problems[0])) < 600


def test_many_wrong_labels_are_counted(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("".join(f"image{number} nothing\n" for number in range(10_000)))
    labels, problems = read_label_file(path, VOC_CLASSES)
    assert len(labels) == 10_000 and len(problems) == 11 and "9990 further unknown classes" in problems[-1].what
