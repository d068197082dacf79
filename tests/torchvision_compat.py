"""The one place that imports torchvision.

A torchvision wheel built for CUDA beside a CPU build of torch fails to import because two operators are not
registered. Declaring them is enough for everything that does not call them.
"""

from __future__ import annotations

from types import ModuleType

import torch

_DECLARATIONS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
# The declarations live as long as this object does.
_library: torch.library.Library | None = None


def import_torchvision() -> ModuleType:
    """The torchvision module; declares its missing operators first when the plain import fails."""
    global _library
    try:
        import torchvision
    except RuntimeError as error:
        if "does not exist" not in str(error) or _library is not None:
            raise
        _library = torch.library.Library("torchvision", "FRAGMENT")
        for declaration in _DECLARATIONS:
            _library.define(declaration)
        import torchvision
    return torchvision
