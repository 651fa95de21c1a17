"""What a layer's weight can be in the file: integers on a grid (`integer.py`), indices into a codebook, or plain floats.

All have `bits`, `dequantised()`, `scaled(factor)` for the batch norm that is folded in, and `as_kernel()`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from core.quantise.integer import IntegerWeight, per_channel

LARGEST_HALF = 65504.0


@dataclass(frozen=True)
class CodebookWeight:
    """w = scales[c] * codebook[index]: `indices` int16 (out, ...) in [0, k), `codebook` float32 (k,), k <= 2^bits, in rising order.

    `scales` float32 (out,) may be negative; codebook and scales are representable in float16, so their product is exact in float32.
    """

    indices: Tensor
    codebook: Tensor
    scales: Tensor
    bits: int

    def dequantised(self) -> Tensor:
        """float32, the shape of `indices`."""
        return self.codebook[self.indices.long()] * per_channel(self.scales, self.indices)

    def scaled(self, factor: Tensor) -> CodebookWeight:
        """Times `factor` (out,)."""
        return replace(self, scales=half(self.scales * factor))

    def as_kernel(self) -> CodebookWeight:
        """Of a linear layer: as a 1x1 convolution's, (out, in, 1, 1)."""
        return replace(self, indices=self.indices[..., None, None])


@dataclass(frozen=True)
class FloatWeight:
    """`values` float32 (out, ...), kept as they are."""

    values: Tensor
    bits: int = 32

    @property
    def scales(self) -> Tensor:
        """Ones (out,)."""
        return torch.ones(len(self.values))

    def dequantised(self) -> Tensor:
        """The values."""
        return self.values

    def scaled(self, factor: Tensor) -> FloatWeight:
        """Times `factor` (out,)."""
        return replace(self, values=self.values * per_channel(factor, self.values))

    def as_kernel(self) -> FloatWeight:
        """Of a linear layer: as a 1x1 convolution's, (out, in, 1, 1)."""
        return replace(self, values=self.values[..., None, None])


StoredWeight = IntegerWeight | CodebookWeight | FloatWeight


def half(values: Tensor) -> Tensor:
    """The nearest float32 values that float16 holds."""
    return values.detach().clamp(-LARGEST_HALF, LARGEST_HALF).half().float()
