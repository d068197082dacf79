import os
import shutil
from pathlib import Path

import pytest

from wsss.data.config import DatasetConfig
from wsss.data.dataset import Dataset, load_dataset
from wsss.data.shapes import ShapesConfig
from wsss.data.voc import VOC_CLASSES

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = ShapesConfig(train=5, train_aug_extra=2, val=3, size=48, classes=3)


def _shared(*parts: str) -> Path:
    folder = Path(os.environ.get("WSSS_SHARED", REPOSITORY.parent / "shared")).joinpath(*parts)
    if not folder.exists():
        pytest.skip(f"shared material {'/'.join(parts)} is absent (set WSSS_SHARED)")
    return folder


@pytest.fixture
def shared_parity() -> Path:
    return _shared("parity", "ssc")


@pytest.fixture
def shared_data() -> Path:
    return _shared("data")


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A small generated set; tests leave its files alone."""
    return load_dataset(DatasetConfig(shapes=SMALL), tmp_path_factory.mktemp("home"))


@pytest.fixture
def voc_root(shapes: Dataset, tmp_path: Path) -> Path:
    """A copy of the generated set that passes for VOC 2012, to be damaged."""
    return as_voc(shapes, tmp_path / "VOC2012")


def as_voc(shapes: Dataset, root: Path) -> Path:
    """Copy a generated set under the names of VOC's classes."""
    shutil.copytree(shapes.root, root)
    text = (root / "image_labels.txt").read_text()
    for ours, theirs in zip(shapes.classes[1:], VOC_CLASSES[1:], strict=False):
        text = text.replace(ours, theirs)
    (root / "image_labels.txt").write_text(text)
    return root


@pytest.fixture
def voc_config(voc_root: Path) -> DatasetConfig:
    return DatasetConfig(name="voc2012", root=voc_root)
