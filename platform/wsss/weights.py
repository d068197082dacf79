"""The weight files that networks start from: one table, what a recipe asks of it, and their download.

A recipe's section `weights` has one key for each row that its networks may need: a file, `auto` (the row's own file,
downloaded below `WSSS_HOME` when it is needed), `shapes` (a file of `wsss.shapes_weights`) or `none` (random weights).
The content of a file enters the keys of the stages that read it; its path does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsss.data.dataset import Dataset
from wsss.data.errors import DataError
from wsss.data.fetch import Progress, download
from wsss.data.file_facts import file_facts, sha256_of_file
from wsss.errors import WsssError
from wsss.files import locked
from wsss.formatting import byte_count
from wsss.recipe import setting
from wsss.shapes_weights import SHAPES_WEIGHTS, is_shapes_file, shapes_file

AUTO, SHAPES = Path("auto"), Path("shapes")
ROOT_PLACEHOLDER = "${dataset.root}"
TORCHVISION_URL = "https://download.pytorch.org/models"

_RGB = "RGB in [0, 1], minus mean (0.485, 0.456, 0.406), over standard deviation (0.229, 0.224, 0.225)"
_BGR = "BGR in [0, 255], minus mean (104.008, 116.669, 122.675)"


class WeightsError(WsssError):
    """Weight files that a recipe needs are missing, do not fit, or cannot be downloaded."""


@dataclass(frozen=True)
class WeightFile:
    """One row of the table.

    Attributes:
        name: of the row, and of the recipe's key below `weights`.
        file: name of the official file.
        source: who publishes it, in words.
        preprocessing: what its training did to a picture.
        sha256: of its content, 64 hex digits; empty where none is known.
        url: where it is downloaded from; empty: the user gives it.
        megabytes: its size in 10^6 bytes, 0 where unknown.
    """

    name: str
    file: str
    source: str
    preprocessing: str = _RGB
    sha256: str = ""
    url: str = ""
    megabytes: float = 0.0


def _torchvision(model: str, sha256: str, megabytes: float, version: str = "V1", former: str = "") -> WeightFile:
    """torchvision's file of a model; its own downloader checks the digits of the sha256 that stand in the name."""
    name = model.lower()
    file = f"{name}-{sha256[:8]}.pth"
    source = f"torchvision's {model}_Weights.IMAGENET1K_{version}"
    if former:
        source += f" (its former file is {former})"
    row_name = name if version == "V1" else f"{name}_{version.lower()}"
    return WeightFile(row_name, file, source, _RGB, sha256, f"{TORCHVISION_URL}/{file}", megabytes)


_ROWS = (
    _torchvision("ResNet18", "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec", 46.8),
    _torchvision(
        "ResNet50",
        "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
        102.5,
        former="resnet50-19c8e357.pth",
    ),
    _torchvision(
        "ResNet101",
        "63fe2227b86e8f1f2063f43a75c84d195911b6a0eace650907dd3dc62dd49a0a",
        178.8,
        former="resnet101-5d3b4d8f.pth",
    ),
    _torchvision("ResNet101", "cd907fc2a0de2292b2ba2b27d2216bc672d84632d1cf20058d01c0c03b5e020e", 178.8, "V2"),
    _torchvision("VGG16", "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0", 553.4),
    _torchvision("VGG19", "dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44", 574.7),
    _torchvision("MobileNet_V2", "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889", 14.2),
    WeightFile(
        "resnet38",
        "ilsvrc-cls_rna-a1_cls1000_ep-0001.pth",
        "Wide-ResNet-38 of ademxapp converted from MXNet; linked by the README of 1-stage-wseg (Araslanov and Roth). "
        "The .params of ademxapp is read as well",
    ),
    WeightFile(
        "vgg16_20m",
        "vgg16_20M.pth",
        "VGG-16 with fc6 and fc7 as convolutions; linked by the README of 1-stage-wseg (Araslanov and Roth)",
    ),
    WeightFile(
        "resnetv1d101",
        "resnetv1d101_b32x8_imagenet_20210531-6e13bcd3.pth",
        "mmcls (OpenMMLab), as in the instructions of BECO",
    ),
    WeightFile("mit_b2", "mit_b2.pth", "SegFormer (NVlabs), as in the instructions of BECO"),
    WeightFile(
        "spixelnet_bsd",
        "SpixelNet_bsd_ckpt.tar",
        "superpixel_fcn (Yang et al.), trained on the boundaries of BSDS500",
        "RGB in [0, 1], minus mean (0.411, 0.432, 0.45)",
    ),
    WeightFile(
        "deeplabv1_resnet101_coco",
        "deeplabv1_resnet101-coco.pth",
        "DeepLab-v1 of kazuto1011/deeplab-pytorch, trained on COCO with masks: not weakly supervised",
        _BGR,
    ),
)
WEIGHTS: Mapping[str, WeightFile] = {row.name: row for row in _ROWS}


@dataclass(frozen=True)
class WeightUse:
    """One use of a row: the role in the pipeline, and the setting of the network's width, which the file must fit.

    Published files have width 1.
    """

    role: str
    name: str
    width_key: str = ""
    width: float = 1.0


def weight_setting(name: str) -> Any:
    """A recipe's leaf for a row of the table; its type is `Path | None`, its default `none`."""
    row = WEIGHTS[name]
    own = f"auto: download it ({byte_count(1e6 * row.megabytes)})" if row.url else f"auto: WSSS_HOME/weights/{row.file}"
    if name in SHAPES_WEIGHTS:
        own += f"; shapes: trained on generated pictures, for width {SHAPES_WEIGHTS[name]:g}"
    return setting(None, in_key=False, help=f"{row.file}, {row.source}. {own}; none: random weights")


def start_in_words(files: Mapping[str, Path], role: str, published: str = "ImageNet") -> str:
    """What the network of a role starts from, for the protocol; `published`: what made the files of the table."""
    if role not in files:
        return "random weights"
    return "generated pictures" if is_shapes_file(files[role]) else published


def required_weights(
    section: Any, uses: Sequence[WeightUse], dataset: Dataset, other_problems: Sequence[str] = ()
) -> dict[str, Path]:
    """Weight file of each role; a role without an entry starts from random weights.

    A file of `auto` may still have to be downloaded, see `missing_downloads`.

    Args:
        section: the recipe's section `weights`, one `weight_setting` a row and `allow_random`.
        dataset: its root replaces ${dataset.root} at the start of a path; its home holds downloaded files.
        other_problems: of files that are no weights, to be reported with these.

    Raises:
        WeightsError: naming every file that is missing, and for each where to get it and how to give it.
    """
    problems: list[str] = []
    found: dict[str, Path] = {}
    for name in dict.fromkeys(use.name for use in uses):
        users = [use for use in uses if use.name == name]
        given: Path | None = getattr(section, name)
        if given is None and section.allow_random:
            continue
        path, problem = _resolved(WEIGHTS[name], given, dataset)
        if problem:
            problems.append(f"weights.{name} {problem} (for {' and '.join(use.role for use in users)})")
        for use in users if not problem else ():
            fits = SHAPES_WEIGHTS[name] if given == SHAPES else 1.0
            if use.width == fits:
                found[use.role] = path
            else:
                problem = f"weights.{name} does not fit {use.width_key} = {use.width:g}"
                problems.append(f"{problem}: set it to none, or the width to {fits:g}")
    problems += other_problems
    if problems:
        remedy = "give a file as weights.NAME=FILE"
        if section.allow_random:
            remedy += ", or weights.NAME=none to start from random weights"
        lines = ["files that the recipe needs are missing:", *(f"  - {text}" for text in problems)]
        raise WeightsError("\n".join(lines), "recipe", remedy)
    return found


def resolve_path(path: Path, dataset: Dataset) -> Path:
    """The absolute path, with ${dataset.root} at its start replaced."""
    text = str(path)
    if text.startswith(ROOT_PLACEHOLDER):
        path = Path(str(dataset.root) + text.removeprefix(ROOT_PLACEHOLDER))
    return path.absolute()


def weights_folder(home: Path | None) -> Path:
    """Where `auto` looks and where downloads go."""
    return ((home or Path(".wsss")) / "weights").absolute()


def file_digest(path: Path, cache: Path | None = None) -> str:
    """SHA-256 (hex) of an external file's content; of a file that is yet to be downloaded, the table's.

    Args:
        cache: folder of remembered hashes; None reads the file.

    Raises:
        DataError: the file cannot be read.
    """
    row = missing_downloads([path]).get(path)
    if row is not None:
        return row.sha256
    facts = file_facts([path], "sha256", sha256_of_file, cache)
    for error in facts.errors.values():
        raise error
    return facts.facts[path]


def check_weights(files: Iterable[Path], cache: Path | None) -> None:
    """Read the weight files that are there, once, so that a damaged one is found before hours are spent.

    Args:
        cache: folder that remembers the good ones; None reads them anew.

    Raises:
        DataError: as of `wsss.nn.checkpoint.check_weights_file`, for the first of them.
    """
    from wsss.nn.checkpoint import CheckpointError, check_weights_file

    def check(path: Path) -> bool:
        try:
            check_weights_file(path)
        except CheckpointError as error:
            raise DataError(error.what, error.where, error.remedy) from error
        return True

    facts = file_facts([path for path in files if path.exists()], "weights-1", check, cache)
    for error in facts.errors.values():
        raise error


def missing_downloads(files: Iterable[Path]) -> dict[Path, WeightFile]:
    """The files that do not exist yet and that the table can download."""
    rows = {row.file: row for row in WEIGHTS.values() if row.url}
    return {path: rows[path.name] for path in files if path.name in rows and not path.exists()}


def fetch_missing(files: Iterable[Path], message: Callable[[str], None]) -> None:
    """Download what is missing of `files`; `message` is told the progress in steps of a tenth.

    Raises:
        WeightsError: as of `fetch_weight`.
    """
    for path, row in missing_downloads(files).items():
        message(f"{row.file}: downloading {byte_count(1e6 * row.megabytes)} from {row.url}")
        tenths = 0

        def progress(done: int, total: int | None, row: WeightFile = row) -> None:
            nonlocal tenths
            if total and done * 10 // total > tenths:
                tenths = done * 10 // total
                message(f"{row.file}: {byte_count(done)} of {byte_count(total)}")

        fetch_weight(row, path.parent, progress)


def fetch_weight(
    row: WeightFile,
    folder: Path,
    progress: Progress | None = None,
    url: str | None = None,
    attempts: int = 3,
    pause: float = 1.0,
) -> Path:
    """The row's file in `folder`, downloaded unless it is there; it appears only when complete and verified.

    Several processes may ask for it at once: one downloads, the others wait.

    Args:
        url: another place of the same file.
        attempts, pause: as of `wsss.data.fetch.download`.

    Raises:
        WeightsError: the row has no address, there is no network, or the content is not that of the table.
    """
    path = folder / row.file
    by_hand = f"put {row.file} into {folder}, or give it as weights.{row.name}=FILE"
    if not url:
        url = row.url
    if not url:
        raise WeightsError(f"{row.file} cannot be downloaded: get it from {row.source}", f"weights.{row.name}", by_hand)
    with locked(folder / f".{row.file}.lock"):
        if not path.exists():
            try:
                download(url, path, row.sha256, progress, attempts, pause)
            except DataError as error:
                raise WeightsError(f"{row.file} cannot be downloaded: {error.what}", url, by_hand) from error
    return path


def _resolved(row: WeightFile, given: Path | None, dataset: Dataset) -> tuple[Path, str]:
    """The row's file and "", or what is wrong with what the recipe gives."""
    source = f"get {row.file}, {row.source}"
    if given is None:
        return Path(), f"is none and random weights are refused: {source}"
    if given == SHAPES:
        if row.name in SHAPES_WEIGHTS:
            return shapes_file(row.name), ""
        return given, f"= shapes: there is none, only of {' and '.join(SHAPES_WEIGHTS)}; set it to none"
    if given != AUTO:
        path = resolve_path(given, dataset)
        if path.is_file():
            return path, ""
        if "${" in str(path):
            return path, f"= {given}: only {ROOT_PLACEHOLDER} at the start is replaced"
        return path, f"= {path} {'is a folder, not a file' if path.is_dir() else 'does not exist'}: {source}"
    path = weights_folder(dataset.home) / row.file
    if not path.exists():
        return path, "" if row.url else f"= auto, and {path} does not exist: {source}"
    if row.sha256 and file_digest(path, dataset.cache) != row.sha256:
        return path, f"= auto, but {path} has another content than {row.source}: remove it, or give it by its path"
    return path, ""
