"""The integer grid of weights: symmetric, per output channel, 2-8 or 16 bits, scales that fit a half float.

w ~ scale[c] * n with n in [-2^(b-1), 2^(b-1) - 1]. The packed file keeps two bytes per channel, so scales are rounded to float16: before
integers are made of weights, so that nothing is lost by it, and after those that a network was trained with, so that they stay.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

SMALLEST_SCALE = 2.0**-24
"""The smallest positive float16; a channel whose weights are all zero gets it."""
FEW_BITS = 5
"""Up to as many `best_scales` tries every level: so few cost little, and a wrong one much."""


@dataclass(frozen=True)
class IntegerWeight:
    """`values` int16 (out, ...), `scales` float32 (out,), representable in float16 when `bits` <= 8."""

    values: Tensor
    scales: Tensor
    bits: int

    def dequantised(self) -> Tensor:
        """float32, the shape of `values`."""
        return self.values.float() * per_channel(self.scales, self.values)

    def scaled(self, factor: Tensor) -> IntegerWeight:
        """Times `factor` (out,): scales take its size, integers its sign; the lowest integer has no opposite and is clipped."""
        signed = self.values.float() * per_channel(torch.sign(factor), self.values)
        scales = storable((self.scales * factor.abs()).detach(), self.bits)
        return to_integers(signed * per_channel(scales, signed), scales, self.bits)

    def as_kernel(self) -> IntegerWeight:
        """Of a linear layer: as a 1x1 convolution's, (out, in, 1, 1)."""
        return replace(self, values=self.values[..., None, None])


def limits(bits: int) -> tuple[int, int]:
    """(lowest, highest) integer of `bits` bits in two's complement."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def per_channel(scales: Tensor, like: Tensor) -> Tensor:
    """View (out,) so that it broadcasts over (out, ...)."""
    return scales.view(-1, *[1] * (like.ndim - 1))


def storable(scales: Tensor, bits: int) -> Tensor:
    """The nearest scales that the packed file keeps in full: float16 up to 8 bits, float32 for 16."""
    if bits > 8:
        return scales.float().clamp_min(torch.finfo(torch.float32).tiny)
    return scales.clamp(SMALLEST_SCALE, 65504.0).half().float()


def to_integers(weight: Tensor, scales: Tensor, bits: int) -> IntegerWeight:
    """Round `weight` (out, ...) to the grid with `scales` (out,), rounded to what the file keeps before."""
    kept = storable(scales.detach(), bits)
    return IntegerWeight(on_levels(weight, kept, bits), kept, bits)


def as_trained(weight: Tensor, scales: Tensor, bits: int) -> IntegerWeight:
    """The levels of `weight` (out, ...) on the grid with these very `scales` (out,), which the file then rounds.

    Training leaves weights in numbers right between two levels. There the file's rounding of the scale, by 2^-12 of it, would choose
    other ones than the network was trained with.
    """
    return IntegerWeight(on_levels(weight, scales.detach(), bits), storable(scales.detach(), bits), bits)


def on_levels(weight: Tensor, scales: Tensor, bits: int) -> Tensor:
    """int16 (out, ...): the nearest level of every weight, within the limits."""
    low, high = limits(bits)
    return torch.round(weight.detach() / per_channel(scales, weight)).clamp(low, high).to(torch.int16)


def largest_of(rows: Tensor, share: float) -> Tensor:
    """Per row of (rows, n) the magnitude that `share` in (0, 1] of the row does not exceed: 1.0 is the largest.

    A row that is zero but for fewer than that has its largest: all that it says is in those few.
    """
    magnitudes = rows.abs()
    largest = magnitudes.amax(1)
    if share >= 1.0:
        return largest
    found = magnitudes.kthvalue(max(1, math.ceil(round(share * rows.shape[1], 6))), dim=1).values
    return torch.where(found > 0, found, largest)


def best_scales(weight: Tensor, bits: int, steps: int = 60) -> Tensor:
    """Scales (out,) of least squared rounding error, on a grid of shrink factors 1.0 down to 0.2 of the largest weight.

    And, up to FEW_BITS, of those with which the largest weight is any other level: what is on a grid already stays as it is, also where its
    outermost levels are not used. With more bits such a channel gets another grid, of about a quarter of the grid's own rounding noise.
    """
    low, high = limits(bits)
    flat = weight.detach().flatten(1).float()
    if bits > 8:
        return storable(flat.abs().amax(1) / high, bits)
    largest = flat.abs().amax(1).clamp_min(SMALLEST_SCALE * high)
    best, best_error = largest / high, torch.full_like(largest, torch.inf)
    levels = range(-low, 0, -1) if bits <= FEW_BITS else (-low,)
    for factor in (*torch.linspace(1.0, 0.2, steps).tolist(), *(high / level for level in levels)):
        scales = storable(factor * largest / high, bits)
        rounded = torch.round(flat / scales[:, None]).clamp(low, high) * scales[:, None]
        error = (rounded - flat).square().sum(1)
        best = torch.where(error < best_error, scales, best)
        best_error = torch.minimum(error, best_error)
    return best
