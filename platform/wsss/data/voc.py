"""The VOC layout of folders, lists and masks, which full VOC 2012, smaller and generated sets share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from wsss.data.config import DatasetConfig
from wsss.data.errors import Problem
from wsss.data.labels import ImageLabels, labels_from_annotations, labels_from_masks, read_label_file
from wsss.data.layout import IGNORE_INDEX, Contents, Place, Progress, existing_path, png_file, root_problem
from wsss.data.lists import first_of, list_file, read_list

_OBJECTS = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow "
    "diningtable dog horse motorbike person pottedplant sheep sofa train tvmonitor"
)
VOC_CLASSES = ("background", *_OBJECTS.split())
# Images per list of the full VOC 2012, train_aug with the SBD images.
VOC_COUNTS = {"train": 1464, "train_aug": 10582, "val": 1449, "test": 1456}

IMAGES = "JPEGImages"
MASKS = "SegmentationClass"
AUG_MASKS = "SegmentationClassAug"
ANNOTATIONS = "Annotations"
LISTS = Path("ImageSets") / "Segmentation"
LABEL_FILES = ("image_labels.json", "image_labels.txt")

# Our name of a list -> file names that it goes by; the first that exists is taken.
LIST_FILES = {"train": ("train",), "train_aug": ("train_aug", "trainaug"), "val": ("val",), "test": ("test",)}
REQUIRED_LISTS = ("train", "val")


@dataclass(frozen=True)
class VocLayout:
    """Folders below `root` as in VOC 2012; a `Layout`."""

    root: Path

    @property
    def mask_provenance(self) -> str:
        """Masks are always given."""
        official, aug = (self.root / MASKS).is_dir(), (self.root / AUG_MASKS).is_dir()
        if official and aug:
            return f"given: {MASKS}; of train_aug {AUG_MASKS}"
        return f"given: {AUG_MASKS if aug else MASKS}"

    def images(self) -> Place:
        """JPEGImages/<name>.jpg."""
        return Place(self.root / IMAGES, _jpg)

    def masks(self, list_name: str | None) -> tuple[Place, ...]:
        """train_aug: SegmentationClassAug, then SegmentationClass. Other lists: SegmentationClass alone when it
        exists, so that numbers are never made on the SBD masks, which lack the ignore border, by accident.
        """
        official, aug = (Place(self.root / folder, png_file) for folder in (MASKS, AUG_MASKS))
        order = (aug, official) if list_name == "train_aug" else (official, aug)
        present = tuple(place for place in order if place.folder.is_dir()) or (official,)
        return present if list_name in ("train_aug", None) else present[:1]

    def forbidden(self) -> tuple[Path, ...]:
        """Both mask folders."""
        return (self.root / MASKS, self.root / AUG_MASKS)

    def prepare_masks(self, names: Iterable[str], progress: Progress | None = None) -> None:
        """Nothing to make: masks are given."""

    def size(self, name: str) -> tuple[int, int] | None:
        """None: no annotation states sizes."""
        return None

    def list_remedy(self, list_name: str) -> str:
        """The file to create, and the setting that names another."""
        if list_name not in LIST_FILES:
            return ""
        other = "" if list_name == "test" else f" or set dataset.{list_name}_list"
        return f"create {LISTS / list_name}.txt{other}"

    def belongings(self) -> Mapping[str, Path]:
        """Pictures, masks, annotations, lists and label files."""
        return {
            name: self.root / name for name in (IMAGES, MASKS, AUG_MASKS, ANNOTATIONS, LISTS.parts[0], *LABEL_FILES)
        }


def _jpg(name: str) -> str:
    return f"{name}.jpg"


def read_voc(config: DatasetConfig, root: Path, classes: tuple[str, ...], cache: Path) -> Contents | Problem:
    """Lists and image-level labels of a folder; the problem where it is no such folder at all."""
    remedy = (
        "set dataset.root to a folder in the VOC layout, or run `wsss data fetch voc2012`; "
        "dataset.name=shapes needs no data"
    )
    if problem := root_problem(root, (IMAGES,), (root / "VOC2012", root / "VOCdevkit" / "VOC2012"), remedy):
        return problem
    problems: list[Problem] = []
    lists: dict[str, tuple[str, ...]] = {}
    overrides = {"train": config.train_list, "train_aug": config.train_aug_list, "val": config.val_list}
    for list_name, usual in LIST_FILES.items():
        override = overrides.get(list_name)
        paths = [list_file(root, LISTS, name) for name in ([override] if override else usual)]
        path = next((path for path in paths if override or path.is_file()), paths[0])
        if not (override or path.is_file() or list_name in REQUIRED_LISTS):
            continue
        names, found = read_list(path)
        problems += [*found, *_integer_ids(root, names, path)]
        if names:
            lists[list_name] = names
    labels, source, provenance, found = _image_labels(config, root, classes, lists, cache)
    return Contents(VocLayout(root), lists, labels, source, provenance, (*problems, *found))


def _integer_ids(root: Path, names: Iterable[str], path: Path) -> list[Problem]:
    """Numbers that stand for names of VOC, whose underscore is lost; not where pictures have such names."""
    found = []
    for name in names:
        if re.fullmatch(r"20[01]\d{7}", name) and not (root / IMAGES / _jpg(name)).is_file():
            right = f"{name[:4]}_{name[4:]}"
            if (root / IMAGES / _jpg(right)).is_file():
                what = f"{name} is a number; the name of the image is {right}"
                found.append(("numbers instead of names", Problem(what, str(path), f"write {right}")))
    return first_of(found, path)


def _image_labels(
    config: DatasetConfig, root: Path, classes: tuple[str, ...], lists: Mapping[str, tuple[str, ...]], cache: Path
) -> tuple[ImageLabels, str, str, list[Problem]]:
    """Labels, kind of source, source in words, problems."""
    names = sorted({name for list_name, members in lists.items() if list_name != "test" for name in members})
    source = config.image_label_source
    path = config.image_label_file
    if source == "auto" and path is None:
        path = next((root / name for name in LABEL_FILES if (root / name).is_file()), None)
    if path is not None and source in ("auto", "official"):
        labels, problems = read_label_file(path, classes)
        kind = "generated" if config.name == "shapes" and config.image_label_file is None else "file"
        return {name: labels[name] for name in names if name in labels}, kind, f"{kind}: {path.name}", problems
    if source == "xml" or (source == "auto" and (root / ANNOTATIONS).is_dir()):
        labels, problems = labels_from_annotations(root / ANNOTATIONS, names, classes, cache)
        return labels, "xml", "objects in the VOC annotations, difficult ones included", problems
    places = VocLayout(root).masks(None)
    paths = {name: existing_path(places, name) for name in names}
    labels, problems = labels_from_masks(paths, len(classes), IGNORE_INDEX, cache)
    return labels, "masks", "classes present in the masks", problems
