"""Ranges of a grid, and biases that take back what rounding shifts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from core.compress import as_stored, calibrate
from core.config import PtqConfig, QuantiseConfig, RangeConfig
from core.quantise.graph import build_graph
from core.quantise.integer import largest_of, limits, to_integers
from core.quantise.layers import activation_quantisers, integer_layers
from core.quantise.ptq import correct_biases, keep_float, ptq, range_scales
from core.quantise.setting import Setting
from tests.tiny_nets import SHAPE, Residual, images, plan_of, quantised, settled

MINMAX = RangeConfig(range="minmax")


def weight() -> Tensor:
    return torch.randn(6, 40, 3, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_minmax_clips_nothing_above_and_puts_the_largest_weight_on_the_highest_level(bits: int) -> None:
    scales = range_scales(weight(), bits, MINMAX)
    torch.testing.assert_close(scales * limits(bits)[1], weight().flatten(1).abs().amax(1))


def test_a_percentile_of_a_hundred_is_minmax_and_a_smaller_one_leaves_out_its_share() -> None:
    whole = range_scales(weight(), 4, RangeConfig(range="percentile", percentile=100.0))
    assert torch.equal(whole, range_scales(weight(), 4, MINMAX))
    limit = range_scales(weight(), 4, RangeConfig(range="percentile", percentile=90.0)) * 7
    beyond = (weight().flatten(1).abs() > limit[:, None] * 1.0001).float().mean(1)
    torch.testing.assert_close(beyond, torch.full((6,), 0.1), rtol=0, atol=0.005)


def test_the_least_squared_error_is_least_among_the_ranges() -> None:
    def error(rule: RangeConfig) -> float:
        return float((to_integers(weight(), range_scales(weight(), 3, rule), 3).dequantised() - weight()).norm())

    others = [MINMAX, *(RangeConfig(range="percentile", percentile=share) for share in (90.0, 99.0, 99.9))]
    assert all(error(RangeConfig()) <= error(rule) * 1.001 for rule in others)


def test_the_setting_s_rule_is_the_one_that_ptq_takes() -> None:
    torch.manual_seed(0)
    model = settled(Residual())
    setting = Setting(QuantiseConfig(ptq=PtqConfig(range="minmax")))
    found = ptq(model, {"conv1": 4}, lambda network: network, setting)["conv1"]
    largest = model.get_submodule("conv1").weight.detach().flatten(1).abs().amax(1)
    torch.testing.assert_close(found.scales * 7, largest, rtol=1e-3, atol=0)


@pytest.mark.parametrize("share", [0.5, 0.99, 1.0])
def test_the_share_of_a_row_is_not_exceeded(share: float) -> None:
    rows = weight().flatten(1)
    within = (rows.abs() <= largest_of(rows, share)[:, None]).float().mean(1)
    assert (within >= share).all()
    assert (within <= share + 2 / rows.shape[1]).all()


def test_activations_take_the_rule_too() -> None:
    torch.manual_seed(0)
    model = settled(Residual())
    scales = {}
    for rule in (MINMAX, RangeConfig(range="percentile", percentile=99.0), RangeConfig(range="percentile", percentile=50.0)):
        graph = quantised(model, plan_of(model))
        calibrate(graph, images(64), rule)
        scales[rule] = torch.stack([point.scale for point in activation_quantisers(graph)])
    most, some, half = scales.values()
    assert (most >= some).all()
    assert (some > half).all()


@pytest.mark.parametrize("bits", [2, 3])
def test_after_the_correction_every_channel_has_the_mean_of_the_float_network(bits: int) -> None:
    torch.manual_seed(0)
    model, x = settled(Residual()), images(64)
    plan = plan_of(model, bits=bits, execution="float")  # type: ignore[arg-type]
    names = {layer.name: bits for layer in plan.layers}
    graph = build_graph(model, ptq(model, names, lambda network: network), plan, "uint8_relu", SHAPE)
    reference = build_graph(model, keep_float(model, names, lambda network: network), as_stored(plan, "float"), "uint8_relu", SHAPE)

    def means(of: nn.Module) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        handles = [
            layer.register_forward_hook(lambda _, __, output, name=name: found.__setitem__(name, output.mean((0, 2, 3))))
            for name, layer in integer_layers(of).items()
        ]
        with torch.no_grad():
            of(x)
        for handle in handles:
            handle.remove()
        return found

    expected, before = means(reference), means(graph)
    correct_biases(graph, reference, x)
    for name, after in means(graph).items():
        shifted = (before[name] - expected[name]).abs().max()
        assert shifted > 0.001
        # biases are half floats
        assert (after - expected[name]).abs().max() < 0.2 * shifted


def test_the_float_quantiser_keeps_every_weight_and_the_graph_computes_what_the_network_did() -> None:
    torch.manual_seed(0)
    model = settled(Residual())
    plan = as_stored(plan_of(model), "float")
    graph = build_graph(model, keep_float(model, {layer.name: 32 for layer in plan.layers}, lambda network: network), plan, "int8", SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(graph(images(8)), model(images(8)), rtol=1e-3, atol=1e-3)


def test_a_percentile_of_zeros_is_not_the_range() -> None:
    """Five values in a thousand: the 99th percentile is zero, and a grid of that would lose them."""
    rows = torch.zeros(1, 1000)
    rows[0, :5] = 1.0
    assert float(largest_of(rows, 0.99)) == 1.0
    assert float(largest_of(torch.arange(1000.0)[None], 99.9 / 100)) == 998.0
