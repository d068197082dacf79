"""The VOC layout of folders, lists and masks, which full VOC 2012 and smaller sets share."""

from __future__ import annotations

from pathlib import Path

from wsss.data.errors import Problem

VOC_CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
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


def find_list(root: Path, list_name: str, override: str) -> Path | None:
    """The file of a list: `override` (a name in ImageSets/Segmentation, or a path), else the usual names.

    An override is returned whether it exists or not; without one, None means that there is no such list.
    """
    if override:
        if override.endswith(".txt") or "/" in override:
            path = Path(override).expanduser()
            return path if path.is_absolute() or path.exists() else root / path
        return root / LISTS / f"{override}.txt"
    for name in LIST_FILES[list_name]:
        if (root / LISTS / f"{name}.txt").is_file():
            return root / LISTS / f"{name}.txt"
    return None


def read_list(path: Path) -> tuple[tuple[str, ...], list[Problem]]:
    """Image names of a list file, one per line, in order, without duplicates; and what is wrong in it."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
        present = ", ".join(sorted(found.stem for found in path.parent.glob("*.txt"))) or "none"
        return (), [Problem(f"the list {reason}", str(path), f"create it, or name another; lists there: {present}")]
    problems: list[Problem] = []
    first_line: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if not name:
            continue
        where = f"{path}, line {number}"
        if len(name.split()) > 1 or "/" in name or Path(name).suffix in (".jpg", ".png"):
            problems.append(
                Problem(
                    f"malformed line {name[:60]!r}; expected one image name",
                    where,
                    "write the name alone, without folder and suffix, e.g. 2007_000032",
                )
            )
        elif name in first_line:
            problems.append(Problem(f"image {name} is also in line {first_line[name]}", where, "remove the duplicate"))
        else:
            first_line[name] = number
    if not first_line and not problems:
        problems.append(Problem("the list is empty", str(path), "write one image name per line"))
    return tuple(first_line), problems


def mask_folders(root: Path, list_name: str | None) -> tuple[Path, ...]:
    """Folders in which to look for the mask of an image of a list, first match first.

    train_aug: SegmentationClassAug, then SegmentationClass. Other lists: SegmentationClass alone when it
    exists, so that numbers are never made on the SBD masks, which lack the ignore border, by accident.
    """
    official, aug = root / MASKS, root / AUG_MASKS
    if list_name == "train_aug":
        return tuple(folder for folder in (aug, official) if folder.is_dir()) or (official,)
    if list_name is None:
        return tuple(folder for folder in (official, aug) if folder.is_dir()) or (official,)
    return (official,) if official.is_dir() or not aug.is_dir() else (aug,)


def mask_path(folders: tuple[Path, ...], name: str) -> Path:
    """The first existing `<folder>/<name>.png`; where none exists, the one that is missed."""
    for folder in folders:
        if (folder / f"{name}.png").is_file():
            return folder / f"{name}.png"
    return folders[0] / f"{name}.png"
