"""SegFormer: mix-transformer (MiT) encoder and all-MLP decoder.

Xie et al., "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers", 2021; the
variant of BECO, SegFormer MiT-B2 (fused width 256 instead of the decoder's 768). State-dict names are those of the
official files (`backbone.block1.0.attn.q.weight`, `decoder.linear_c4.proj.weight`,
`classifier.weight`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIT_B2_WIDTHS = (64, 128, 320, 512)
MIT_B2_DEPTHS = (3, 4, 6, 3)


class StochasticDepth(nn.Module):
    """Drop a residual branch per sample with probability `rate` in training; kept ones grow by 1/(1-rate).

    The draw comes from torch's global generator of the device, as dropout does.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return branch
        keep = 1.0 - self.rate
        shape = (branch.shape[0],) + (1,) * (branch.dim() - 1)
        kept = torch.empty(shape, dtype=branch.dtype, device=branch.device).bernoulli_(keep)
        return branch * (kept / keep)


class OverlapPatchEmbed(nn.Module):
    """Strided overlapping convolution and layer norm: (N, C, H, W) -> tokens (N, h*w, width) and (h, w)."""

    def __init__(self, in_channels: int, width: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, kernel, stride=stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(width, eps=1e-5)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        x = self.proj(x)
        size = (x.shape[2], x.shape[3])
        return self.norm(x.flatten(2).transpose(1, 2)), size


class EfficientAttention(nn.Module):
    """Multi-head self-attention whose keys and values are reduced `reduction` times per side."""

    def __init__(self, width: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.reduction = reduction
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        if reduction > 1:
            self.sr = nn.Conv2d(width, width, reduction, stride=reduction)
            self.norm = nn.LayerNorm(width, eps=1e-5)

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        batch, length, width = tokens.shape
        head_width = width // self.heads
        query = self.q(tokens).reshape(batch, length, self.heads, head_width).transpose(1, 2)
        context = tokens
        if self.reduction > 1:
            grid = tokens.transpose(1, 2).reshape(batch, width, *size)
            context = self.norm(self.sr(grid).flatten(2).transpose(1, 2))
        key, value = self.kv(context).reshape(batch, -1, 2, self.heads, head_width).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.proj(attended.transpose(1, 2).reshape(batch, length, width))


class DepthwiseConv(nn.Module):
    """Depthwise 3x3 convolution of tokens on their grid; carries position into the transformer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        batch, _, width = tokens.shape
        grid = tokens.transpose(1, 2).reshape(batch, width, *size)
        return self.dwconv(grid).flatten(2).transpose(1, 2)


class MixFeedForward(nn.Module):
    """Linear, depthwise convolution, exact GELU, linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.dwconv = DepthwiseConv(hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        return self.fc2(F.gelu(self.dwconv(self.fc1(tokens), size)))


class TransformerBlock(nn.Module):
    """Pre-norm attention and feed-forward, each with stochastic depth on its branch."""

    def __init__(self, width: int, heads: int, mlp_ratio: int, reduction: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = EfficientAttention(width, heads, reduction)
        self.drop_path = StochasticDepth(drop_path)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MixFeedForward(width, width * mlp_ratio)

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens), size))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens), size))


class MixTransformer(nn.Module):
    """MiT encoder with four stages at strides 4, 8, 16 and 32.

    `forward` takes images (N, 3, H, W) and returns the four feature maps (N, widths[i], ~H/stride,
    ~W/stride). `drop_path` is the stochastic-depth rate of the last block; rates rise linearly from 0 over
    all blocks.
    """

    def __init__(
        self,
        widths: Sequence[int] = MIT_B2_WIDTHS,
        depths: Sequence[int] = MIT_B2_DEPTHS,
        heads: Sequence[int] = (1, 2, 5, 8),
        reductions: Sequence[int] = (8, 4, 2, 1),
        mlp_ratio: int = 4,
        drop_path: float = 0.1,
    ) -> None:
        super().__init__()
        lengths = {len(widths), len(depths), len(heads), len(reductions)}
        if lengths != {4}:
            raise ValueError(f"MixTransformer has four stages; got {widths=}, {depths=}, {heads=}, {reductions=}")
        for width, count in zip(widths, heads, strict=True):
            if width % count:
                raise ValueError(f"MixTransformer width {width} is not a multiple of its {count} attention heads")
        self.widths = tuple(widths)
        inputs = (3, *widths[:3])
        for i in range(4):
            kernel, stride = (7, 4) if i == 0 else (3, 2)
            setattr(self, f"patch_embed{i + 1}", OverlapPatchEmbed(inputs[i], widths[i], kernel, stride))
        rates = torch.linspace(0, drop_path, sum(depths)).tolist()
        for i in range(4):
            stage_rates, rates = rates[: depths[i]], rates[depths[i] :]
            blocks = [TransformerBlock(widths[i], heads[i], mlp_ratio, reductions[i], r) for r in stage_rates]
            setattr(self, f"block{i + 1}", nn.ModuleList(blocks))
            setattr(self, f"norm{i + 1}", nn.LayerNorm(widths[i], eps=1e-6))
        self.apply(_initialize)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for i in range(1, 5):
            tokens, size = getattr(self, f"patch_embed{i}")(x)
            for block in getattr(self, f"block{i}"):
                tokens = block(tokens, size)
            tokens = getattr(self, f"norm{i}")(tokens)
            x = tokens.transpose(1, 2).reshape(tokens.shape[0], -1, *size).contiguous()
            features.append(x)
        return features


class _LinearEmbedding(nn.Module):
    """Per-position linear layer on a feature map: (N, C, h, w) -> (N, width, h, w)."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_channels, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape[0], -1, *x.shape[2:])


class SegFormerHead(nn.Module):
    """All-MLP decoder: four feature maps -> fused embedding (N, fused_width, H/4, W/4)."""

    def __init__(self, widths: Sequence[int], embed_width: int, fused_width: int, dropout: float) -> None:
        super().__init__()
        for number in (4, 3, 2, 1):
            self.add_module(f"linear_c{number}", _LinearEmbedding(widths[number - 1], embed_width))
        self.linear_fuse = nn.Sequential(
            nn.Conv2d(4 * embed_width, fused_width, 1, bias=False), nn.BatchNorm2d(fused_width), nn.ReLU()
        )
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        size = features[0].shape[2:]
        embedded = [getattr(self, f"linear_c{number}")(features[number - 1]) for number in (4, 3, 2, 1)]
        resized = [F.interpolate(each, size=size, mode="bilinear", align_corners=False) for each in embedded[:3]]
        return self.dropout(self.linear_fuse(torch.cat([*resized, embedded[3]], dim=1)))


class SegFormer(nn.Module):
    """SegFormer MiT-B2 with a 256-channel fused head of BECO; `widths`, `depths` shrink it.

    `forward(images)` takes (N, 3, H, W) float32 ImageNet-normalized images and returns `pre_logits`
    (N, num_classes, H/4, W/4) and `logits` (N, num_classes, H, W), the bilinear upsampling of the former.
    Raises ValueError when the four stages are inconsistent.
    """

    def __init__(
        self,
        num_classes: int = 21,
        widths: Sequence[int] = MIT_B2_WIDTHS,
        depths: Sequence[int] = MIT_B2_DEPTHS,
        heads: Sequence[int] = (1, 2, 5, 8),
        reductions: Sequence[int] = (8, 4, 2, 1),
        embed_width: int = 768,
        fused_width: int = 256,
        drop_path: float = 0.1,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.backbone = MixTransformer(widths, depths, heads, reductions, drop_path=drop_path)
        self.decoder = SegFormerHead(widths, embed_width, fused_width, dropout)
        self.classifier = nn.Conv2d(fused_width, num_classes, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pre_logits = self.classifier(self.decoder(self.backbone(images)))
        logits = F.interpolate(pre_logits, size=images.shape[2:], mode="bilinear", align_corners=False)
        return pre_logits, logits


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
