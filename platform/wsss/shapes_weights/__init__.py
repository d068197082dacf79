"""Small backbones trained to classify generated pictures of single objects: what ImageNet is to the published networks.

They let the recipes `demo` start where the published ones start, from features that do not depend on the run's seed.
`wsss.shapes_weights.training` makes the files; their names in a state dict are torchvision's, floats are float16.
"""

from __future__ import annotations

from pathlib import Path

# Row of the table of weight files -> width of the backbone.
SHAPES_WEIGHTS = {"resnet18": 0.25, "mobilenet_v2": 0.35}


def shapes_file(name: str) -> Path:
    """File of a row of `SHAPES_WEIGHTS`."""
    return Path(__file__).parent / f"{name}-{SHAPES_WEIGHTS[name]:g}.pth"


def is_shapes_file(path: Path) -> bool:
    """Whether it is one of these files."""
    return path.parent == Path(__file__).parent
