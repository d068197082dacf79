"""A generated data set in the VOC layout, on which every stage of a method runs in minutes on a CPU.

Each object has a small saturated head that tells its class and a larger, muted body: a classifier
finds the head, so its CAM is partial, and methods that spread it over the body have room to show it.
"""

from __future__ import annotations

import colorsys
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from wsss.data.palette import encode_palette_png
from wsss.recipe import key_values, setting

GENERATOR_VERSION = 1
BACKGROUND = "background"
SHAPE_CLASSES = ("disc", "square", "triangle", "star", "cross", "diamond", "gear", "pentagon")
IGNORE = 255

_HEAD_HUES = (0.00, 0.60, 0.14, 0.83, 0.40, 0.50, 0.07, 0.72)  # far apart for the first five
_TEXTURES = ("plain", "stripes", "dots", "checks", "rings", "stripes", "dots", "checks")
# Name prefix (a "year", as in VOC names) and stream number of each group of images.
_GROUPS = {"train": ("2101", 0), "train_aug_extra": ("2102", 1), "val": ("2103", 2)}


@dataclass(frozen=True)
class ShapesConfig:
    """Size of the generated set. An image depends on the seed and its own number, not on the counts."""

    train: int = setting(160, minimum=1, help="images of the train list")
    train_aug_extra: int = setting(80, minimum=0, help="images that train_aug has beyond train")
    val: int = setting(80, minimum=1, help="images of the val list")
    size: int = setting(112, minimum=48, maximum=512, help="longer side of the images, pixels")
    classes: int = setting(5, minimum=2, maximum=len(SHAPE_CLASSES), help="number of classes without the background")
    ignore_border: bool = setting(True, help="a line of 255 around objects, as in the VOC masks")
    seed: int = setting(0, minimum=0, maximum=2**31 - 1, help="seed of the generator")


def shape_classes(config: ShapesConfig) -> tuple[str, ...]:
    """Class names, background first."""
    return (BACKGROUND, *SHAPE_CLASSES[: config.classes])


def generate_shapes(config: ShapesConfig, home: Path) -> Path:
    """Folder of the generated set below `<home>/data`, written first if it is not there yet.

    The folder appears at once and complete; of two processes that write it, one wins and the other
    uses the winner's.
    """
    content = json.dumps({"generator": GENERATOR_VERSION, **key_values(config)}, sort_keys=True)
    folder = home / "data" / f"shapes-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.", ignore_cleanup_errors=True) as scratch:
        unfinished = Path(scratch) / folder.name
        _write(config, unfinished)
        (unfinished / "shapes.json").write_text(content + "\n", encoding="utf-8")
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    return folder


def _write(config: ShapesConfig, root: Path) -> None:
    folders = {name: root / name for name in ("JPEGImages", "SegmentationClass", "SegmentationClassAug")}
    for folder in (*folders.values(), root / "ImageSets" / "Segmentation"):
        folder.mkdir(parents=True)
    classes = shape_classes(config)
    names: dict[str, list[str]] = {}
    labels: list[str] = []
    for group, (prefix, _) in _GROUPS.items():
        names[group] = []
        for index in range(getattr(config, group)):
            name = f"{prefix}_{index:06d}"
            names[group].append(name)
            image, mask, border = render(config, group, index)
            Image.fromarray(image).save(folders["JPEGImages"] / f"{name}.jpg", quality=95)
            present = [classes[label] for label in np.unique(mask) if label]
            labels.append(" ".join([name, *present]))
            if group != "val":  # without border, as the SBD masks that extend VOC
                (folders["SegmentationClassAug"] / f"{name}.png").write_bytes(encode_palette_png(mask))
            if group != "train_aug_extra":
                bordered = np.where(border, np.uint8(IGNORE), mask) if config.ignore_border else mask
                (folders["SegmentationClass"] / f"{name}.png").write_bytes(encode_palette_png(bordered))
    lists = {"train": names["train"], "train_aug": names["train"] + names["train_aug_extra"], "val": names["val"]}
    for list_name, members in lists.items():
        text = "".join(f"{name}\n" for name in members)
        (root / "ImageSets" / "Segmentation" / f"{list_name}.txt").write_text(text, encoding="utf-8")
    (root / "image_labels.txt").write_text("".join(f"{line}\n" for line in labels), encoding="utf-8")


def render(config: ShapesConfig, group: str, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One image of the group "train", "train_aug_extra" or "val".

    Returns:
        image (H, W, 3) uint8, mask (H, W) uint8 of class ids, border (H, W) bool around objects.
    """
    rng = np.random.default_rng([GENERATOR_VERSION, config.seed, _GROUPS[group][1], index])
    short = round(config.size * rng.uniform(0.75, 1.0))
    height, width = (short, config.size) if rng.random() < 0.7 else (config.size, short)
    scene = _Scene(rng, height, width)
    for _ in range(rng.integers(0, 3)):
        scene.draw_distractor()
    count = int(rng.choice([1, 2, 3], p=[0.5, 0.35, 0.15]))
    # The first class goes round, so that small sets are balanced.
    kinds = [index % config.classes, *rng.integers(0, config.classes, size=count - 1)]
    coverage = rng.uniform(0.23, 0.40) * height * width
    shares = rng.dirichlet([8.0] * count)
    for kind, share in zip(kinds, shares, strict=True):
        scene.draw_object(int(kind), float(coverage * share))
    return scene.finish()


def render_single(size: int, seed: int, index: int) -> tuple[np.ndarray, int]:
    """A picture of one object, uint8 (size, size, 3), and the position of its class in `SHAPE_CLASSES`.

    Of no group of any generated set: `seed` is a stream of its own. Classes go round.
    """
    rng = np.random.default_rng([GENERATOR_VERSION, seed, len(_GROUPS), index])
    scene = _Scene(rng, size, size)
    for _ in range(rng.integers(0, 3)):
        scene.draw_distractor()
    kind = index % len(SHAPE_CLASSES)
    scene.draw_object(kind, float(rng.uniform(0.1, 0.45) * size * size))
    return scene.finish()[0], kind


class _Scene:
    """A picture being painted: float colours in [0, 1], the mask and the ignore border."""

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        self.rng, self.height, self.width = rng, height, width
        self.y, self.x = np.mgrid[:height, :width].astype(np.float64)
        self.color = self._background()
        self.mask = np.zeros((height, width), np.uint8)
        self.border = np.zeros((height, width), bool)
        self.taken: list[tuple[float, float, float]] = []

    def _noise(self, cells: int) -> np.ndarray:
        grid = self.rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
        return np.asarray(Image.fromarray(grid).resize((self.width, self.height), Image.Resampling.BICUBIC))

    def _background(self) -> np.ndarray:
        rng = self.rng
        noise = sum(self._noise(cells) / cells**0.6 for cells in (3, 6, 12, 24, 48)) * 1.2
        blend = np.clip(0.5 + noise, 0, 1)[..., None]
        colors = [
            np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.05, 0.28), rng.uniform(0.25, 0.75)))
            for _ in range(2)
        ]
        color = colors[0] * blend + colors[1] * (1 - blend)
        slope = rng.uniform(-0.15, 0.15) * (self.y / self.height - 0.5)
        grain = rng.normal(0, 0.03, (self.height, self.width))
        return color + (slope + grain)[..., None]

    def _paint(self, color: np.ndarray, distance: np.ndarray) -> None:
        """Blend a colour in where the distance to the outline (pixels) is negative."""
        alpha = np.clip(0.5 - distance, 0, 1)[..., None]
        self.color = self.color * (1 - alpha) + color * alpha

    def draw_distractor(self) -> None:
        """A grey blob of no class."""
        rng = self.rng
        radius = rng.uniform(0.06, 0.13) * min(self.height, self.width)
        center = rng.uniform(0, self.height), rng.uniform(0, self.width)
        distance = self._distance(int(rng.integers(0, 8)), center, radius, rng.uniform(0, math.tau), 1.3)
        value = rng.uniform(0.2, 0.8)
        self._paint(np.array([value, value, value * rng.uniform(0.85, 1.0)]), distance)

    def draw_object(self, kind: int, area: float) -> None:
        """Body and head of class `kind` (0-based) on about `area` pixels."""
        rng = self.rng
        stretch = rng.uniform(1.1, 1.5)
        radius = math.sqrt(area / (math.pi * stretch * 1.12))
        center = self._free_center(radius * math.sqrt(stretch))
        angle = rng.uniform(0, math.tau)
        body = self._distance(0 if kind % 2 == 0 else 1, center, radius, angle, stretch)
        hue = _HEAD_HUES[kind] + rng.normal(0, 0.015)
        tint = colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.28, 0.45), rng.uniform(0.6, 0.9))
        texture = self._texture(_TEXTURES[kind], center, angle, max(4.0, radius / 4))
        self._paint(np.array(tint) * (1 - 0.16 * texture[..., None]), body)

        end = radius * stretch * 0.95 * (1 if rng.random() < 0.5 else -1)
        head_center = (
            float(np.clip(center[0] + end * math.sin(angle), 0.3 * radius, self.height - 0.3 * radius)),
            float(np.clip(center[1] + end * math.cos(angle), 0.3 * radius, self.width - 0.3 * radius)),
        )
        head = self._distance(kind, head_center, 0.5 * radius, angle + rng.normal(0, 0.3), 1.0)
        eye = self._distance(0, head_center, 0.16 * radius, 0.0, 1.0)
        self._paint(np.array(colorsys.hsv_to_rgb(hue % 1, 0.92, rng.uniform(0.8, 0.98))), head)
        self._paint(np.array([0.05, 0.05, 0.08]), eye)

        outline = np.minimum(body, head)
        self.mask[outline < 0] = kind + 1
        self.border = (self.border & (outline > 0)) | (np.abs(outline) <= 1.0)

    def _free_center(self, radius: float) -> tuple[float, float]:
        """A place inside the picture, as far from the other objects as a few tries find."""
        margin = 0.75 * radius
        best, best_gap = (self.height / 2, self.width / 2), -math.inf
        for _ in range(12):
            y = self.rng.uniform(min(margin, self.height / 2), max(self.height - margin, self.height / 2))
            x = self.rng.uniform(min(margin, self.width / 2), max(self.width - margin, self.width / 2))
            gap = min((math.hypot(y - other[0], x - other[1]) - radius - other[2] for other in self.taken), default=0.0)
            if gap > best_gap:
                best, best_gap = (y, x), gap
            if gap >= 0:
                break
        self.taken.append((*best, radius))
        return best

    def _turned(self, center: tuple[float, float], angle: float) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates of every pixel along and across an axis at `angle` through `center`."""
        y, x = self.y - center[0], self.x - center[1]
        return x * math.cos(angle) + y * math.sin(angle), -x * math.sin(angle) + y * math.cos(angle)

    def _distance(
        self, kind: int, center: tuple[float, float], radius: float, angle: float, stretch: float
    ) -> np.ndarray:
        """Signed distance in pixels, about, to the outline of a shape; negative inside."""
        u, v = self._turned(center, angle)
        u = u / stretch
        return np.hypot(u, v) - radius * _profile(SHAPE_CLASSES[kind], np.arctan2(v, u))

    def _texture(self, texture: str, center: tuple[float, float], angle: float, period: float) -> np.ndarray:
        """Pattern in [0, 1] that turns with the object."""
        u, v = (axis * math.tau / period for axis in self._turned(center, angle))
        if texture == "stripes":
            return (np.sin(u) > 0).astype(np.float64)
        if texture == "checks":
            return (np.sin(u) * np.sin(v) > 0).astype(np.float64)
        if texture == "dots":
            return (np.cos(u) + np.cos(v) > 0.8).astype(np.float64)
        if texture == "rings":
            return (np.sin(np.hypot(u, v)) > 0).astype(np.float64)
        return np.zeros_like(self.y)

    def finish(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Image, mask and border, after light and sensor noise over all of it."""
        noise = self.rng.normal(0, 0.015, self.color.shape)
        image = (self.color * self.rng.uniform(0.85, 1.1) + noise) * 255
        return np.clip(np.rint(image), 0, 255).astype(np.uint8), self.mask, self.border


def _profile(shape: str, theta: np.ndarray) -> np.ndarray:
    """Radius of the outline by direction, about 1."""
    if shape == "disc":
        return np.ones_like(theta)
    if shape == "star":
        return 0.85 + 0.4 * np.cos(5 * theta)
    if shape == "cross":
        return 0.55 + 0.6 * np.cos(2 * theta) ** 2
    if shape == "gear":
        return 1.0 + 0.15 * np.sign(np.cos(9 * theta))
    sides = {"triangle": 3, "square": 4, "diamond": 4, "pentagon": 5}[shape]
    sector = math.tau / sides
    radius = 1.35 * math.cos(math.pi / sides) ** 0.5 / np.cos(theta % sector - sector / 2)
    radius = radius * math.cos(math.pi / sides) ** 0.5
    return radius * (0.75 + 0.5 * np.abs(np.sin(theta))) if shape == "diamond" else radius
