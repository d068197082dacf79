"""Stage S9: label maps without and with the dense CRF, and their numbers (SSC, section 2).

The CRF runs once for an image. Its label map after every number of mean-field steps is kept and scored, so that
another number of steps is read off and not computed.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from wsss.evaluation.confusion import confusion_matrix, intersections_and_totals
from wsss.evaluation.counts import Counts
from wsss.evaluation.selection import choose
from wsss.ops.crf import DenseCrfSettings
from wsss.pipeline import Arrays, Reduction, StageContext
from wsss.stages.score import SummaryConfig, summarize_labels
from wsss.store import Artifact
from wsss_methods.ssc.recipe import CrfSettings
from wsss_methods.ssc.seg_inference import class_probabilities, predicted_label, refined_steps


@dataclass(frozen=True)
class PredictionConfig:
    """The dense CRF at its largest number of steps, and the variants of its image; no variant without the CRF."""

    crf: DenseCrfSettings | None
    variants: tuple[str, ...]

    @classmethod
    def of(cls, settings: CrfSettings) -> PredictionConfig:
        """From the recipe's section."""
        if not settings.enabled:
            return cls(None, ())
        crf = DenseCrfSettings(
            iterations=max(settings.iterations, settings.scored_iterations),
            gaussian_sxy=settings.pos_xy_std,
            gaussian_compat=settings.pos_w,
            bilateral_sxy=settings.bi_xy_std,
            bilateral_srgb=settings.bi_rgb_std,
            bilateral_compat=settings.bi_w,
        )
        return cls(crf, crf_variants(settings))


@dataclass(frozen=True)
class ChoiceConfig:
    """The variants of the CRF and the number of its steps that is kept."""

    variants: tuple[str, ...]
    iterations: int


@dataclass(frozen=True)
class EvaluationConfig:
    """The variants of the CRF, the number of steps that is reported, and the resamples of the intervals."""

    variants: tuple[str, ...]
    iterations: int
    bootstrap_samples: int = 1000


def crf_variants(settings: CrfSettings) -> tuple[str, ...]:
    """Endings of the CRF's metric names: "crf" (image as published) and "crf_raw" (the picture itself)."""
    if not settings.enabled:
        return ()
    return {"wrapped": ("crf",), "raw": ("crf_raw",), "both": ("crf", "crf_raw")}[settings.image]


def named(what: str, variant: str) -> str:
    """`prediction` or `prediction_crf`."""
    return f"{what}_{variant}" if variant else what


def build_predictions(context: StageContext) -> Callable[[str], Arrays]:
    """Label maps at original size without the CRF and after every number T of its steps, and what they are worth.

    Returns "prediction" uint8 (H, W) and the counts "confusion" (C, C) without the CRF, and for every variant ("crf",
    "crf_raw") "steps_<variant>", packed as in `pack_steps`, and the counts "confusion_<variant>" (T, C, C).
    """
    config: PredictionConfig = context.config
    artifact = context.inputs["scores"]

    def predict(name: str) -> Arrays:
        image, truth = context.data.image(name), context.data.mask(name)

        def counted(prediction: np.ndarray) -> np.ndarray:
            return confusion_matrix(truth, prediction, context.data.num_classes, context.data.ignore_index)

        probabilities = class_probabilities(artifact.arrays(name)["scores"], image.shape[:2])
        prediction = predicted_label(probabilities)
        arrays = {"prediction": prediction, **Counts.of(counted(prediction)).arrays()}
        for variant in config.variants:
            assert config.crf is not None
            refined = refined_steps(probabilities, image, config.crf, on_raw_image=variant == "crf_raw")
            labels = [predicted_label(marginals) for marginals in refined]
            arrays[named("steps", variant)] = pack_steps(labels)
            counts = Counts.of(np.stack([counted(label) for label in labels]))
            arrays.update(counts.arrays(named("confusion", variant)))
        return arrays

    return predict


def build_chosen_prediction(context: StageContext) -> Callable[[str], Arrays]:
    """The label maps of the recipe: "prediction" and "prediction_<variant>" uint8 (H, W)."""
    config: ChoiceConfig = context.config
    artifact = context.inputs["predictions"]

    def choice(name: str) -> Arrays:
        arrays = artifact.arrays(name)
        chosen = {"prediction": arrays["prediction"]}
        for variant in config.variants:
            steps = unpack_steps(arrays[named("steps", variant)], arrays["prediction"].shape)
            chosen[named("prediction", variant)] = steps[config.iterations - 1]
        return chosen

    return choice


def evaluate_predictions(context: StageContext) -> Reduction:
    """mIoU on val of every variant with its interval and the all-background baseline (SSC, section 8, S9).

    A variant of the CRF is reported at the recipe's number of steps. Beside it stand `..._oracle` at the best number
    for these very images, which is `oracle_iterations_...`, `..._cross_fitted` with the number chosen on the other half
    of the images, and the table "iterations_<variant>" (iterations, miou, default, oracle).
    """
    config: EvaluationConfig = context.config
    metrics: dict[str, float] = {}
    tables: dict[str, list[dict[str, Any]]] = {}
    arrays: dict[str, np.ndarray] = {}
    for variant in ("", *config.variants):
        summary = SummaryConfig(
            prefix="segmentation",
            split="val",
            variant=variant,
            mean_over="truth",
            bootstrap_samples=config.bootstrap_samples,
        )
        confusions = _VariantConfusions(context.inputs["confusions"], variant, config.iterations)
        inputs = {"confusions": cast(Artifact, confusions)}
        part = summarize_labels(replace(context, config=summary, inputs=inputs))
        metrics.update(part.metrics)
        tables.update({named(table, variant): rows for table, rows in part.tables.items()})
        arrays.update({named(array, variant): values for array, values in part.arrays.items()})
        if variant:
            names = sorted(confusions.images())
            chosen = choose(np.stack([confusions.counts(name) for name in names], axis=1), names, mean_over="truth")
            metrics[f"segmentation/miou_val_{variant}_oracle"] = chosen.oracle_miou
            metrics[f"segmentation/oracle_iterations_val_{variant}"] = float(chosen.oracle + 1)
            if chosen.cross_fitted_miou is not None:
                metrics[f"segmentation/miou_val_{variant}_cross_fitted"] = chosen.cross_fitted_miou
            tables[named("iterations", variant)] = [
                {
                    "iterations": index + 1,
                    "miou": score,
                    "default": index + 1 == config.iterations,
                    "oracle": index == chosen.oracle,
                }
                for index, score in enumerate(chosen.mious)
            ]
    return Reduction(metrics, tables, arrays)


def pack_steps(labels: Sequence[np.ndarray]) -> np.ndarray:
    """Label maps uint8 (H, W) that hardly differ from one to the next -> compressed bytes, uint8 (n,).

    Each map is stored as what it changes in the one before, so that ten take about the room of one.
    """
    stacked = np.stack(labels)
    stacked[1:] ^= stacked[:-1].copy()
    return np.frombuffer(zlib.compress(stacked.tobytes(), 6), dtype=np.uint8)


def unpack_steps(packed: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Inverse of `pack_steps`: uint8 (T, H, W) for `size` = (H, W)."""
    changes = np.frombuffer(zlib.decompress(packed.tobytes()), dtype=np.uint8).reshape(-1, *size)
    return np.bitwise_xor.accumulate(changes, axis=0)


@dataclass(frozen=True)
class _VariantConfusions:
    """Shows the confusion matrices of one variant, at one number of steps, as a scorer's artifact."""

    artifact: Artifact
    variant: str
    iterations: int

    def images(self) -> list[str]:
        return self.artifact.images()

    def arrays(self, name: str) -> Arrays:
        counts = self._read(name)
        return (counts.at(self.iterations - 1) if self.variant else counts).arrays()

    def counts(self, name: str) -> np.ndarray:
        """int64 (T, 3, C) after every number of steps."""
        return np.stack(intersections_and_totals(self._read(name).dense()), axis=1)

    def _read(self, name: str) -> Counts:
        return Counts.read(self.artifact.arrays(name), named("confusion", self.variant))
