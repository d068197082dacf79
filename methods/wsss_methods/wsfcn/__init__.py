"""WS-FCN: a single-stage network from image labels to segmentation (Wang et al., TNNLS 2023)."""

from __future__ import annotations

from pathlib import Path

from wsss.method import Method, ReleasedCheckpoint
from wsss_methods.wsfcn.official import check_released_network, exporters
from wsss_methods.wsfcn.pipeline import build_pipeline, build_released_pipeline
from wsss_methods.wsfcn.recipe import WsFcnRecipe

METHOD = Method(
    name="wsfcn",
    title="Single-stage segmentation from image labels: flexible context aggregation and consistent feature fusion",
    citation=(
        "Wang, Zhang, Zhang, Tang, Coupling Global Context and Local Contents for Weakly-Supervised Semantic "
        "Segmentation, IEEE Transactions on Neural Networks and Learning Systems, 2023"
    ),
    recipe_type=WsFcnRecipe,
    pipeline=build_pipeline,
    folder=Path(__file__).resolve().parent,
    exporters=exporters(),
    released=ReleasedCheckpoint("segmentation_train", check_released_network, build_released_pipeline),
)
