"""Dense CRF: every number of mean-field steps from one run, and several label maps on one set of kernels.

    python benchmarks/crf_curve.py FOLDER [--images 4] [--iterations 10] [--labels 21]

FOLDER holds JPEG pictures, for example JPEGImages of VOC. All times are of one process, one way after the other on
every picture, and the ways must agree to the bit. Prints, for the CRF of the final step (67/3) on probabilities of
`--labels` classes and for the CRF of the affinity labels (50/5) on two maps of three labels:

    steps     one run whose every step is a result, against one run for each number of steps
    maps      two label maps on one set of kernels, against one set of kernels each
    kernels   share of the kernels in one run: what sharing them between weights could save at most
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from wsss.ops.crf import DenseCrf, DenseCrfSettings, unary_from_labels, unary_from_probabilities

FINAL = DenseCrfSettings(
    iterations=10, gaussian_sxy=1.0, gaussian_compat=3.0, bilateral_sxy=67.0, bilateral_srgb=3.0, bilateral_compat=4.0
)
LABELS = DenseCrfSettings(
    iterations=10, gaussian_sxy=3.0, gaussian_compat=3.0, bilateral_sxy=50.0, bilateral_srgb=5.0, bilateral_compat=10.0
)


def smooth_probabilities(size: tuple[int, int], labels: int, seed: int) -> np.ndarray:
    """float32 (labels, H, W), in patches about as large as objects."""
    rng = np.random.default_rng(seed)
    logits = np.stack([gaussian_filter(rng.normal(size=size), 12) for _ in range(labels)]) * 60
    exponential = np.exp(logits - logits.max(axis=0))
    return (exponential / exponential.sum(axis=0)).astype(np.float32)


def timed(seconds: dict[str, float], name: str, way: Callable[[], Any]) -> Any:
    """Result of `way`; its CPU seconds are added to `seconds[name]`."""
    started = time.process_time()
    result = way()
    seconds[name] = seconds.get(name, 0.0) + time.process_time() - started
    return result


def steps_against_runs(image: np.ndarray, labels: int, crf: DenseCrfSettings, seconds: dict[str, float]) -> None:
    """Label maps after 1 to `crf.iterations` steps, both ways."""
    unary = unary_from_probabilities(smooth_probabilities(image.shape[:2], labels, seed=0))

    def one_run() -> list[np.ndarray]:
        return [marginals.argmax(axis=0) for marginals in DenseCrf(image, labels, crf).steps(unary)]

    def separate_runs() -> list[np.ndarray]:
        return [
            DenseCrf(image, labels, replace(crf, iterations=count)).marginals(unary).argmax(axis=0)
            for count in range(1, crf.iterations + 1)
        ]

    together = timed(seconds, "one run", one_run)
    apart = timed(seconds, "separate runs", separate_runs)
    timed(seconds, "last step alone", lambda: DenseCrf(image, labels, crf).marginals(unary))
    timed(seconds, "kernels", lambda: DenseCrf(image, labels, crf))
    if not all(np.array_equal(first, second) for first, second in zip(together, apart, strict=True)):
        raise SystemExit("one run and separate runs differ")


def shared_against_own_kernels(image: np.ndarray, crf: DenseCrfSettings, seconds: dict[str, float]) -> None:
    """Two label maps, both ways."""
    maps = [smooth_probabilities(image.shape[:2], 3, seed).argmax(axis=0) for seed in (1, 2)]
    unaries = [unary_from_labels(label, 3, 0.7) for label in maps]

    def shared() -> list[np.ndarray]:
        model = DenseCrf(image, 3, crf)
        return [model.marginals(unary) for unary in unaries]

    together = timed(seconds, "shared kernels", shared)
    apart = timed(seconds, "own kernels", lambda: [DenseCrf(image, 3, crf).marginals(unary) for unary in unaries])
    timed(seconds, "kernels", lambda: DenseCrf(image, 3, crf))
    if not all(np.array_equal(first, second) for first, second in zip(together, apart, strict=True)):
        raise SystemExit("shared kernels and kernels of its own differ")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--labels", type=int, default=21)
    arguments = parser.parse_args()
    paths = sorted(arguments.folder.glob("*.jpg"))[: arguments.images]
    if not paths:
        raise SystemExit(f"{arguments.folder} holds no .jpg file")
    final: dict[str, float] = {}
    labels: dict[str, float] = {}
    for path in paths:
        with Image.open(path) as picture:
            image = np.array(picture.convert("RGB"))
        steps_against_runs(image, arguments.labels, replace(FINAL, iterations=arguments.iterations), final)
        shared_against_own_kernels(image, replace(LABELS, iterations=arguments.iterations), labels)
    print(f"{len(paths)} pictures, {arguments.iterations} iterations; CPU seconds for a picture")
    for name, seconds in {**final, **{f"{name} (two maps)": value for name, value in labels.items()}}.items():
        print(f"{name:28s}{seconds / len(paths):8.3f}")
    print(f"steps: separate runs / one run         {final['separate runs'] / final['one run']:6.2f}")
    print(f"steps: one run / last step alone       {final['one run'] / final['last step alone']:6.2f}")
    print(f"maps: own kernels / shared kernels     {labels['own kernels'] / labels['shared kernels']:6.2f}")
    print(f"kernels: share of one run              {final['kernels'] / final['last step alone']:6.2f}")


if __name__ == "__main__":
    main()
