"""The data set of a run: where its files lie, its lists, its classes and its image-level labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from wsss.data import voc
from wsss.data.errors import DataError, Problem, raise_problems
from wsss.data.labels import ImageLabels, labels_from_annotations, labels_from_masks, read_label_file
from wsss.data.manifest import list_digest
from wsss.data.shapes import ShapesConfig, generate_shapes, shape_classes
from wsss.data.view import DataView
from wsss.recipe import setting

IGNORE_INDEX = 255


@dataclass(frozen=True)
class DatasetConfig:
    """Which data a run uses. Paths and lists stay out of keys, because the content they name enters them."""

    name: str = setting(
        "shapes", choices=("voc2012", "shapes"), help="data set; shapes is generated, for demonstrations"
    )
    root: Path | None = setting(
        None,
        in_key=False,
        help="folder in the VOC layout (JPEGImages, ImageSets, ...); none: where `wsss data fetch` puts it",
    )
    train_list: str = setting(
        "", in_key=False, help="name in ImageSets/Segmentation or path of the train list; empty: train"
    )
    train_aug_list: str = setting(
        "", in_key=False, help="the same for train_aug; empty: train_aug or trainaug, if there is one"
    )
    val_list: str = setting("", in_key=False, help="the same for val; empty: val")
    image_label_source: str = setting(
        "auto",
        choices=("auto", "official", "xml", "masks"),
        help="auto: the label file given, else image_labels.json or .txt in the root, else VOC annotations "
        "(XML), else the classes in the masks",
    )
    image_label_file: Path | None = setting(
        None, in_key=False, help="text file of lines `name class class ...`, or JSON name -> class names"
    )
    shapes: ShapesConfig = field(default_factory=ShapesConfig)

    def check(self) -> list[str]:
        """Relations between keys, for `load_recipe`."""
        problems: list[str] = []
        if self.image_label_source == "official" and self.image_label_file is None:
            problems.append("image_label_file: is needed with image_label_source = official")
        if self.image_label_file is not None and self.image_label_source in ("xml", "masks"):
            problems.append(f"image_label_file: would not be used with image_label_source = {self.image_label_source}")
        if self.name == "shapes" and self.root is not None:
            problems.append("root: the shapes set is generated and has no root; name = voc2012 reads a folder")
        return problems


@dataclass(frozen=True)
class Dataset:
    """A data set in the VOC layout; picklable.

    Attributes:
        name: "voc2012" or "shapes".
        root: its folder.
        classes: class names, index 0 the background.
        lists: list name -> image names, in order.
        image_labels: image name -> class ids 1..num_classes-1, ascending; without images of the test list.
        label_source: kind of source of the labels: "file", "xml", "masks" or "generated".
        label_provenance: the source in words, for the protocol of a number.
        cache: folder for file hashes; None hashes anew at every digest.
    """

    name: str
    root: Path
    classes: tuple[str, ...]
    lists: Mapping[str, tuple[str, ...]]
    image_labels: Mapping[str, tuple[int, ...]]
    label_source: str
    label_provenance: str
    cache: Path | None = None
    ignore_index: int = IGNORE_INDEX

    @property
    def num_classes(self) -> int:
        """Number of classes with the background."""
        return len(self.classes)

    @property
    def mask_folders(self) -> tuple[Path, ...]:
        """Every folder that may hold masks, whether it exists or not: what the firewall forbids."""
        return (self.root / voc.MASKS, self.root / voc.AUG_MASKS)

    def names(self, list_name: str | None) -> tuple[str, ...]:
        """Images of a list; for None those of all lists, sorted. DataError when there is no such list."""
        if list_name is None:
            return tuple(sorted(set().union(*self.lists.values())))
        if list_name not in self.lists:
            remedy = f"lists there: {', '.join(self.lists)}"
            if list_name in voc.LIST_FILES:
                remedy += f"; create {voc.LISTS / (list_name + '.txt')}"
                remedy += f" or set dataset.{list_name}_list" if list_name != "test" else ""
            raise DataError(f"there is no list {list_name!r}", f"data set {self.name} in {self.root}", remedy)
        return self.lists[list_name]

    def image_path(self, name: str) -> Path:
        """The picture's file."""
        return self.root / voc.IMAGES / f"{name}.jpg"

    def mask_path(self, name: str, list_name: str | None) -> Path:
        """The mask's file for an image as a member of a list (train_aug has masks of its own)."""
        return voc.mask_path(voc.mask_folders(self.root, list_name), name)

    def digest(self, image_list: str | None, reads: Iterable[str]) -> str:
        """Digest of the content of what is read of a list; see `wsss.data.manifest.list_digest`."""
        return list_digest(self, image_list, reads)

    def view(self, reads: Iterable[str], list_name: str | None) -> DataView:
        """The list, limited to what is declared ("images", "image_labels", "masks")."""
        needs = frozenset(reads)
        names = self.names(list_name)
        labels = None
        if "image_labels" in needs:
            labels = {name: self.image_labels[name] for name in names if name in self.image_labels}
        return DataView(
            dataset=self.name,
            list_name=list_name,
            names=names,
            classes=self.classes,
            reads=needs,
            ignore_index=self.ignore_index,
            image_folder=self.root / voc.IMAGES if "images" in needs else None,
            labels=labels,
            mask_folders=voc.mask_folders(self.root, list_name) if "masks" in needs else None,
        )


def load_dataset(config: DatasetConfig, home: Path) -> Dataset:
    """The data set of a configuration. Lists and labels are read, pictures are not.

    Args:
        home: folder of caches, of fetched and of generated data.

    Raises:
        DataError: naming everything that keeps the lists and labels from being read.
    """
    dataset, problems = assemble_dataset(config, home)
    raise_problems(problems, f"data set {config.name}")
    assert dataset is not None  # without one there is an error among the problems
    return dataset


def assemble_dataset(config: DatasetConfig, home: Path) -> tuple[Dataset | None, list[Problem]]:
    """The data set as far as it can be read, None when its folder is absent, and what is wrong with it."""
    if config.name == "shapes":
        root, classes = generate_shapes(config.shapes, home), shape_classes(config.shapes)
    else:
        root, classes = config.root or home / "data" / "VOC2012", voc.VOC_CLASSES
    root = root.expanduser().absolute()
    if not (root / voc.IMAGES).is_dir():
        return None, [_missing_root(root)]
    problems: list[Problem] = []
    lists: dict[str, tuple[str, ...]] = {}
    overrides = {"train": config.train_list, "train_aug": config.train_aug_list, "val": config.val_list}
    for list_name in voc.LIST_FILES:
        path = voc.find_list(root, list_name, overrides.get(list_name, ""))
        if path is None and list_name in voc.REQUIRED_LISTS:
            path = root / voc.LISTS / f"{list_name}.txt"
        if path is None:
            continue
        names, found = voc.read_list(path)
        problems += found
        if names:
            lists[list_name] = names
    cache = home / "cache"
    labels, source, provenance, found = _image_labels(config, root, classes, lists, cache)
    problems += found
    return Dataset(config.name, root, classes, lists, labels, source, provenance, cache), problems


def _missing_root(root: Path) -> Problem:
    if not root.is_dir():
        return Problem(
            "the folder of the data set is missing",
            str(root),
            "set dataset.root to a folder in the VOC layout, or run `wsss data fetch voc2012`; "
            "dataset.name=shapes needs no data",
        )
    for candidate in (root / "VOC2012", root / "VOCdevkit" / "VOC2012"):
        if (candidate / voc.IMAGES).is_dir():
            return Problem("the folder is not the data set but holds it", str(root), f"set dataset.root={candidate}")
    return Problem(
        f"there is no folder {voc.IMAGES} in the data set", str(root), "set dataset.root to the folder that holds it"
    )


def _image_labels(
    config: DatasetConfig, root: Path, classes: tuple[str, ...], lists: Mapping[str, tuple[str, ...]], cache: Path
) -> tuple[ImageLabels, str, str, list[Problem]]:
    """Labels, kind of source, source in words, problems."""
    names = sorted({name for list_name, members in lists.items() if list_name != "test" for name in members})
    source = config.image_label_source
    path = config.image_label_file
    if source == "auto" and path is None:
        path = next((root / name for name in voc.LABEL_FILES if (root / name).is_file()), None)
    if path is not None and source in ("auto", "official"):
        labels, problems = read_label_file(path, classes)
        kind = "generated" if config.name == "shapes" and config.image_label_file is None else "file"
        return {name: labels[name] for name in names if name in labels}, kind, f"{kind}: {path.name}", problems
    if source == "xml" or (source == "auto" and (root / voc.ANNOTATIONS).is_dir()):
        labels, problems = labels_from_annotations(root / voc.ANNOTATIONS, names, classes, cache)
        return labels, "xml", "objects in the VOC annotations, difficult ones included", problems
    folders = voc.mask_folders(root, None)
    paths = {name: voc.mask_path(folders, name) for name in names}
    labels, problems = labels_from_masks(paths, len(classes), IGNORE_INDEX, cache)
    return labels, "masks", "classes present in the masks", problems
