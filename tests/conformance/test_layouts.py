"""Every official layout of maps and labels that a method reads: what goes out comes back, value for value and byte for
byte, and files that are not those of their pictures are refused with the picture."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wsss.commands.methods import find_method, method_names
from wsss.data.config import DatasetConfig
from wsss.data.dataset import Dataset, load_dataset
from wsss.data.shapes import ShapesConfig
from wsss.errors import WsssError
from wsss.map_rules import strided
from wsss.method import Exporter, Method
from wsss.pipeline import MapStage
from wsss.recipe import load_recipe
from wsss.store import Artifact, open_store

SHAPES = ShapesConfig(train=4, train_aug_extra=1, val=2, size=48, classes=3)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load_dataset(DatasetConfig(shapes=SHAPES), tmp_path_factory.mktemp("home"))


def layouts(method: Method, dataset: Dataset) -> Iterator[Exporter]:
    """Those that are read, of stages that make something of every picture."""
    recipe: Any = load_recipe(method.recipe_type, method.recipe_path("demo"), [])
    maps = {stage.name for stage in method.pipeline(recipe, dataset) if isinstance(stage, MapStage)}
    return (each for each in method.exporters.values() if each.read is not None and each.stage in maps)


def arrays_of(dataset: Dataset, name: str, eight_bits: bool) -> dict[str, np.ndarray]:
    """All arrays that stages make of a picture, whatever the stage."""
    view, rng = dataset.view({"images", "image_labels"}, None), np.random.default_rng(len(name))
    size, present = view.image_size(name), np.array(view.present_classes(name))

    def maps(planes: int, shape: tuple[int, int] = size) -> np.ndarray:
        return rng.random((planes, *shape)).astype(np.float16)

    label = rng.choice([0, *present], size).astype(np.uint8)
    high_res = maps(len(present))
    return {
        "keys": present.astype(np.int64),
        "high_res": rng.integers(0, 256, high_res.shape).astype(np.uint8) if eight_bits else high_res,
        "cam": maps(len(present), strided(size, 4)),
        "size": np.array(size),
        "crf_low": maps(1 + len(present)),
        "crf_high": maps(1 + len(present)),
        "label": label,
        "prediction": label,
        "ids": rng.integers(0, 300, size).astype(np.int32),
        "mask": (label > 0).astype(np.uint8),
        "saliency": rng.integers(0, 256, size).astype(np.uint8),
        "scores": rng.normal(size=(dataset.num_classes, 6, 6)).astype(np.float32),
    }


def published(folder: Path, stage: str, fill: Any) -> Artifact:
    writer = open_store(str(folder)).writer(stage, "0" * 32)
    fill(writer)
    return writer.publish({})


def written(exporter: Exporter, artifact: Artifact, dataset: Dataset, folder: Path) -> tuple[Path, dict[str, bytes]]:
    """The folder that is to be read, and its files, without pickles, whose bytes torch does not repeat."""
    exporter.write(artifact, dataset, folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    parents = {path.parent for path in files}
    place = parents.pop() if len(parents) == 1 else folder
    plain = [path for path in files if path.suffix == ".png" or np.load(path, allow_pickle=True).shape]
    return place, {str(path.relative_to(place)): path.read_bytes() for path in plain}


def convert(folder: Path) -> None:
    """What the refusal of pickles says."""
    for path in folder.rglob("*.npy"):
        content = np.load(path, allow_pickle=True)
        if content.shape:
            continue
        d: dict[Any, Any] = content.item()
        if "keys" in d:
            kept: dict[str, Any] = {name: np.asarray(d[name]) for name in ("keys", "cam", "high_res")}
            np.savez(path.with_suffix(".npz"), **kept)
        else:
            np.savez(path.with_suffix(".npz"), keys=list(d), maps=np.array(list(d.values())))


def spoil(folder: Path, name: str) -> None:
    """A file of a picture becomes one of another size, or lacks a class."""
    path = sorted(path for path in folder.rglob("*") if path.stem in (name, f"{name}_0", f"{name}_1", f"{name}_2"))[-1]
    if path.suffix == ".png":
        Image.open(path).resize((50, 60), Image.Resampling.NEAREST).save(path)
    elif path.suffix == ".npy":
        values = np.load(path)
        np.save(path, values[:-1] if values.ndim == 3 else values[..., :-1])  # scores have the network's size
    else:
        content = dict(np.load(path))
        large = "high_res" if "high_res" in content else "maps"
        np.savez(path, **{**content, large: content[large][..., :-1]})


@pytest.mark.parametrize("name", method_names())
def test_layouts_come_back_and_refuse_other_pictures(name: str, dataset: Dataset, tmp_path: Path) -> None:
    method, names = find_method(name), dataset.names("train_aug")
    kinds = list(layouts(method, dataset))
    assert kinds
    for exporter in kinds:
        assert exporter.read is not None
        read, place = exporter.read, tmp_path / exporter.stage
        eight_bits = "<c>" in exporter.description
        records = {each: arrays_of(dataset, each, eight_bits) for each in names}
        made = published(place / "store", exporter.stage, lambda writer, records=records: writer.add_shard(0, records))
        folder, files = written(exporter, made, dataset, place / "out")
        convert(folder)
        back = published(
            place / "other",
            exporter.stage,
            lambda writer, read=read, folder=folder: read(folder, dataset, names, writer),
        )
        for each in names:
            for array, values in back.arrays(each).items():
                assert np.array_equal(values, records[each][array]), (exporter.stage, each, array)
        assert written(exporter, back, dataset, place / "again")[1] == files, exporter.stage

        writer = open_store(str(place / "third")).writer(exporter.stage, "1" * 32)
        with pytest.raises(WsssError, match="absent"):
            read(folder, dataset, (*names, "absent"), writer)
        spoil(folder, names[-1])
        with pytest.raises(WsssError) as caught:
            read(folder, dataset, names, writer)
        assert names[-1] in f"{caught.value}" and caught.value.remedy, exporter.stage
