"""SSC: spatial structure constraints for weakly supervised semantic segmentation (Chen et al., TIP 2024)."""

from __future__ import annotations

from pathlib import Path

from wsss.method import Method, ReleasedCheckpoint
from wsss_methods.ssc.official import build_released_pipeline, check_released_networks, exporters
from wsss_methods.ssc.pipeline import build_pipeline
from wsss_methods.ssc.recipe import SscRecipe

METHOD = Method(
    name="ssc",
    title="Spatial structure constraints: CAM-driven reconstruction and activation self-modulation",
    citation=(
        "Chen, Yao, Huang, Li, Nie, Tang, Spatial Structure Constraints for Weakly Supervised Semantic "
        "Segmentation, IEEE Transactions on Image Processing, 2024"
    ),
    recipe_type=SscRecipe,
    pipeline=build_pipeline,
    folder=Path(__file__).resolve().parent,
    exporters=exporters(),
    released=ReleasedCheckpoint("segmentation_train", check_released_networks, build_released_pipeline),
)
