import json

import numpy as np
import pytest
from tests.data.coco_set import SIZE, annotation, crowd_runs, edit, square, write_coco

from wsss.data.coco_categories import CLASS_OF_CATEGORY, COCO_CATEGORIES, COCO_CLASSES
from wsss.data.coco_instances import InstancesSummary, semantic_mask, summarize_instances
from wsss.data.errors import DataError


def summary(root, split="train2014") -> InstancesSummary:
    values = summarize_instances(root / "annotations" / f"instances_{split}.json")
    return InstancesSummary.of(json.loads(json.dumps(values)))


def test_categories_have_gaps_and_classes_have_none():
    assert len(COCO_CLASSES) == 81
    assert list(COCO_CATEGORIES) == sorted(COCO_CATEGORIES)
    assert (CLASS_OF_CATEGORY[1], CLASS_OF_CATEGORY[13], CLASS_OF_CATEGORY[90]) == (1, 12, 80)
    assert (COCO_CLASSES[12], COCO_CLASSES[80]) == ("stop sign", "toothbrush")


def test_small_objects_lie_over_large_ones_and_crowds_below_all():
    person, dog, chair = (CLASS_OF_CATEGORY[number] for number in (1, 18, 62))
    mask = semantic_mask(
        [
            annotation(1, 1, 18, square(4, 4, 4), 16.0),
            annotation(2, 1, 1, square(2, 2, 14), 196.0),
            annotation(3, 1, 62, crowd_runs(), 1.0, crowd=1),  # small by its area, and yet below
        ],
        *SIZE,
    )
    assert mask.dtype == np.uint8 and mask.shape == SIZE
    assert (mask[5, 5], mask[3, 3], mask[12, 12], mask[20, 5], mask[20, 20]) == (dog, person, person, chair, 0)
    assert (mask == dog).sum() == 16


def test_of_equal_objects_the_later_is_in_front():
    entries = [annotation(1, 1, 1, square(2, 2, 6), 36.0), annotation(2, 1, 18, square(2, 2, 6), 36.0)]
    assert set(np.unique(semantic_mask(entries, *SIZE))) == {0, CLASS_OF_CATEGORY[18]}
    assert set(np.unique(semantic_mask(entries[::-1], *SIZE))) == {0, CLASS_OF_CATEGORY[1]}


def test_summary_of_a_sound_file(tmp_path):
    found = summary(write_coco(tmp_path / "coco"))
    names = [f"COCO_train2014_{number:012d}" for number in (25, 30, 34, 36)]
    assert list(found.sizes) == names
    assert set(found.sizes.values()) == {SIZE}
    assert found.classes == dict(zip(names, [(1, 17), (80,), (1,), ()], strict=True))
    assert found.problems == ()


def test_every_fault_of_a_file_is_named(tmp_path):
    root = write_coco(tmp_path / "coco")

    def damage(content) -> None:
        content["annotations"][0]["category_id"] = 12
        content["annotations"][1]["image_id"] = 999
        content["annotations"][2]["segmentation"] = [[1, 2, 3]]
        content["annotations"][3]["segmentation"]["size"] = [32, 24]
        content["annotations"][4]["area"] = None
        content["annotations"].append("nothing")
        content["images"][0]["file_name"] = "000000000036.jpg"
        content["images"].append({"id": 5})
        content["images"].append(content["images"][1])
        content["categories"][0]["name"] = "human"
        content["categories"].pop()

    edit(root, "train2014", damage)
    texts = [str(problem) for problem in summary(root).problems]
    for expected in (
        "annotation 1 of COCO_train2014_000000000025: unknown category id 12",
        "annotation 2: image_id 999 is no image",
        "annotation 3 of COCO_train2014_000000000030: a polygon is not",
        "annotation 4 of COCO_train2014_000000000034: the run lengths are of size [32, 24]",
        "annotation 5 of COCO_train2014_000000000034: area is None",
        "an annotation is no object",
        "expected COCO_train2014_000000000036.jpg",
        "an image has no id",
        "image id 34 stands twice",
        "category 1 is 'human' in the file; expected 'person'",
        "category 90 is None in the file; expected 'toothbrush'",
    ):
        assert [text for text in texts if expected in text], (expected, texts)
    assert len(texts) == 11


def test_many_problems_of_a_kind_are_counted(tmp_path):
    root = write_coco(tmp_path / "coco")
    edit(root, "val2014", lambda c: c["annotations"].extend([annotation(1, 1, 1, [], 1.0)] * 250))
    problems = summary(root, "val2014").problems
    assert len(problems) == 101
    assert problems[-1].what == "150 further problems of the kind: image id"


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"{", "not valid JSON"), (b"[]", "no list images, annotations, categories"), (b'{"images": []}', "annotations")],
)
def test_a_file_that_is_no_instances_file(tmp_path, content, expected):
    (tmp_path / "instances_val2014.json").write_bytes(content)
    with pytest.raises(DataError, match=expected):
        summarize_instances(tmp_path / "instances_val2014.json")
    with pytest.raises(DataError, match="cannot be read"):
        summarize_instances(tmp_path / "missing.json")
