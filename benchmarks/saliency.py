"""Saliency without masks against the foreground of a VOC folder: maximum F-measure and mean absolute error.

    python benchmarks/saliency.py FOLDER [--images 40] [--segments 250]

FOLDER holds JPEGImages and SegmentationClassAug. Beside it stands a centered Gaussian, which knows nothing of the
picture. The F-measure weighs precision with beta^2 = 0.3 (Achanta et al., 2009), at the best of 256 thresholds over all
images; the images are the first of the folder by name that have a mask.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "platform")]

BETA_SQUARED = 0.3


def centered_gaussian(height: int, width: int) -> np.ndarray:
    """uint8 (H, W), standard deviation a quarter of each side."""
    y, x = np.linspace(-2, 2, height)[:, None], np.linspace(-2, 2, width)[None]
    return np.rint(255 * np.exp(-(y**2 + x**2) / 2)).astype(np.uint8)


def histograms(saliency: np.ndarray, foreground: np.ndarray, scored: np.ndarray) -> np.ndarray:
    """How often each value occurs on the background and on the foreground: int64 (2, 256)."""
    return np.stack([np.bincount(saliency[scored & (foreground == side)], minlength=256) for side in (False, True)])


def best_f_measure(counts: np.ndarray) -> float:
    """Maximum over the thresholds, from `histograms`."""
    above = counts[:, ::-1].cumsum(axis=1)[:, ::-1]
    precision = above[1] / np.maximum(above.sum(axis=0), 1)
    recall = above[1] / max(counts[1].sum(), 1)
    return float(((1 + BETA_SQUARED) * precision * recall / np.maximum(BETA_SQUARED * precision + recall, 1e-12)).max())


def main() -> None:
    from wsss.stages.saliency import SaliencySettings, saliency_map

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--segments", type=int, default=SaliencySettings.segments)
    given = parser.parse_args()
    settings = SaliencySettings(segments=given.segments)
    counts = {name: np.zeros((2, 256), dtype=np.int64) for name in ("saliency", "Gaussian")}
    errors: dict[str, list[float]] = {name: [] for name in counts}
    seconds = 0.0
    paths = sorted((given.folder / "SegmentationClassAug").glob("*.png"))[: given.images]
    for path in paths:
        image = np.array(Image.open(given.folder / "JPEGImages" / f"{path.stem}.jpg").convert("RGB"))
        mask = np.array(Image.open(path))
        foreground, scored = (mask > 0) & (mask < 255), mask < 255
        started = time.perf_counter()
        found = {"saliency": saliency_map(image, settings)}
        seconds += time.perf_counter() - started
        found["Gaussian"] = centered_gaussian(*mask.shape)
        for name, values in found.items():
            counts[name] += histograms(values, foreground, scored)
            errors[name].append(float(np.abs(values[scored] / 255 - foreground[scored]).mean()))
    print(f"{len(paths)} images, {seconds / len(paths):.2f} s each")
    for name, total in counts.items():
        print(
            f"{name:9s} maximum F-measure {best_f_measure(total):.4f}, mean absolute error {np.mean(errors[name]):.4f}"
        )


if __name__ == "__main__":
    main()
