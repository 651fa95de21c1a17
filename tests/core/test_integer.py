"""Laws of the integer grid."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from core.candidate import WEIGHT_BITS
from core.quantise.integer import best_scales, limits, storable, to_integers

every_depth = pytest.mark.parametrize("bits", WEIGHT_BITS)


def weight(seed: int = 0, scale: float = 0.1) -> Tensor:
    return scale * torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(seed))


@every_depth
def test_integers_stay_within_their_bits_and_both_ends_are_used(bits: int) -> None:
    low, high = limits(bits)
    assert high - low + 1 == 2**bits
    rounded = to_integers(100.0 * weight(), torch.full((6,), 1e-3), bits)
    if bits < 16:
        assert (int(rounded.values.min()), int(rounded.values.max())) == (low, high)
    assert rounded.values.dtype == torch.int16


@every_depth
def test_rounding_twice_changes_nothing(bits: int) -> None:
    first = to_integers(weight(), best_scales(weight(), bits), bits)
    second = to_integers(first.dequantised(), first.scales, bits)
    assert torch.equal(first.values, second.values)
    assert torch.equal(first.scales, second.scales)


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
@pytest.mark.parametrize("sign", [1, -1])
def test_what_is_on_a_grid_keeps_it_whichever_of_its_levels_are_used(bits: int, sign: int) -> None:
    """As after the pruning of a rounded network, which may take the largest weights away."""
    low, high = limits(bits)
    scales = storable(torch.rand(high, generator=torch.Generator().manual_seed(0)) + 0.1, bits)
    integers = torch.stack([sign * torch.linspace(-1, 1, 9).mul(level).round() for level in range(1, high + 1)]).clamp(low, high)
    weight = integers * scales[:, None]
    again = to_integers(weight, best_scales(weight, bits), bits)
    torch.testing.assert_close(again.dequantised(), weight, rtol=1e-6, atol=0)


@every_depth
def test_dequantising_is_the_integer_times_its_channel_s_scale(bits: int) -> None:
    rounded = to_integers(weight(), best_scales(weight(), bits), bits)
    torch.testing.assert_close(rounded.dequantised()[3], rounded.values[3].float() * rounded.scales[3])


@pytest.mark.parametrize("seed", range(5))
def test_the_error_falls_with_every_bit(seed: int) -> None:
    kept = weight(seed)
    errors = [(to_integers(kept, best_scales(kept, bits), bits).dequantised() - kept).square().mean() for bits in WEIGHT_BITS]
    assert all(more < fewer for fewer, more in pairwise(errors))


def test_sixteen_bits_are_all_but_the_identity() -> None:
    rounded = to_integers(weight(), best_scales(weight(), 16), 16)
    torch.testing.assert_close(rounded.dequantised(), weight(), rtol=0, atol=float(weight().abs().max()) / 2**15)


@pytest.mark.parametrize("size", [1e-3, 1e-5, 1e-8, 1e-20])
def test_sixteen_bits_are_all_but_the_identity_of_small_weights_too(size: float) -> None:
    small = size * weight()
    rounded = to_integers(small, best_scales(small, 16), 16)
    torch.testing.assert_close(rounded.dequantised(), small, rtol=0, atol=float(small.abs().max()) / 2**15)


@every_depth
def test_no_weight_inside_the_grid_moves_by_more_than_half_a_step(bits: int) -> None:
    scales = storable(weight().flatten(1).abs().amax(1) / limits(bits)[1], bits)
    moved = (to_integers(weight(), scales, bits).dequantised() - weight()).abs()
    assert (moved <= scales.view(-1, 1, 1, 1) * 0.502).all()


@pytest.mark.parametrize("bits", [b for b in WEIGHT_BITS if b <= 8])
@pytest.mark.parametrize("scale", [1e-12, 1e-4, 1.0, 1e6, 1e9])
def test_scales_fit_a_half_float_and_are_never_zero(bits: int, scale: float) -> None:
    scales = to_integers(weight(scale=scale), best_scales(weight(scale=scale), bits), bits).scales
    assert torch.equal(scales.half().float(), scales)
    assert torch.isfinite(scales).all()
    assert (scales > 0).all()


@every_depth
def test_a_channel_of_zeros_stays_zero(bits: int) -> None:
    empty = weight()
    empty[2] = 0.0
    rounded = to_integers(empty, best_scales(empty, bits), bits)
    assert (rounded.values[2] == 0).all()
    assert torch.isfinite(rounded.dequantised()).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_best_scale_beats_the_largest_weight_s(bits: int) -> None:
    def error(scales: Tensor) -> Tensor:
        return (to_integers(weight(), scales, bits).dequantised() - weight()).square().flatten(1).sum(1)

    largest = weight().flatten(1).abs().amax(1) / limits(bits)[1]
    assert (error(best_scales(weight(), bits)) <= error(largest) * 1.01).all()


@every_depth
def test_every_channel_has_a_scale_of_its_own(bits: int) -> None:
    one = weight()
    other = one.clone()
    other[0] *= 10.0
    assert torch.equal(best_scales(one, bits)[1:], best_scales(other, bits)[1:])
    torch.testing.assert_close(best_scales(other, bits)[0], 10.0 * best_scales(one, bits)[0], rtol=2**-10, atol=0)  # of a half float
