"""The plain CAM network that the official code calls "bsl": only its reference outputs need it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.nn.backbones import Taps
from wsss_methods.wsfcn.networks import official_name


class CamBaseline(nn.Module):
    """The plain CAM network.

    Scores: channel dropout, global mean, 1x1 classifier. Masks: the classifier at every position, upsampled,
    rectified, divided by each class's maximum, behind a constant background.
    """

    def __init__(self, backbone: str, num_classes: int, width: float = 1.0, background: float = 0.1) -> None:
        super().__init__()
        self.background = background
        self.backbone = Taps(backbone, width)
        self.dropout = nn.Dropout2d(0.5)
        self.fc8 = nn.Conv2d(self.backbone.deep_channels, num_classes - 1, 1, bias=False)
        nn.init.xavier_uniform_(self.fc8.weight)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W) -> scores (N, K) and class maps (N, K, h, w) of the K foreground classes."""
        deep = self.backbone(image)[1]
        scores = self.fc8(self.dropout(deep).mean(dim=(2, 3), keepdim=True))[:, :, 0, 0]
        return scores, self.fc8(deep)

    def masks(self, class_maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Class maps (N, K, h, w) -> masks (N, K + 1, *size) in [0, 1], background first."""
        maps = F.interpolate(class_maps, size=size, mode="bilinear", align_corners=True).relu()
        maps = maps / (1e-5 + maps.amax(dim=(2, 3), keepdim=True))
        return torch.cat([torch.full_like(maps[:, :1], self.background), maps], dim=1)


def official_baseline_state_dict(network: CamBaseline) -> dict[str, Tensor]:
    """The baseline's state dict: published names, the classifier under all three of its names."""
    state = {official_name(name): value for name, value in network.state_dict().items()}
    for alias in ("cls_branch.2.weight", "mask_branch.0.weight"):
        state[alias] = state["fc8.weight"]
    return state
