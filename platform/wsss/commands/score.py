"""`wsss score --masks FOLDER [dataset.key=value ...]`: score a folder of label PNGs with the platform's own evaluation.

The PNGs are named as the images, hold class ids (palette or grey) and have the pictures' size, unless an option says
how sizes are brought together. Example: wsss score --masks val_pred dataset.name=voc2012 dataset.root=FOLDER
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsss.commands.arguments import locations
from wsss.commands.data import DataRecipe, Ticker
from wsss.commands.methods import UsageError
from wsss.commands.screen import print_table
from wsss.formatting import count, interval, percent
from wsss.recipe import load_recipe

if TYPE_CHECKING:
    from wsss.data.dataset import Dataset
    from wsss.evaluation.mask_folder import FolderScore, FolderScoreConfig

MEANS = {
    "miou_defined": "mIoU over the classes in the truth or predicted (CAM, pseudo label)",
    "miou_truth": "mIoU over the classes in the truth (segmentation)",
    "pixel_accuracy": "pixel accuracy",
    "mean_accuracy": "mean recall over the classes in the truth",
}


def add_options(options: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    options.add_argument("--masks", metavar="FOLDER", type=Path, required=True, help="folder with <image name>.png")
    options.add_argument(
        "overrides", nargs="*", metavar="dataset.key=value", help="the data set, as in a recipe: dataset.root=FOLDER"
    )
    options.add_argument("--list", default="val", help="list of the data set that is scored (default: %(default)s)")
    options.add_argument(
        "--ignore-to", metavar="CLASS", type=int, help="class that predicted 255 counts as (default: it is an error)"
    )
    options.add_argument(
        "--truth-sizes",
        metavar="HxW,HxW",
        type=parse_sizes,
        default=(),
        help="resize the truth to these sizes (height x width), one after the other, nearest",
    )
    options.add_argument(
        "--size-from",
        choices=("equal", "truth", "prediction"),
        default="equal",
        help="where sizes differ, resize the other one to this one's size, nearest (default: it is an error)",
    )
    options.add_argument(
        "--only-present", action="store_true", help="leave out images that have no PNG (default: it is an error)"
    )
    options.add_argument(
        "--out", metavar="FILE", type=Path, action="append", default=[], help="write .json or .csv; may be repeated"
    )


def run(arguments: argparse.Namespace) -> int:
    """Score, print, write."""
    from wsss.data.dataset import load_dataset
    from wsss.evaluation.mask_folder import FolderScoreConfig, score_folder

    for path in arguments.out:
        if path.suffix not in (".json", ".csv"):
            raise UsageError(f"{path.name!r} is neither .json nor .csv", "--out", "end the file name with one of them")
    dataset = load_dataset(load_recipe(DataRecipe, None, arguments.overrides).dataset, locations(arguments).home)
    if arguments.ignore_to is not None and not 0 <= arguments.ignore_to < dataset.num_classes:
        raise UsageError(f"there is no class {arguments.ignore_to}", "--ignore-to", f"0..{dataset.num_classes - 1}")
    config = FolderScoreConfig(arguments.ignore_to, arguments.truth_sizes, arguments.size_from, arguments.only_present)
    view = dataset.view({"masks"}, arguments.list)
    score = score_folder(view, arguments.masks, config, Ticker("masks"))
    values = description(score, dataset, arguments.masks, arguments.list, config)
    _print(values)
    for path in arguments.out:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".json":
            path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        else:
            _write_csv(path, values)
        print(f"written: {path}")
    return 0


def description(
    score: FolderScore, dataset: Dataset, folder: Path, list_name: str, config: FolderScoreConfig
) -> dict[str, Any]:
    """Plain values: the numbers (fractions), and all that they rest on."""
    from wsss.tracking.provenance import collect_provenance

    return {
        "masks": str(folder.resolve()),
        "dataset": dataset.name,
        "list": list_name,
        "images": len(score.images),
        "images_in_list": len(dataset.names(list_name)),
        "truth": dataset.files.mask_provenance,
        "truth_digest": dataset.digest(list_name, {"masks"}),
        "sizes": config.in_words(),
        "predicted_ignore_counts_as": None if config.ignore_to is None else dataset.classes[config.ignore_to],
        "metrics": score.metrics(),
        "per_class": score.per_class(),
        "code": collect_provenance().as_dict(),
    }


def parse_sizes(text: str) -> tuple[tuple[int, int], ...]:
    """`480x480,274x274` as ((480, 480), (274, 274)), height first; an ArgumentTypeError otherwise."""
    sizes = []
    for part in text.split(","):
        match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", part.strip())
        if match is None:
            raise argparse.ArgumentTypeError(f"{part!r} is no size such as 480x480 (height x width)")
        sizes.append((int(match[1]), int(match[2])))
    return tuple(sizes)


def _print(values: dict[str, Any]) -> None:
    metrics = values["metrics"]
    rows = [
        (row["class"], percent(row["iou"]), row["truth_pixels"], row["predicted_pixels"])
        for row in values["per_class"]
        if row["truth_pixels"] or row["predicted_pixels"]
    ]
    absent = len(values["per_class"]) - len(rows)
    print_table("IoU by class", ["class", "IoU", "truth pixels", "predicted pixels"], rows, right="IoU pixels")
    if absent:
        print(f"{absent} further classes are neither in the truth nor predicted")
    print()
    intervals = {
        name: interval(metrics[name + "_low"], metrics[name + "_high"]) for name in MEANS if f"{name}_low" in metrics
    }
    numbers = [(words, percent(metrics[name]), intervals.get(name, "")) for name, words in MEANS.items()]
    print_table("Scores", ["number", "percent", "95 % interval over images"], numbers, right="percent")
    left_out = values["images_in_list"] - values["images"]
    print(
        f"\n{count(values['images'], 'image')} of {values['dataset']} {values['list']}"
        + (f", {left_out} without a PNG left out" if left_out else "")
        + f"; {values['sizes']}; truth {values['truth']}"
    )
    if values["predicted_ignore_counts_as"] is not None:
        print(f"predicted 255 counts as {values['predicted_ignore_counts_as']}")


def _write_csv(path: Path, values: dict[str, Any]) -> None:
    """Two columns: the scores, the number of images, and `iou/<class>` for every class (empty where undefined)."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("number", "value"))
        writer.writerows(values["metrics"].items())
        writer.writerow(("images", values["images"]))
        writer.writerows((f"iou/{row['class']}", row["iou"]) for row in values["per_class"])
