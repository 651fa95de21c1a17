"""The coded bits in the loss: exact on the grid, and training lowers them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from core.quantise.integer import best_scales, limits, per_channel, to_integers
from core.quantise.lsq import grids, lsq
from core.quantise.rate import coded_bits, rate
from core.quantise.setting import Penalty, Setting
from tests.tiny_nets import Residual, plan_of, settled, train


def weight() -> Tensor:
    return torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))


def entropy_bits(values: Tensor) -> float:
    shares = values.unique(return_counts=True)[1].double() / values.numel()
    return float(-(shares * shares.log2()).sum() * values.numel())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_on_the_grid_the_bits_are_the_entropy_of_the_integers(bits: int) -> None:
    integers = to_integers(weight(), best_scales(weight(), bits), bits)
    found = coded_bits(integers.dequantised(), integers.scales, *limits(bits))
    assert float(found) == pytest.approx(entropy_bits(integers.values), rel=1e-4)


def reference(latent: Tensor, step: Tensor, low: int, high: int) -> Tensor:
    """Lengths interpolated between neighbours, weight by weight, by autograd."""
    ratio = latent / per_channel(step, latent)
    level = ratio.detach().round().clamp(low, high)
    lengths = [torch.log2(latent.numel() / max(0.5, float((level == n).sum())) * torch.ones(())) for n in range(low, high + 1)]
    table = torch.stack(lengths)
    kept = ratio.clamp(low, high)
    below = kept.detach().floor().clamp(low, high - 1)
    part = kept - below
    index = (below - low).long()
    return ((1 - part) * table[index] + part * table[index + 1]).sum()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_gradients_are_those_of_the_interpolation_and_the_step_s_has_lsq_s_scale(bits: int) -> None:
    low, high = limits(bits)
    scales = best_scales(weight(), bits) * 0.97
    latent, step = weight().requires_grad_(), scales.clone().requires_grad_()
    coded_bits(latent, step, low, high).backward()
    same, other = weight().requires_grad_(), scales.clone().requires_grad_()
    expected = reference(same, other, low, high)
    expected.backward()
    assert latent.grad is not None and same.grad is not None and step.grad is not None and other.grad is not None  # noqa: PT018
    torch.testing.assert_close(coded_bits(weight(), scales, low, high), expected.detach(), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(latent.grad, same.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(step.grad, other.grad / (36 * high) ** 0.5, rtol=1e-3, atol=1e-3)


def network() -> nn.Module:
    torch.manual_seed(0)
    return settled(Residual())


def bits_of() -> dict[str, int]:
    return {layer.name: 4 for layer in plan_of(network()).layers}


def test_a_weight_of_zero_is_lsq() -> None:
    plain, zero = lsq(network(), bits_of(), train), rate(network(), bits_of(), train, Setting(rate_weight=0.0))
    assert all(torch.equal(plain[name].values, zero[name].values) for name in plain)


def test_training_for_the_rate_lowers_the_entropy_of_the_integers_and_more_weight_lowers_it_more() -> None:
    found = [rate(network(), bits_of(), train, Setting(rate_weight=weight)) for weight in (0.0, 1.0, 4.0)]
    coded = [sum(entropy_bits(each.values) for each in integers.values()) for integers in found]
    assert coded[2] < coded[1] < coded[0]


def test_the_rate_is_in_the_first_part_of_a_training_alone_and_has_its_weight_over_the_whole_of_it() -> None:
    model, seen = network(), {}

    def watched(learner: nn.Module, penalty: Penalty | None = None) -> nn.Module:
        assert penalty is not None
        seen.update({step: penalty(step / 30).item() for step in range(1, 31)})
        weights = [(latent.detach(), grid) for latent, grid in grids(learner)]
        coded = sum(coded_bits(latent, grid.step, grid.low, grid.high).item() for latent, grid in weights)
        seen[0] = coded / sum(latent.numel() for latent, _ in weights)
        return learner

    rate(model, bits_of(), watched, Setting(rate_weight=2.0))
    mean = seen.pop(0)
    assert [step for step, value in seen.items() if value] == list(range(1, 21))
    assert sum(seen.values()) / 30 == pytest.approx(2.0 * mean, rel=1e-5)


def test_a_network_of_sixteen_bits_has_no_grid_to_shape() -> None:
    found = rate(network(), dict.fromkeys(bits_of(), 16), train, Setting(rate_weight=1.0))
    assert {each.bits for each in found.values()} == {16}


def test_weights_that_are_no_numbers_any_more_end_no_step() -> None:
    """Whoever trains looks at the loss once an epoch: until then it is to be wrong, and not an error of its own."""
    latent = torch.full((2, 3), torch.nan, requires_grad=True)
    assert coded_bits(latent, torch.ones(2), *limits(3)).isfinite()
