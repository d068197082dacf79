"""How criteria that need no mask rank settings, on real pictures with real masks.

    python benchmarks/label_free.py FOLDER WEIGHTS [--images 80] [--out counts.npz]

FOLDER is in the VOC layout with image_labels.json; WEIGHTS are ImageNet weights of MobileNetV2 under torchvision's
names, classifier included. Pictures with exactly one of cat, cow, dog, horse and sheep get the class activation map of
that class from the classifier as it is, untrained here: weak maps, but nobody tuned anything on these masks. Two
families of settings are scored on the same pictures:

    threshold   the background threshold of the map and an exponent that sharpens it, no CRF
    crf         the threshold, the trust in the labels and the weight and color width of a dense CRF after it

For each family: the best setting by masks, what each criterion would choose and what that is worth, and Spearman's
rank correlation of criterion and mIoU over the settings. `--out` keeps the counts for benchmarks/racing.py.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import stats
from torch.nn import functional

from wsss.data.transforms import channels_first, normalize, rescale
from wsss.evaluation.confusion import confusion_matrix, intersections_and_totals
from wsss.evaluation.label_free import boundary_contrast, confidence_margin
from wsss.evaluation.selection import setting_mious
from wsss.nn.mobilenet import MobileNetV2
from wsss.ops.crf import DenseCrf, DenseCrfSettings, unary_from_labels

# VOC class -> (id, ImageNet classes of it).
ANIMALS = {
    "cat": (8, list(range(281, 286))),
    "cow": (10, [345, 346, 347]),
    "dog": (12, list(range(151, 269))),
    "horse": (13, [339]),
    "sheep": (17, [348, 349]),
}
CLASSES = 1 + len(ANIMALS)
THRESHOLDS = (0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6)
EXPONENTS = (0.5, 1.0, 2.0)
CRF_THRESHOLDS = (0.25, 0.35, 0.45)
CRFS = tuple((trust, weight, width) for trust in (0.6, 0.8) for weight in (4.0, 10.0) for width in (5.0, 12.0))


@dataclass
class Family:
    """Counts and criteria of a family of settings, one entry for each picture."""

    settings: list[str]
    counts: list[np.ndarray]
    criteria: dict[str, list[list[float]]]


def label_agreement(first: np.ndarray, second: np.ndarray, num_classes: int, ignore_index: int | None = 255) -> float:
    """Mean IoU of two label maps of one image, over the classes in either: integer (H, W) each -> 0 to 1.

    For example the labels before and after a CRF, or of two networks. Positions where one is `ignore_index` are left
    out; NaN when none is left.
    """
    counted = np.ones(first.shape, dtype=bool)
    if ignore_index is not None:
        counted = (first != ignore_index) & (second != ignore_index)
    pairs = first[counted].astype(np.int64) * num_classes + second[counted]
    joint = np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
    union = joint.sum(axis=0) + joint.sum(axis=1) - joint.diagonal()
    return float((joint.diagonal()[union > 0] / union[union > 0]).mean()) if counted.any() else float("nan")


def pictures(folder: Path, number: int) -> Iterator[tuple[str, int, np.ndarray, np.ndarray]]:
    """Name, class 1 to 5, uint8 image, uint8 truth with classes 0 to 5 and 255."""
    labels = json.loads((folder / "image_labels.json").read_text())
    names = (folder / "ImageSets" / "Segmentation" / "train.txt").read_text().split()
    single = [name for name in names if len(labels[name]) == 1 and labels[name][0] in ANIMALS]
    order = np.random.default_rng(0).permutation(len(single))[:number]
    for name in sorted(single[index] for index in order):
        index = 1 + list(ANIMALS).index(labels[name][0])
        with Image.open(folder / "JPEGImages" / f"{name}.jpg") as picture:
            image = np.array(picture.convert("RGB"))
        with Image.open(folder / "SegmentationClass" / f"{name}.png") as picture:
            mask = np.array(picture)
        truth = np.where(mask == 255, 255, 0).astype(np.uint8)
        truth[mask == ANIMALS[labels[name][0]][0]] = index
        yield name, index, image, truth


def load_classifier(path: Path) -> Callable[[np.ndarray, int], np.ndarray]:
    """Image uint8 (H, W, 3) and class 1 to 5 -> its map float32 (H, W), at least 0, maximum 1."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    network = MobileNetV2(output_stride=16, dilated=True)
    network.load_state_dict({name: value for name, value in state.items() if name.startswith("features.")})
    network.eval()
    weight = state["classifier.1.weight"]

    @torch.no_grad()
    def cam(image: np.ndarray, index: int) -> np.ndarray:
        rows = weight[list(ANIMALS.values())[index - 1][1]]
        total = torch.zeros(image.shape[:2])
        for scale in (0.6, 1.0):
            planes = torch.from_numpy(channels_first(normalize(rescale(image, scale, "bicubic"))))[None]
            for mirrored in (False, True):
                features = network(planes.flip(-1) if mirrored else planes)[-1]
                maps = functional.conv2d(features, rows[:, :, None, None]).amax(dim=1, keepdim=True).clamp(min=0)
                maps = maps.flip(-1) if mirrored else maps
                total += functional.interpolate(maps, size=image.shape[:2], mode="bilinear")[0, 0]
        return (total / total.max().clamp(min=1e-6)).numpy()

    return cam


def counts_of(truth: np.ndarray, label: np.ndarray) -> np.ndarray:
    """int64 (3, C) of one picture."""
    return np.stack(intersections_and_totals(confusion_matrix(truth, label, CLASSES)))


def score_thresholds(family: Family, cam: np.ndarray, index: int, image: np.ndarray, truth: np.ndarray) -> None:
    """One picture under every exponent and threshold."""
    counts, margins, contrasts = [], [], []
    for exponent in EXPONENTS:
        sharpened = cam**exponent
        for threshold in THRESHOLDS:
            label = np.where(sharpened > threshold, index, 0).astype(np.uint8)
            counts.append(counts_of(truth, label))
            margins.append(confidence_margin(np.stack([np.full_like(cam, threshold), sharpened])))
            contrasts.append(boundary_contrast(label, image))
    family.counts.append(np.stack(counts))
    family.criteria["confidence_margin"].append(margins)
    family.criteria["boundary_contrast"].append(contrasts)


def score_crfs(family: Family, cam: np.ndarray, index: int, image: np.ndarray, truth: np.ndarray) -> None:
    """One picture under every threshold and CRF; thresholds and trusts share the kernels."""
    before = {threshold: (cam > threshold).astype(np.int64) for threshold in CRF_THRESHOLDS}
    models: dict[tuple[float, float], DenseCrf] = {}
    counts, margins, contrasts, agreements = [], [], [], []
    for trust, weight, width in CRFS:
        if (weight, width) not in models:
            models[weight, width] = DenseCrf(image, 2, DenseCrfSettings(5, 3.0, 3.0, 50.0, width, weight))
        for threshold in CRF_THRESHOLDS:
            marginals = models[weight, width].marginals(unary_from_labels(before[threshold], 2, trust))
            after = marginals.argmax(axis=0)
            label = np.where(after == 1, index, 0).astype(np.uint8)
            counts.append(counts_of(truth, label))
            margins.append(confidence_margin(marginals))
            contrasts.append(boundary_contrast(label, image))
            agreements.append(label_agreement(before[threshold], after, 2))
    family.counts.append(np.stack(counts))
    for name, values in zip(family.criteria, (margins, contrasts, agreements), strict=True):
        family.criteria[name].append(values)


def report(title: str, family: Family) -> dict[str, np.ndarray]:
    """Print one family; its arrays for --out."""
    counts = np.stack(family.counts, axis=1)
    mious = setting_mious(counts)
    best = int(mious.argmax())
    print(f"\n{title}: {len(mious)} settings, {counts.shape[1]} pictures")
    print(f"  mIoU from {100 * mious.min():.2f} to {100 * mious.max():.2f}, median {100 * np.median(mious):.2f}")
    print(f"  best by masks        {100 * mious[best]:6.2f}   {family.settings[best]}")
    arrays = {"counts": counts}
    for name, values in family.criteria.items():
        criterion = np.array(values, dtype=np.float64).T
        means = np.nanmean(criterion, axis=1)
        chosen = int(np.nanargmax(means))
        correlation = float(np.asarray(stats.spearmanr(means, mious))[0])
        print(
            f"  {name:20s} {100 * mious[chosen]:6.2f}   {family.settings[chosen]}   rank correlation {correlation:+.2f}"
        )
        arrays[f"criterion_{name}"] = criterion
    return arrays


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--images", type=int, default=80)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    thresholds = Family(
        [f"exponent {exponent:g}, threshold {threshold:g}" for exponent in EXPONENTS for threshold in THRESHOLDS],
        [],
        {"confidence_margin": [], "boundary_contrast": []},
    )
    crfs = Family(
        [f"trust {t:g}, weight {w:g}, color {c:g}, threshold {x:g}" for t, w, c in CRFS for x in CRF_THRESHOLDS],
        [],
        {"confidence_margin": [], "boundary_contrast": [], "label_agreement": []},
    )
    classify = load_classifier(arguments.weights)
    names = []
    started = time.process_time()
    for name, index, image, truth in pictures(arguments.folder, arguments.images):
        cam = classify(image, index)
        score_thresholds(thresholds, cam, index, image, truth)
        score_crfs(crfs, cam, index, image, truth)
        names.append(name)
    print(f"{len(names)} pictures, {time.process_time() - started:.0f} CPU seconds")
    found = {"threshold": report("threshold", thresholds), "crf": report("crf", crfs)}
    if arguments.out:
        arrays = {f"{family}_{name}": values for family, each in found.items() for name, values in each.items()}
        np.savez_compressed(arguments.out, allow_pickle=False, names=np.array(names), **arrays)


if __name__ == "__main__":
    main()
