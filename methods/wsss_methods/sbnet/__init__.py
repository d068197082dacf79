"""SBNet: structure-aware semantic segmentation from image labels (Liu et al., IJCNN 2021)."""

from __future__ import annotations

from pathlib import Path

from wsss.method import Method, ReleasedCheckpoint
from wsss_methods.sbnet.official import build_released_pipeline, check_released_network, exporters
from wsss_methods.sbnet.pipeline import build_pipeline
from wsss_methods.sbnet.recipe import SbnetRecipe

METHOD = Method(
    name="sbnet",
    title="Semantic boundaries and smoothness on SEAM, AffinityNet and random walk",
    citation=(
        "Liu, Zhang, Hong, Barnes, Learning Structure-Aware Semantic Segmentation with Image-Level Supervision, "
        "International Joint Conference on Neural Networks, 2021"
    ),
    recipe_type=SbnetRecipe,
    pipeline=build_pipeline,
    folder=Path(__file__).resolve().parent,
    exporters=exporters(),
    released=ReleasedCheckpoint("segmentation_train", check_released_network, build_released_pipeline),
)
