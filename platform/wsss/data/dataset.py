"""The data set of a run: where its files lie, its lists, its classes and its image-level labels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wsss.data.coco import COCO_COUNTS, read_coco
from wsss.data.coco_categories import COCO_CLASSES
from wsss.data.config import DatasetConfig
from wsss.data.errors import DataError, Problem, raise_problems
from wsss.data.file_facts import file_facts, sha256_of_file
from wsss.data.image_facts import ImageFacts
from wsss.data.layout import IGNORE_INDEX, Layout, Place, Progress, existing_path
from wsss.data.origin import Origin
from wsss.data.shapes import generate_shapes, shape_classes
from wsss.data.told import Told
from wsss.data.view import DataView
from wsss.data.voc import VOC_CLASSES, VOC_COUNTS, VocLayout, read_voc
from wsss.errors import WsssError
from wsss.recipe import Address

_NEEDS = ("images", "image_labels", "masks")

# Images that a list has in the published protocols, by data set.
OFFICIAL_COUNTS: Mapping[str, Mapping[str, int]] = {"voc2012": VOC_COUNTS, "coco2014": COCO_COUNTS}


@dataclass(frozen=True)
class Dataset:
    """A data set; picklable.

    Attributes:
        name: "voc2012", "coco2014" or "shapes".
        root: its folder.
        classes: class names, index 0 the background.
        lists: list name -> image names, in order.
        image_labels: image name -> class ids 1..num_classes-1, ascending; without images of the test list.
        label_source: kind of source of the labels: "file", "xml", "instances", "masks" or "generated".
        label_provenance: the source in words, for the protocol of a number.
        home: folder of caches and of fetched files (`WSSS_HOME`); None: no cache, every digest hashes anew.
        layout: where its files lie; None is the VOC layout below `root`.
        origin: how other machines come by its files.
    """

    name: str
    root: Path
    classes: tuple[str, ...]
    lists: Mapping[str, tuple[str, ...]]
    image_labels: Mapping[str, tuple[int, ...]]
    label_source: str
    label_provenance: str
    home: Path | None = None
    ignore_index: int = IGNORE_INDEX
    layout: Layout | None = None
    origin: Origin | None = None

    @property
    def cache(self) -> Path | None:
        """Folder of remembered file hashes."""
        return None if self.home is None else self.home / "cache"

    @property
    def source(self) -> str:
        """Its folder, or the address of a packed data set; for people."""
        return (self.origin.address if self.origin is not None else "") or str(self.root)

    @property
    def num_classes(self) -> int:
        """Number of classes with the background."""
        return len(self.classes)

    @property
    def files(self) -> Layout:
        """Where its files lie."""
        return self.layout if self.layout is not None else VocLayout(self.root)

    @property
    def mask_folders(self) -> tuple[Path, ...]:
        """Every folder from which masks could be learned, whether it exists or not: what the firewall forbids."""
        return self.files.forbidden()

    def names(self, list_name: str | None) -> tuple[str, ...]:
        """Images of a list; for None those of all lists, sorted. DataError when there is no such list."""
        if list_name is None:
            return tuple(sorted(set().union(*self.lists.values())))
        if list_name not in self.lists:
            remedies = [f"lists there: {', '.join(self.lists)}", self.files.list_remedy(list_name)]
            raise DataError(
                f"there is no list {list_name!r}",
                f"data set {self.name} in {self.root}",
                "; ".join(remedy for remedy in remedies if remedy),
            )
        return self.lists[list_name]

    def image_path(self, name: str) -> Path:
        """The picture's file."""
        return self.files.images().path(name)

    def mask_path(self, name: str, list_name: str | None) -> Path:
        """The mask's file for an image as a member of a list (train_aug of VOC has masks of its own)."""
        return existing_path(self.files.masks(list_name), name)

    def prepare_masks(self, list_name: str | None, progress: Progress | None = None) -> None:
        """Make the masks of a list that are made and not given, as far as they are missing; DataError if it fails."""
        self.files.prepare_masks(self.names(list_name), progress)

    def digest(self, image_list: str | None, reads: Iterable[str]) -> str:
        """Digest (32 hex digits) of the names of a list and of the content of what is read of it, wherever it lies.

        Args:
            image_list: a list; None stands for the images of all lists.
            reads: any of "images", "image_labels", "masks".

        Raises:
            DataError: the list does not exist, or files or labels that are read are missing (all named).
        """
        needs = set(reads)
        if unknown := needs.difference(_NEEDS):
            raise ValueError(f"a stage can read {', '.join(_NEEDS)}; not {', '.join(sorted(unknown))}")
        content = {
            "classes": self.classes,
            "ignore_index": self.ignore_index,
            "names": self.names(image_list),
            **{need: self._digest_of(need, image_list) for need in _NEEDS if need in needs},
        }
        return _digest(content)

    def _digest_of(self, need: str, image_list: str | None) -> str:
        names = self.names(image_list)
        if need == "image_labels":
            missing = [
                Problem(f"image {name} has no image-level label", f"list {image_list}", "add it to the label file")
                for name in names
                if name not in self.image_labels
            ]
            raise_problems(missing, f"data set {self.name}")
            labels = [[name, [self.classes[label] for label in self.image_labels[name]]] for name in names]
            return _digest([self.label_source, labels])
        if need == "masks":
            self.prepare_masks(image_list)
        paths = {
            name: self.image_path(name) if need == "images" else self.mask_path(name, image_list) for name in names
        }
        hashes = file_facts(paths.values(), "sha256", sha256_of_file, self.cache)
        raise_problems(hashes.problems, f"data set {self.name}")
        return _digest([[name, hashes.facts[path]] for name, path in paths.items()])

    def view(self, reads: Iterable[str], list_name: str | None) -> DataView:
        """The list, limited to what is declared ("images", "image_labels", "masks")."""
        needs = frozenset(reads)
        names = self.names(list_name)
        labels = None
        if "image_labels" in needs:
            labels = {name: self.image_labels[name] for name in names if name in self.image_labels}
        if "masks" in needs:
            self.prepare_masks(list_name)
        return DataView(
            dataset=self.name,
            list_name=list_name,
            names=names,
            classes=self.classes,
            reads=needs,
            ignore_index=self.ignore_index,
            images=self._anywhere(self.files.images()) if "images" in needs else None,
            labels=labels,
            masks=tuple(map(self._anywhere, self.files.masks(list_name))) if "masks" in needs else None,
        )

    def image_facts(self, list_name: str | None) -> ImageFacts:
        """Sizes and labels of a list's images, for the checks of maps; no stage is handed them."""
        labels = {name: self.image_labels[name] for name in self.names(list_name) if name in self.image_labels}
        return ImageFacts(self.classes, self.ignore_index, labels, self._anywhere(self.files.images()))

    def _anywhere(self, place: Place) -> Place:
        return replace(place, origin=self.origin)


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
    home = home.absolute()
    classes = {"coco2014": COCO_CLASSES, "voc2012": VOC_CLASSES}.get(config.name) or shape_classes(config.shapes)
    origin = _origin(config, home)
    if isinstance(origin, Problem):
        return None, [origin]
    root = origin.root
    coco = config.name == "coco2014"
    found = read_coco(config, root, home) if coco else read_voc(config, root, classes, home / "cache")
    if isinstance(found, Problem):
        return None, [found]
    dataset = Dataset(
        name=config.name,
        root=root,
        classes=classes,
        lists=found.lists,
        image_labels=found.image_labels,
        label_source=found.label_source,
        label_provenance=found.label_provenance,
        home=home,
        layout=found.layout,
        origin=origin,
    )
    return dataset, list(found.problems)


def _origin(config: DatasetConfig, home: Path) -> Origin | Problem:
    """Where the data set lies on this machine, fetched or generated if need be, and how others come by it."""
    if config.name == "shapes":
        return Origin(generate_shapes(config.shapes, home), home, shapes=config.shapes)
    if not isinstance(config.root, Address):
        usual = home / "data" / {"coco2014": "COCO2014", "voc2012": "VOC2012"}[config.name]
        return Origin((config.root or usual).expanduser().absolute(), home)
    from wsss.data.fetched import fetch_packed

    told = Told("MB of the data set are fetched")
    try:
        found = fetch_packed(config.root, home, progress=lambda done, total: told(done // 10**6, total // 10**6))
    except WsssError as error:
        return Problem.of(error)
    if found.index.dataset != config.name:
        what = f"the packed data set is {found.index.dataset}, not {config.name}"
        return Problem(what, config.root, f"set dataset.name={found.index.dataset}, or give another address")
    return Origin(found.root, home, address=config.root, digest=found.index.digest)


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]
