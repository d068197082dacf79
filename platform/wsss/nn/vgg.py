"""VGG-19 as a fixed loss network in five slices (Simonyan and Zisserman, 2015)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from wsss.nn.backbone import scaled_channels

# Convolution channels up to relu5_1 and poolings ("M"), by torchvision's index in `features`.
_LAYERS: dict[int, int | str] = {
    0: 64, 2: 64, 4: "M", 5: 128, 7: 128, 9: "M", 10: 256, 12: 256, 14: 256, 16: 256, 18: "M",
    19: 512, 21: 512, 23: 512, 25: 512, 27: "M", 28: 512,
}  # fmt: skip
_SLICES = ((0, 2), (2, 7), (7, 12), (12, 21), (21, 30))


class Vgg19Slices(nn.Module):
    """Features after relu1_1, relu2_1, relu3_1, relu4_1, relu5_1 at strides 1, 2, 4, 8, 16.

    Parameters keep torchvision's index: `slice2.5.weight` is `features.5.weight`. They are not trained.
    """

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        channels = 3
        for number, (start, end) in enumerate(_SLICES, 1):
            part = nn.Sequential()
            for index in range(start, end):
                layer = _LAYERS.get(index)
                if layer is None:
                    part.add_module(str(index), nn.ReLU(inplace=True))
                elif isinstance(layer, str):
                    part.add_module(str(index), nn.MaxPool2d(2, 2))
                else:
                    out_channels = scaled_channels(layer, width)
                    part.add_module(str(index), nn.Conv2d(channels, out_channels, 3, padding=1))
                    channels = out_channels
            self.add_module(f"slice{number}", part)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, 3, H, W) -> five feature maps, fine to coarse."""
        outputs = []
        for number in range(1, len(_SLICES) + 1):
            x = getattr(self, f"slice{number}")(x)
            outputs.append(x)
        return outputs


def slices_from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename torchvision's `vgg19` state dict (`features.5.weight`) to slices, the classifier dropped."""
    renamed = {}
    for name, value in state.items():
        if not name.startswith("features."):
            continue
        index = int(name.split(".")[1])
        for number, (start, end) in enumerate(_SLICES, 1):
            if start <= index < end:
                renamed[f"slice{number}.{name.removeprefix('features.')}"] = value
    return renamed
