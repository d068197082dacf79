"""Saliency without masks against the foreground of a VOC folder: maximum F-measure and mean absolute error.

    python benchmarks/saliency.py FOLDER... [--images 200] [--segments 250] [--max-side 250]

FOLDER holds JPEGImages and SegmentationClassAug or SegmentationClass. Beside the detectors stands a centered Gaussian,
which knows nothing of the picture. The F-measure weighs precision with beta^2 = 0.3 (Achanta et al., 2009), at the best
of 256 thresholds over all images; the images are spread evenly over the folder's masks by name.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "platform")]

BETA_SQUARED = 0.3
MASK_FOLDERS = ("SegmentationClassAug", "SegmentationClass")
Detector = Callable[[np.ndarray], np.ndarray]


def centered_gaussian(image: np.ndarray) -> np.ndarray:
    """uint8 (H, W), standard deviation a quarter of each side."""
    y, x = (np.linspace(-2, 2, length) for length in image.shape[:2])
    return np.rint(255 * np.exp(-(y[:, None] ** 2 + x[None] ** 2) / 2)).astype(np.uint8)


def histograms(saliency: np.ndarray, foreground: np.ndarray, scored: np.ndarray) -> np.ndarray:
    """How often each value occurs on the background and on the foreground: int64 (2, 256)."""
    return np.stack([np.bincount(saliency[scored & (foreground == side)], minlength=256) for side in (False, True)])


def best_f_measure(counts: np.ndarray) -> float:
    """Maximum over the thresholds, from `histograms`."""
    above = counts[:, ::-1].cumsum(axis=1)[:, ::-1]
    precision = above[1] / np.maximum(above.sum(axis=0), 1)
    recall = above[1] / max(counts[1].sum(), 1)
    return float(((1 + BETA_SQUARED) * precision * recall / np.maximum(BETA_SQUARED * precision + recall, 1e-12)).max())


def measure(folder: Path, detectors: dict[str, Detector], images: int) -> None:
    """Prints one line for each detector."""
    masks = next(folder / name for name in MASK_FOLDERS if (folder / name).is_dir())
    paths = sorted(masks.glob("*.png"))
    paths = paths[:: max(1, len(paths) // images)][:images]
    counts = {name: np.zeros((2, 256), dtype=np.int64) for name in detectors}
    errors: dict[str, list[float]] = {name: [] for name in detectors}
    seconds = dict.fromkeys(detectors, 0.0)
    for path in paths:
        image = np.array(Image.open(folder / "JPEGImages" / f"{path.stem}.jpg").convert("RGB"))
        mask = np.array(Image.open(path))
        foreground, scored = (mask > 0) & (mask < 255), mask < 255
        for name, detect in detectors.items():
            started = time.process_time()
            values = detect(image)
            seconds[name] += time.process_time() - started
            counts[name] += histograms(values, foreground, scored)
            errors[name].append(float(np.abs(values[scored] / 255 - foreground[scored]).mean()))
    print(f"{folder.name}, {len(paths)} images: maximum F-measure, mean absolute error, CPU s an image")
    for name, total in counts.items():
        error, cost = float(np.mean(errors[name])), seconds[name] / len(paths)
        print(f"    {name:18s} {best_f_measure(total):.3f}  {error:.3f}  {cost:.2f}")


def main() -> None:
    from wsss.recipe import settings_of
    from wsss.stages.saliency import SaliencySettings, saliency_map

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--segments", type=int, default=SaliencySettings.segments)
    parser.add_argument("--max-side", type=int, default=SaliencySettings.max_side)
    given = parser.parse_args()

    def detector(name: str) -> Detector:
        settings = SaliencySettings(detector=name, segments=given.segments, max_side=given.max_side)
        return lambda image: saliency_map(image, settings)

    names: tuple[str, ...] = settings_of(SaliencySettings)["detector"].choices or ()
    detectors: dict[str, Detector] = {name: detector(name) for name in names} | {"centered Gaussian": centered_gaussian}
    for folder in given.folders:
        measure(folder, detectors, given.images)


if __name__ == "__main__":
    main()
