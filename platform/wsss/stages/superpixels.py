"""Superpixels made by SLIC, for methods whose own are only a download."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from wsss.data.dataset import Dataset
from wsss.data.superpixels import slic_superpixels
from wsss.data.transforms import resize, resize_long
from wsss.pipeline import Arrays, MapStage, StageContext
from wsss.recipe import setting
from wsss.stages.maps_from_folder import maps_from_folder
from wsss.weights import resolve_path


@dataclass(frozen=True)
class SuperpixelConfig:
    """Where superpixels come from. A section of a recipe, and the config of the stage that makes them by SLIC."""

    source: str = setting("slic", choices=("slic", "folder"), help="slic: computed; folder: PNG files")
    segments: int = setting(300, minimum=4, maximum=1000, help="SLIC superpixels of an image, about")
    compactness: float = setting(10.0, above=0, maximum=100, help="SLIC weight of place against color")
    max_side: int = setting(
        0,
        minimum=0,
        maximum=4096,
        help="SLIC runs on the image reduced to this longer side, ids are brought back by nearest; 0: full size",
    )
    folder: Path | None = setting(
        None, in_key=False, help="folder of <name>.png with id = R + 256 G + 65536 B, for source: folder"
    )

    def in_words(self) -> str:
        """For the protocol of a number."""
        if self.source == "folder":
            return "given as a folder"
        reduced = f", on the image reduced to {self.max_side}" if self.max_side else ""
        return f"SLIC, {self.segments} segments, compactness {self.compactness:g}{reduced}"


def superpixel_stage(config: SuperpixelConfig, dataset: Dataset, image_list: str) -> MapStage:
    """The stage "superpixels", made or read. Raises DataError naming every file of a folder that does not fit."""
    if config.source == "folder":
        folder = resolve_path(config.folder or Path(), dataset)
        return maps_from_folder("superpixels", "superpixels", folder, dataset, image_list)
    return MapStage(
        name="superpixels",
        version=1,
        config=config,
        reads=frozenset({"images"}),
        image_list=image_list,
        build=build_superpixels,
    )


def build_superpixels(context: StageContext) -> Callable[[str], Arrays]:
    """Map function (config SuperpixelConfig, reads images): "ids" int32 (H, W), from 0 on."""
    config: SuperpixelConfig = context.config

    def superpixels(name: str) -> Arrays:
        image = context.data.image(name)
        height, width = image.shape[:2]
        reduced = image
        if config.max_side and max(height, width) > config.max_side:
            reduced = resize_long(image, config.max_side, "bicubic")
        ids = slic_superpixels(reduced, config.segments, config.compactness)
        return {"ids": resize(ids, (height, width), "nearest")}

    return superpixels
