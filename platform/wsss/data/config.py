"""The recipe's section that names the data of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from wsss.data.shapes import ShapesConfig
from wsss.recipe import Address, setting

DATASETS = ("voc2012", "coco2014", "shapes")


@dataclass(frozen=True)
class DatasetConfig:
    """Which data a run uses. Paths and lists stay out of keys, because the content they name enters them."""

    name: str = setting(
        "shapes",
        choices=DATASETS,
        help="data set; shapes is generated, for demonstrations",
    )
    root: Path | Address | None = setting(
        None,
        in_key=False,
        help="folder in the layout of the data set (VOC: JPEGImages, ImageSets, ...; COCO: train2014, val2014, "
        "annotations), or s3://bucket/prefix of `wsss data push`; none: where `wsss data fetch` puts it",
    )
    train_list: str = setting(
        "",
        in_key=False,
        help="train list: its name in ImageSets/Segmentation (COCO: ImageSets) or its path; empty: train (COCO: "
        "images with an object; `all` takes the others too)",
    )
    train_aug_list: str = setting(
        "", in_key=False, help="the same for train_aug; empty: train_aug or trainaug, if there is one"
    )
    val_list: str = setting("", in_key=False, help="the same as train_list, for val")
    image_label_source: str = setting(
        "auto",
        choices=("auto", "official", "xml", "instances", "masks"),
        help="auto: the label file given, else (VOC) image_labels.json or .txt in the root or annotations (XML), "
        "(COCO) the instances or annotations/image_labels_*.json, else the classes in the masks",
    )
    image_label_file: Path | None = setting(
        None, in_key=False, help="text file of lines `name class class ...`, or JSON name -> class names"
    )
    mask_source: str = setting(
        "auto",
        choices=("auto", "folder", "instances"),
        help="COCO: masks given as a folder (SegmentationClass or coco_seg_anno), or made from the instances; "
        "auto: the folder if there is one",
    )
    shapes: ShapesConfig = field(default_factory=ShapesConfig)

    def check(self) -> list[str]:
        """Relations between keys, for `load_recipe`."""
        problems: list[str] = []
        if self.root is not None and "${" in str(self.root):
            problems.append("root: is a plain path, it cannot refer to another key or to itself")
        if self.image_label_source == "official" and self.image_label_file is None:
            problems.append("image_label_file: is needed with image_label_source = official")
        if self.image_label_file is not None and self.image_label_source in ("xml", "masks", "instances"):
            problems.append(f"image_label_file: would not be used with image_label_source = {self.image_label_source}")
        if self.name == "shapes" and self.root is not None:
            problems.append("root: the shapes set is generated and has no root; name = voc2012 reads a folder")
        coco = self.name == "coco2014"
        if coco and self.train_aug_list:
            problems.append("train_aug_list: COCO has no train_aug list; train_list and val_list name lists")
        if coco and self.image_label_source == "xml":
            problems.append("image_label_source: xml is of VOC; COCO takes instances, official or masks")
        if not coco and self.image_label_source == "instances":
            problems.append(f"image_label_source: instances is of coco2014, not of {self.name}")
        if not coco and self.mask_source == "instances":
            problems.append(f"mask_source: instances is of coco2014; the masks of {self.name} are given")
        return problems
