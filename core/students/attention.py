"""Parts of transformers that work on maps (B, C, h, w): attention, its norm and its positions.

Every projection is a 1x1 convolution: the INT8 layers of a network are then convolutions everywhere, and channels are at one place.
Attention is written out, since torch's fused paths never call the layers inside them.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD_DIM = 16

PositionKind = Literal["learned", "sincos"]


class Attention(nn.Module):
    """Multi-head attention among the positions of a map; (B, C, h, w) -> the same.

    The number of heads follows from the channels of `query`, and `head_dim` is fixed, so pruning removes whole heads
    (core/prune_attention.py). The two products and the softmax stay in float.

    References: Vaswani et al. 2017 (arXiv:1706.03762), section 3.2.
    """

    def __init__(self, channels: int, head_dim: int = HEAD_DIM) -> None:
        super().__init__()
        self.head_dim = head_dim
        inner = max(1, channels // head_dim) * head_dim
        self.query = nn.Conv2d(channels, inner, 1)
        self.key = nn.Conv2d(channels, inner, 1)
        self.value = nn.Conv2d(channels, inner, 1)
        self.out = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        queries, keys, values = (self.heads(layer(x)) for layer in (self.query, self.key, self.value))
        # scaled before the product, which half precision could not hold
        scores = torch.matmul((queries * self.head_dim**-0.5).transpose(2, 3), keys)
        mixed = torch.matmul(values, scores.softmax(3).transpose(2, 3))
        out: Tensor = self.out(mixed.reshape(x.shape[0], -1, x.shape[2], x.shape[3]))
        return out

    def heads(self, x: Tensor) -> Tensor:
        """(B, heads * head_dim, h, w) -> (B, heads, head_dim, h * w)."""
        return x.reshape(x.shape[0], -1, self.head_dim, x.shape[2] * x.shape[3])


class MapNorm(nn.Module):
    """LayerNorm over the channels of each position; (B, C, h, w) -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x.permute(0, 2, 3, 1))
        return out.permute(0, 3, 1, 2)


class Positions(nn.Module):
    """Adds one vector per row and one per column; (B, C, h, w) -> the same. Built for maps of `side`, others stretch the vectors.

    Two vectors of each instead of one per position: 2 * side * C numbers in the file in place of side^2 * C. `sincos` is fixed: half of
    the channels have the sines and cosines of the row, half those of the column. Fixed positions are frozen parameters, not buffers, so
    that pruning cuts their channels.

    References: Vaswani et al. 2017 (arXiv:1706.03762), section 3.5; Ho et al. 2019 (arXiv:1912.12180), axial positions.
    """

    def __init__(self, channels: int, side: int, kind: PositionKind) -> None:
        super().__init__()
        # (side, C): Torch-Pruning cuts the last dimension of a parameter
        rows, columns = sincos(side, channels) if kind == "sincos" else (torch.randn(side, channels) * 0.02 for _ in range(2))
        self.rows = nn.Parameter(rows, requires_grad=kind == "learned")
        self.columns = nn.Parameter(columns, requires_grad=kind == "learned")

    def forward(self, x: Tensor) -> Tensor:
        return x + (stretched(self.rows, x.shape[2]).unsqueeze(2) + stretched(self.columns, x.shape[3]).unsqueeze(1))


@torch.fx.wrap  # a trace keeps the call: the branch is taken when the size is known
def stretched(vectors: Tensor, side: int) -> Tensor:
    """Vectors (n, C) -> (C, side), linear in between where a map has another size than it was built for: early images may be smaller."""
    if vectors.shape[0] == side:
        return vectors.t()
    return F.interpolate(vectors.t().unsqueeze(0), size=side, mode="linear", align_corners=False).squeeze(0)


def sincos(side: int, channels: int) -> tuple[Tensor, Tensor]:
    """Sines and cosines (side, channels) of the rows, and of the columns: each is zero where the other is not."""
    quarter = channels // 4
    rates = 100.0 ** (-torch.arange(quarter) / quarter)  # maps have tens of positions, not the ten thousand of a text
    angles = torch.arange(side)[:, None] * rates
    waves = torch.cat([angles.sin(), angles.cos()], 1)
    rest = torch.zeros(side, channels - waves.shape[1])
    return torch.cat([waves, rest], 1), torch.cat([rest, waves], 1)


def heads_wide(channels: int, width: float) -> int:
    """`channels * width`, rounded to whole heads of `HEAD_DIM`, at least one of them."""
    return max(1, int(channels * width / HEAD_DIM + 0.5)) * HEAD_DIM


def initialise_attention(model: nn.Module) -> None:
    """Xavier for the projections of every `Attention`: scores of the order of one, so that the softmax starts soft."""
    for module in model.modules():
        if isinstance(module, Attention):
            for layer in (module.query, module.key, module.value, module.out):
                nn.init.xavier_uniform_(layer.weight)
