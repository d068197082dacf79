"""The dense CRF of kazuto1011/deeplab-pytorch as a recipe's section: of predictions, and of labels of a next round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from wsss.ops.crf import DenseCrf, DenseCrfSettings, unary_from_probabilities
from wsss.pipeline import Arrays, MapStage, StageContext
from wsss.recipe import setting
from wsss.stages.refine import PredictionConfig, class_probabilities, mean_subtracted, predicted_label

WRAPPED = "image with subtracted mean and wrap-around bytes"
RAW = "on the picture"


@dataclass(frozen=True)
class CrfSettings:
    """Dense CRF of the final predictions."""

    enabled: bool = setting(True, help="score predictions with the CRF as well")
    iterations: int = setting(10, minimum=1, maximum=50, help="mean field steps of the number that is reported")
    scored_iterations: int = setting(
        10,
        minimum=1,
        maximum=50,
        help="one run scores every number of steps up to this one, or up to crf.iterations if that is more",
    )
    pos_xy_std: float = setting(1.0, minimum=0.01, maximum=20, help="pixels")
    pos_w: float = setting(3.0, minimum=0, maximum=20, help="weight of the smoothness term")
    bi_xy_std: float = setting(67.0, minimum=0.01, maximum=300, help="pixels")
    bi_rgb_std: float = setting(3.0, minimum=0.01, maximum=100, help="grey levels")
    bi_w: float = setting(4.0, minimum=0, maximum=20, help="weight of the appearance term")
    image: str = setting(
        "wrapped",
        choices=("wrapped", "raw", "both"),
        help="wrapped: mean subtracted with wrap-around bytes, as published; raw: the image; both: two numbers",
    )

    @property
    def variants(self) -> tuple[str, ...]:
        """Endings of the CRF's metric names: "crf" (image as published) and "crf_raw" (the picture itself)."""
        if not self.enabled:
            return ()
        return {"wrapped": ("crf",), "raw": ("crf_raw",), "both": ("crf", "crf_raw")}[self.image]

    def predictions(self) -> PredictionConfig:
        """One run of the CRF scores every number of steps up to the larger of the two."""
        if not self.enabled:
            return PredictionConfig(None, ())
        return PredictionConfig(self.dense(max(self.iterations, self.scored_iterations)), self.variants)

    def dense(self, iterations: int) -> DenseCrfSettings:
        """The kernels, for a number of steps."""
        return DenseCrfSettings(
            iterations=iterations,
            gaussian_sxy=self.pos_xy_std,
            gaussian_compat=self.pos_w,
            bilateral_sxy=self.bi_xy_std,
            bilateral_srgb=self.bi_rgb_std,
            bilateral_compat=self.bi_w,
        )

    def in_words(self) -> str:
        """For the protocol of a number."""
        if not self.enabled:
            return "none"
        return {"wrapped": WRAPPED, "raw": RAW, "both": f"crf: {WRAPPED}; crf_raw: {RAW}"}[self.image]


@dataclass(frozen=True)
class CrfLabelConfig:
    """The CRF of labels, None for none, and whether it compares colors in `mean_subtracted`."""

    crf: DenseCrfSettings | None
    wrapped: bool


def crf_label_stage(name: str, config: CrfLabelConfig, scores: str, image_list: str) -> MapStage:
    """The stage `name`: what a network says of the pictures that a next one is trained on; no mask is read."""
    return MapStage(
        name=name,
        version=1,
        config=config,
        inputs={"scores": scores},
        reads=frozenset({"images"}),
        image_list=image_list,
        build=build_crf_labels,
    )


def build_crf_labels(context: StageContext) -> Callable[[str], Arrays]:
    """Map function (config CrfLabelConfig, role "scores"): "prediction" uint8 (H, W), class ids."""
    config: CrfLabelConfig = context.config

    def label(name: str) -> Arrays:
        picture = context.data.image(name)
        probabilities = class_probabilities(context.arrays("scores", name)["scores"], picture.shape[:2])
        if config.crf is not None:
            image = mean_subtracted(picture) if config.wrapped else picture
            crf = DenseCrf(image, len(probabilities), config.crf)
            probabilities = crf.marginals(unary_from_probabilities(probabilities))
        return {"prediction": predicted_label(probabilities)}

    return label
