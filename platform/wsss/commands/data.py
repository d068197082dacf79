"""`wsss data check NAME [dataset.key=value ...]`: look at every file, report everything that is wrong at once.
`--saliency FOLDER`: also at a folder of saliency maps.
`wsss data fetch NAME`: download, verify and unpack voc2012 or coco2014; interrupted, it continues.
`wsss data push NAME dataset.root=FOLDER s3://bucket/prefix`: pack it for nodes that share no disk, for recipes with
dataset.root=s3://bucket/prefix; interrupted, it continues, and nothing is uploaded twice.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from wsss.commands.arguments import locations
from wsss.commands.methods import UsageError
from wsss.commands.screen import print_table
from wsss.data.config import DatasetConfig
from wsss.data.errors import DataError
from wsss.formatting import byte_count, count
from wsss.recipe import load_recipe

if TYPE_CHECKING:
    from wsss.data.check import DatasetSummary

FETCHABLE = ("voc2012", "coco2014")


@dataclass(frozen=True)
class DataRecipe:
    """The part of every recipe that says which data are meant, so that overrides read the same everywhere."""

    dataset: DatasetConfig = field(default_factory=DatasetConfig)


def add_options(options: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    options.add_argument("action", choices=("check", "fetch", "push"))
    options.add_argument("name", help="data set: voc2012, coco2014, shapes")
    options.add_argument(
        "overrides",
        nargs="*",
        metavar="dataset.key=value",
        help="as in a recipe, e.g. dataset.root=FOLDER; push: also the address, s3://bucket/prefix",
    )
    options.add_argument("--quick", action="store_true", help="check: headers and sizes, without decoding pixels")
    options.add_argument("--strict", action="store_true", help="check: warnings count as errors for the exit code")
    options.add_argument("--all", action="store_true", help="check: a line for every file, not one for each kind")
    options.add_argument(
        "--saliency",
        type=Path,
        metavar="FOLDER",
        help="check: also a folder of saliency maps, <name>.png, 8-bit grey at the size of the picture, "
        "one for each image of train_aug (train where there is no such list)",
    )
    options.add_argument("--url", help="fetch: another place of the same archive (coco2014: of all archives)")


def run(arguments: argparse.Namespace) -> int:
    """Check, fetch or push."""
    home = locations(arguments).home
    if arguments.action == "fetch":
        return fetch(arguments.name, arguments.url, home)
    addresses = [word for word in arguments.overrides if "=" not in word.partition("://")[0] and "://" in word]
    overrides = [word for word in arguments.overrides if arguments.action != "push" or word not in addresses]
    config = load_recipe(DataRecipe, None, [f"dataset.name={arguments.name}", *overrides]).dataset
    if arguments.action == "push":
        if len(addresses) != 1:
            raise UsageError("one address is needed", "wsss data push", "give it as s3://bucket/prefix")
        return push(config, addresses[0], home)
    return check(config, arguments.quick, home, arguments.saliency, arguments.strict, arguments.all)


def check(
    config: DatasetConfig,
    quick: bool,
    home: Path,
    saliency: Path | None = None,
    strict: bool = False,
    every: bool = False,
) -> int:
    """Print what the data set holds and everything that is wrong with it; 1 if a run could not use it.

    Args:
        saliency: a folder of maps that is checked as well.
        strict: warnings make it 1 too.
        every: a line for every finding; otherwise many of one kind are one line.
    """
    from wsss.data.check import check_dataset, summarize_dataset
    from wsss.data.dataset import assemble_dataset
    from wsss.data.doubts import by_kind
    from wsss.stages.maps_from_folder import in_counts, map_problems

    dataset, _ = assemble_dataset(config, home)
    if dataset is not None:
        with contextlib.suppress(DataError):  # check_dataset says what is wrong
            dataset.prepare_masks(None, Ticker("masks made"))
        _print_summary(summarize_dataset(dataset))
    problems = check_dataset(config, home, quick=quick, progress=Ticker("files"))
    if saliency is not None and dataset is not None:
        image_list = "train_aug" if "train_aug" in dataset.lists else "train"
        found = map_problems("saliency", saliency, dataset, dataset.names(image_list), decode=not quick)
        problems += [problem for _, problem in found]
        print(f"saliency in {saliency}: {in_counts(found)}, of {len(dataset.names(image_list))} in {image_list}\n")
    errors = sum(problem.severity == "error" for problem in problems)
    for problem in problems if every else by_kind(problems):
        print(f"{problem.severity}: {problem}")
    print(f"\n{errors} errors, {len(problems) - errors} warnings")
    return 1 if errors or (strict and problems) else 0


def fetch(name: str, url: str | None, home: Path) -> int:
    """Fetch a data set and say where it lies."""
    from wsss.data.fetch import COCO2014_URL, VOC2012_URL, fetch_coco2014, fetch_voc2012

    if name not in FETCHABLE:
        raise UsageError(f"{name!r} cannot be fetched", "wsss data fetch", f"one of: {', '.join(FETCHABLE)}")
    if name == "coco2014":
        folder = fetch_coco2014(home, url or COCO2014_URL, progress=Ticker("bytes"))
    else:
        folder = fetch_voc2012(home, url or VOC2012_URL, progress=Ticker("bytes"))
    print(f"{name} is in {folder}; the recipes find it there, or say dataset.root={folder}")
    return 0


def push(config: DatasetConfig, address: str, home: Path) -> int:
    """Pack a data set into an object store, and say how recipes find it there."""
    from wsss.data import packed
    from wsss.data.dataset import load_dataset
    from wsss.data.fetched import packed_files

    if config.name == "shapes":
        raise UsageError("the shapes set is not pushed", "wsss data push", "every node generates it, nothing is needed")
    target = packed_files(address)
    dataset = load_dataset(config, home)
    dataset.prepare_masks(None, Ticker("masks made"))
    pushed = packed.push(dataset.name, dataset.files.belongings(), target, dataset.cache, Ticker("bytes"))
    index = pushed.index
    print(
        f"{dataset.name}: {count(sum(1 for _ in index.files), 'file')}, {byte_count(index.size)}, in "
        f"{count(len(index.packs), 'pack')} in {target.url}; {byte_count(pushed.uploaded_bytes)} uploaded now\n"
        f"recipes find it with dataset.name={dataset.name} dataset.root={target.url}"
    )
    return 0


class Ticker:
    """One changing line on a terminal; nothing in a log."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._last = 0.0

    def __call__(self, done: int, total: int | None) -> None:
        """`done` of `total` is finished; None: nobody knows the total."""
        finished = total is not None and done >= total
        now = time.monotonic()
        if not sys.stderr.isatty() or (now - self._last < 0.5 and not finished):
            return
        self._last = now
        numbers = [byte_count(n) if self._unit == "bytes" else f"{n}" for n in (done, total) if n is not None]
        unit = "" if self._unit == "bytes" else f" {self._unit}"
        print("\r" + " of ".join(numbers) + unit, end="\n" if finished else "", file=sys.stderr, flush=True)


def _print_summary(summary: DatasetSummary) -> None:
    rows = [
        (
            one.name,
            f"{one.images} of {one.full_count}" if one.full_count not in (None, one.images) else one.images,
            one.masks,
            one.labeled,
            ", ".join(f"{name} {count}" for name, count in one.class_counts.items() if count),
        )
        for one in summary.lists
    ]
    columns = ["list", "images", "masks", "labeled", "images with the class"]
    print_table(f"{summary.name} in {summary.root}", columns, rows, right="images masks labeled")
    print(f"image-level labels: {summary.label_provenance}")
    print(f"masks: {summary.mask_provenance}\n")
