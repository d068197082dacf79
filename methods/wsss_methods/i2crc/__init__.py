"""I2CRC: saliency-guided inter- and intra-class relation constraints (Chen et al., TMM 2023)."""

from __future__ import annotations

from pathlib import Path

from wsss.method import Method, ReleasedCheckpoint
from wsss_methods.i2crc.official import check_released_network, exporters
from wsss_methods.i2crc.pipeline import build_pipeline, build_released_pipeline
from wsss_methods.i2crc.recipe import I2crcRecipe

METHOD = Method(
    name="i2crc",
    title="Saliency-guided inter- and intra-class relations, and two rounds of segmentation with refined labels",
    citation=(
        "Chen, Yao, Zhang, Wang, Xie, Shen, Saliency Guided Inter- and Intra-Class Relation Constraints for Weakly "
        "Supervised Semantic Segmentation, IEEE Transactions on Multimedia, vol. 25, pp. 1727-1737, 2023"
    ),
    recipe_type=I2crcRecipe,
    pipeline=build_pipeline,
    folder=Path(__file__).resolve().parent,
    exporters=exporters(),
    released=ReleasedCheckpoint("segmentation_train", check_released_network, build_released_pipeline),
)
