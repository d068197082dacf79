"""A tiny data set in the layout of COCO 2014, to be read and damaged."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wsss.data.coco_categories import COCO_CATEGORIES

SIZE = (24, 32)
TRAIN, VAL = (25, 30, 34, 36), (42, 73)
EMPTY = 36  # the picture of train without any annotation
CROWD_ONLY = 73


def name_of(split: str, number: int) -> str:
    return f"COCO_{split}_{number:012d}"


def square(x: int, y: int, side: int) -> list[list[float]]:
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def annotation(
    number: int, image: int, category: int, segmentation: Any, area: float, crowd: int = 0
) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "segmentation": segmentation,
        "area": area,
        "iscrowd": crowd,
        "bbox": [0, 0, 1, 1],
    }


def crowd_runs() -> dict[str, Any]:
    """Everything in the first ten columns."""
    height, width = SIZE
    return {"size": list(SIZE), "counts": [0, 10 * height, (width - 10) * height]}


def write_coco(root: Path) -> Path:
    """Four pictures of train (one grey, one without annotation) and two of val (one with a crowd region alone)."""
    rng = np.random.default_rng(0)
    annotations = {
        "train2014": [
            annotation(1, 25, 18, square(4, 4, 8), 64.0),
            annotation(2, 25, 1, square(2, 2, 14), 196.0),
            annotation(3, 30, 90, square(10, 10, 6), 36.0),
            annotation(4, 34, 1, crowd_runs(), 240.0, crowd=1),
            annotation(5, 34, 1, square(20, 3, 5), 25.0),
        ],
        "val2014": [
            annotation(6, 42, 18, square(1, 1, 9), 81.0),
            annotation(7, 73, 62, crowd_runs(), 240.0, crowd=1),
        ],
    }
    (root / "annotations").mkdir(parents=True)
    for split, numbers in (("train2014", TRAIN), ("val2014", VAL)):
        (root / split).mkdir()
        for number in numbers:
            pixels = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
            picture = Image.fromarray(pixels).convert("L" if number == 30 else "RGB")
            picture.save(root / split / f"{name_of(split, number)}.jpg")
        content = {
            "images": [
                {"id": n, "file_name": f"{name_of(split, n)}.jpg", "height": SIZE[0], "width": SIZE[1]}
                for n in reversed(numbers)
            ],
            "annotations": annotations[split],
            "categories": [{"id": number, "name": name} for number, name in COCO_CATEGORIES.items()],
        }
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def edit(root: Path, split: str, change: Any) -> None:
    """Rewrite an instances file after `change(content)`."""
    path = root / "annotations" / f"instances_{split}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
