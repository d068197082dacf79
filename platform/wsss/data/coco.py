"""COCO 2014: pictures in train2014 and val2014, instances in annotations, semantic masks given or made of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from wsss.data.coco_categories import COCO_CLASSES
from wsss.data.coco_instances import IMAGE_NAME, InstancesSummary, summarize_instances
from wsss.data.coco_masks import made_masks_folder, make_masks, split_folder
from wsss.data.config import DatasetConfig
from wsss.data.errors import DataError, Problem
from wsss.data.file_facts import file_facts
from wsss.data.labels import ImageLabels, labels_from_masks, read_label_file
from wsss.data.layout import IGNORE_INDEX, Contents, Place, Progress, existing_path, png_file, root_problem
from wsss.data.lists import list_file, read_list

# Images with at least one annotation: the lists that the field trains and evaluates on.
COCO_COUNTS = {"train": 82081, "val": 40137}

SPLITS = {"train": "train2014", "val": "val2014"}
ANNOTATIONS = "annotations"
LISTS = Path("ImageSets")
ALL_IMAGES = "all"
MASKS = "SegmentationClass"
OFFICIAL_MASKS = "coco_seg_anno"
# In a packed data set: masks that were made where it was packed.
MADE_MASKS = "made_masks"


@dataclass(frozen=True)
class SplitFile:
    """Image name -> `<folder of its split>/<name><suffix>`; a `Place.file`.

    Attributes:
        folders: split ("train2014") -> folder name; a split that is not in it lies in a folder of its own name.
    """

    suffix: str
    folders: tuple[tuple[str, str], ...] = ()

    def __call__(self, name: str) -> str:
        """Path of an image's file below the folder of all splits."""
        match = IMAGE_NAME.fullmatch(name)
        split = match[1] if match else "unknown"
        return f"{dict(self.folders).get(split, split)}/{name}{self.suffix}"


@dataclass(frozen=True)
class CocoLayout:
    """Folders of COCO 2014; a `Layout`.

    Attributes:
        mask_place: where masks are, or will be once they are made.
        made: whether they are made of the instances.
        made_folder: where made masks lie, used or not.
        sizes: split -> image name -> (height, width) by its instances file.
    """

    root: Path
    mask_place: Place
    made: bool
    made_folder: Path
    sizes: Mapping[str, Mapping[str, tuple[int, int]]]

    @property
    def mask_provenance(self) -> str:
        """The given folder, or the rule by which they are made."""
        if self.made:
            return "made from the instances: categories 1..80 by rising id, crowd below, smaller objects above larger"
        return f"given: {self.mask_place.folder.name}"

    def images(self) -> Place:
        """<split>/<name>.jpg."""
        return Place(self.root, SplitFile(".jpg"))

    def masks(self, list_name: str | None) -> tuple[Place, ...]:
        """One place for all lists: given and made masks are never mixed."""
        return (self.mask_place,)

    def forbidden(self) -> tuple[Path, ...]:
        """Given masks, made masks, and the instances from which masks could be made."""
        given = [self.root / MASKS / split for split in SPLITS.values()]
        return (self.root / MASKS, *given, self.root / OFFICIAL_MASKS, self.root / ANNOTATIONS, self.made_folder)

    def prepare_masks(self, names: Iterable[str], progress: Progress | None = None) -> None:
        """Make those that are missing; nothing where masks are given."""
        if not self.made:
            return
        wanted = list(names)
        for split, sizes in self.sizes.items():
            members = [name for name in wanted if name in sizes]
            make_masks(instances_file(self.root, split), sizes, members, self.mask_place.path, progress)

    def size(self, name: str) -> tuple[int, int] | None:
        """As the instances file says."""
        return next((sizes[name] for sizes in self.sizes.values() if name in sizes), None)

    def list_remedy(self, list_name: str) -> str:
        """Lists come from the instances files, or are named."""
        if list_name not in SPLITS:
            return ""
        return f"put instances_{SPLITS[list_name]}.json into {ANNOTATIONS} or set dataset.{list_name}_list"

    def belongings(self) -> Mapping[str, Path]:
        """Pictures, annotations, lists and given masks; also those that were made of these instances."""
        names = (*SPLITS.values(), ANNOTATIONS, LISTS.name, MASKS, OFFICIAL_MASKS)
        given = {name: self.root / name for name in names}
        splits = dict(self.mask_place.file.folders).values() if isinstance(self.mask_place.file, SplitFile) else ()
        made = {f"{MADE_MASKS}/{split}": self.made_folder / split for split in splits if self.made}
        return {**given, **made}


def read_coco(config: DatasetConfig, root: Path, home: Path) -> Contents | Problem:
    """Lists and image-level labels of a folder; the problem where it is no such folder at all.

    Without a list file, a list is what its instances file names: the pictures with at least one annotation, by
    rising id; those without any cannot train a classifier and are left out, as the field does. Image-level labels
    from the instances are the categories of all annotations of a picture, crowd regions included, because the masks
    show them too; a picture with crowd regions alone is therefore labeled and in the lists.
    """
    remedy = "set dataset.root to a folder with train2014, val2014 and annotations, or run `wsss data fetch coco2014`"
    if problem := root_problem(root, tuple(SPLITS.values()), sorted(root.glob("*")), remedy):
        return problem
    files = {split: path for split in SPLITS.values() if (path := instances_file(root, split)).is_file()}
    read = file_facts(files.values(), "coco-instances-1", summarize_instances, home / "cache")
    summaries = {split: InstancesSummary.of(read.facts[path]) for split, path in files.items() if path in read.facts}
    problems = [*read.problems, *(problem for summary in summaries.values() for problem in summary.problems)]
    lists: dict[str, tuple[str, ...]] = {}
    for list_name, override in (("train", config.train_list), ("val", config.val_list)):
        names, found = _list(root, list_name, override, summaries.get(SPLITS[list_name]))
        problems += found
        if names:
            lists[list_name] = names
    layout, found = _layout(config, root, home, summaries)
    problems += found
    labels, source, provenance, found = _image_labels(config, root, home, lists, summaries, layout)
    return Contents(layout, lists, labels, source, provenance, (*problems, *found))


def instances_file(root: Path, split: str) -> Path:
    """annotations/instances_<split>.json."""
    return root / ANNOTATIONS / f"instances_{split}.json"


def label_file(root: Path, split: str) -> Path:
    """annotations/image_labels_<split>.json: image name -> category names, where there are no instances."""
    return root / ANNOTATIONS / f"image_labels_{split}.json"


def _layout(
    config: DatasetConfig, root: Path, home: Path, summaries: Mapping[str, InstancesSummary]
) -> tuple[CocoLayout, list[Problem]]:
    sizes = {split: summary.sizes for split, summary in summaries.items()}
    made_folder = root / MADE_MASKS if (root / MADE_MASKS).is_dir() else made_masks_folder(home)
    build = partial(CocoLayout, root, made_folder=made_folder, sizes=sizes)
    given = _given_masks(root)
    if config.mask_source == "folder" or (config.mask_source == "auto" and given is not None):
        return build(given or Place(root / MASKS, SplitFile(".png")), made=False), []
    folders = tuple((split, split_folder(split, summary.sha256)) for split, summary in summaries.items())
    layout = build(Place(made_folder, SplitFile(".png", folders)), made=True)
    if config.mask_source == "instances" and not summaries:
        remedy = f"put instances_train2014.json and instances_val2014.json there, or masks into {root / MASKS}"
        return layout, [Problem("masks are to be made and there are no instances", str(root / ANNOTATIONS), remedy)]
    return layout, []


def _given_masks(root: Path) -> Place | None:
    """SegmentationClass/<split>/<name>.png, SegmentationClass/<name>.png, or coco_seg_anno/<12 digits>.png."""
    if any((root / MASKS / split).is_dir() for split in SPLITS.values()):
        return Place(root / MASKS, SplitFile(".png"))
    if (root / MASKS).is_dir():
        return Place(root / MASKS, png_file)
    if (root / OFFICIAL_MASKS).is_dir():
        return Place(root / OFFICIAL_MASKS, _mask_by_number)
    return None


def _list(
    root: Path, list_name: str, override: str, summary: InstancesSummary | None
) -> tuple[tuple[str, ...], list[Problem]]:
    """Names of a list; a list file may name pictures by their 12 digits alone."""
    split = SPLITS[list_name]
    if override and override != ALL_IMAGES:
        path = list_file(root, LISTS, override)
        names, problems = read_list(path)
        full = [f"COCO_{split}_{int(name):012d}" if name.isascii() and name.isdigit() else name for name in names]
        problems += [
            Problem(
                f"{name!r} is no name of a COCO 2014 picture",
                str(path),
                f"write names like COCO_{split}_000000000025, or their digits alone",
            )
            for name in full
            if not IMAGE_NAME.fullmatch(name)
        ]
        return tuple(dict.fromkeys(name for name in full if IMAGE_NAME.fullmatch(name))), problems
    if summary is not None:
        return tuple(name for name in summary.sizes if override == ALL_IMAGES or summary.classes[name]), []
    try:
        named = json.loads(label_file(root, split).read_bytes())
        return tuple(sorted(name for name, found in named.items() if override == ALL_IMAGES or found)), []
    except FileNotFoundError:
        remedy = f"put the file there, or name a list file with dataset.{list_name}_list"
        return (), [Problem(f"nothing says what the {list_name} list is", str(instances_file(root, split)), remedy)]
    except (OSError, ValueError, AttributeError, RecursionError):
        return (), []  # reading the labels says what is wrong with the file


def _image_labels(
    config: DatasetConfig,
    root: Path,
    home: Path,
    lists: Mapping[str, tuple[str, ...]],
    summaries: Mapping[str, InstancesSummary],
    layout: CocoLayout,
) -> tuple[ImageLabels, str, str, list[Problem]]:
    """Labels, kind of source, source in words, problems."""
    names = sorted(set().union(*lists.values()))
    source, problems = config.image_label_source, []
    files = [config.image_label_file] if config.image_label_file else []
    if not files and source == "auto" and not summaries:
        files = [path for split in SPLITS.values() if (path := label_file(root, split)).is_file()]
    labels: ImageLabels = {}
    if files:
        for path in files:
            found, wrong = read_label_file(path, COCO_CLASSES)
            labels.update(found)
            problems += wrong
        kind, words = "file", f"file: {', '.join(path.name for path in files)}"
    elif source == "instances" or (source == "auto" and summaries):
        for summary in summaries.values():
            labels.update(summary.classes)
        kind, words = "instances", "categories of the instances, crowd regions included"
    else:
        kind, words = "masks", "classes present in the masks"
        try:
            layout.prepare_masks(names)
            paths = {name: existing_path(layout.masks(None), name) for name in names}
            labels, problems = labels_from_masks(paths, len(COCO_CLASSES), IGNORE_INDEX, home / "cache")
        except DataError as error:
            problems = [Problem.of(error)]
    return {name: labels[name] for name in names if name in labels}, kind, words, problems


def _mask_by_number(name: str) -> str:
    return f"{name.rpartition('_')[2]}.png"
