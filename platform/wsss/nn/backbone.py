"""What methods ask of a backbone: five stages that can be run one by one."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

STAGES = 5


class Backbone(Protocol):
    """A feature extractor in five stages.

    Stage 0 is the stem with its pooling (stride 4), stages 1 to 4 are a ResNet's `layer1` to `layer4` or what
    takes their place. `channels[i]` and `strides[i]` describe the output of stage i.
    """

    @property
    def channels(self) -> tuple[int, ...]: ...

    @property
    def strides(self) -> tuple[int, ...]: ...

    def stage(self, index: int, x: Tensor) -> Tensor:
        """Output of stage `index` for the output of the stage before it (the image for stage 0)."""
        ...

    def __call__(self, x: Tensor) -> list[Tensor]: ...


def scaled_channels(channels: int, width: float, divisor: int = 8) -> int:
    """`channels` times `width` rounded to a multiple of `divisor`, and at least `divisor`.

    Never more than a tenth below the exact product (the rule of MobileNetV2). `channels` itself at width 1.
    """
    exact = channels * width
    rounded = max(divisor, int(exact + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * exact else rounded
