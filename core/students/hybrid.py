"""Hybrids of convolution and attention: in series (a CNN makes the tokens of a transformer) and in parallel (both on one map)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from core.errors import UserError
from core.students.attention import HEAD_DIM, Attention, MapNorm, PositionKind, Positions, heads_wide, initialise_attention
from core.students.common import check_arguments, classify, initialise, scaled

KINDS = ("learned", "sincos")
MLP_RATIO = 2


class TransformerBlock(nn.Module):
    """Attention, then two 1x1 convolutions with a ReLU between, each on the normed map and added to it; (B, C, h, w) -> the same.

    ReLU in place of GELU: it joins the convolution before it in INT8, and what follows it takes the unsigned grid.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = MapNorm(channels)
        self.attention = Attention(channels)
        self.norm2 = MapNorm(channels)
        self.up = nn.Conv2d(channels, channels * MLP_RATIO, 1)
        self.relu = nn.ReLU()
        self.down = nn.Conv2d(channels * MLP_RATIO, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(self.relu(self.up(self.norm2(x))))


class HybridSerial(nn.Module):
    """conv3x3-BN-ReLU per entry of `stages`, all but the first with stride 2; every position of their map is a token, there is no class
    token; then `depth` transformer blocks, a last norm and the linear head.

    Channels of `stages` at width 1; the last one is rounded to whole heads. References: Hassani et al. 2021 (arXiv:2104.05704), CCT, with
    the mean over tokens in place of sequence pooling.
    """

    def __init__(
        self,
        *,
        classes: int,
        channels: int,
        image_size: int,
        width: float,
        stages: Sequence[int] = (32, 64, 128),
        depth: int = 3,
        positions: PositionKind = "learned",
    ) -> None:
        super().__init__()
        check_shape("hybrid_serial", stages, depth)
        if positions not in KINDS:
            raise UserError(f"positions must be one of {', '.join(KINDS)}, but got {positions!r} (hybrid_serial)")
        strides = [1, *[2] * (len(stages) - 1)]
        check_arguments("hybrid_serial", classes=classes, channels=channels, image_size=image_size, width=width, strides=strides)
        counts = [*(scaled(count, width) for count in stages[:-1]), heads_wide(stages[-1], width)]
        self.stem = nn.Sequential(
            *(convolution(before, after, stride) for before, after, stride in zip([channels, *counts], counts, strides, strict=False))
        )
        side = image_size
        for stride in strides:
            side = -(-side // stride)
        self.positions = Positions(counts[-1], side, positions)
        self.blocks = nn.Sequential(*(TransformerBlock(counts[-1]) for _ in range(depth)))
        self.norm = MapNorm(counts[-1])
        self.classifier = nn.Linear(counts[-1], classes)
        initialise(self)
        initialise_attention(self)

    def features(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, C, ceil(H / s), ceil(W / s)) with s = 2 ** (stages - 1): the tokens, back on their map."""
        tokens: Tensor = self.norm(self.blocks(self.positions(self.stem(x))))
        return tokens.contiguous()  # the mean over a transposed map exports as a gather from its memory

    def forward(self, x: Tensor) -> Tensor:
        return classify(self.classifier, self.features(x))


class ParallelBlock(nn.Module):
    """The map, its convolution and its attention, summed, then ReLU; (B, C, h, w) -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.norm = MapNorm(channels)
        self.attention = Attention(channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(x + self.bn(self.conv(x)) + self.attention(self.norm(x)))
        return out


class HybridParallel(nn.Module):
    """A stem, then a conv3x3-BN-ReLU with stride 2 per entry of `stages`; all but the first are followed by `depth` parallel blocks.

    Attention costs the square of the positions, so the first, finest map has none. Channels of `stages` at width 1; those with attention
    are rounded to whole heads. After Conformer (Peng et al. 2021, arXiv:2105.03889), whose two branches have maps of their own; here they
    share one, so that nothing has to be resampled.
    """

    def __init__(
        self, *, classes: int, channels: int, image_size: int, width: float, stages: Sequence[int] = (32, 64, 128), depth: int = 2
    ) -> None:
        super().__init__()
        check_shape("hybrid_parallel", stages, depth)
        strides = [2] * len(stages)
        check_arguments("hybrid_parallel", classes=classes, channels=channels, image_size=image_size, width=width, strides=strides)
        fine = scaled(stages[0], width)
        layers: list[nn.Module] = [convolution(channels, fine, 1), convolution(fine, fine, 2)]
        before = fine
        for count in stages[1:]:
            after = heads_wide(count, width)
            layers += [convolution(before, after, 2), *(ParallelBlock(after) for _ in range(depth))]
            before = after
        self.body = nn.Sequential(*layers)
        self.classifier = nn.Linear(before, classes)
        initialise(self)
        initialise_attention(self)

    def features(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, C, ceil(H / s), ceil(W / s)) with s = 2 ** stages, after the last ReLU."""
        out: Tensor = self.body(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        return classify(self.classifier, self.features(x))


def convolution(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """conv3x3-BN-ReLU."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def check_shape(student: str, stages: Sequence[int], depth: int) -> None:
    """UserError for stages without a map or a head in them, or without a block."""
    if len(stages) < 2 or min(stages) < 1 or stages[-1] < HEAD_DIM:
        raise UserError(f"{student} needs at least 2 stages, the last of at least {HEAD_DIM} channels (one head), but got {list(stages)}")
    if depth < 1:
        raise UserError(f"{student} needs a depth of at least 1 block, but got {depth}")
