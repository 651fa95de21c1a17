"""Blocks of a network, and rounding that is learned on them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from core.config import BrecqConfig, QuantiseConfig
from core.quantise.blocks import blocks
from core.quantise.brecq import AdaptiveRounding, brecq, run_block
from core.quantise.integer import IntegerWeight, best_scales, per_channel, to_integers
from core.quantise.ptq import ptq
from core.quantise.setting import Setting
from core.quantise.trace import trace
from core.students import STUDENTS
from tests.tiny_nets import PATTERNS, SHAPE, Pattern, Residual, images, plan_of, settled


def residual() -> nn.Module:
    torch.manual_seed(0)
    return settled(Residual())


def names_of(model: nn.Module, shape: tuple[int, int, int] = SHAPE) -> list[str]:
    return [layer.name for layer in plan_of(model, shape).layers]


def test_a_residual_block_is_one_block_and_plain_layers_are_blocks_of_their_own() -> None:
    model = residual()
    found = blocks(trace(model, names_of(model), SHAPE), names_of(model))
    assert [sorted(block.layers) for block in found] == [["stem"], ["conv1", "conv2", "project"], ["head"]]


def check_chain(model: nn.Module, shape: tuple[int, int, int]) -> None:
    names = names_of(model, shape)
    graph = trace(model, names, shape)
    found = blocks(graph, names)
    assert sorted(name for block in found for name in block.layers) == sorted(names)
    value: Tensor = images(4, shape)
    with torch.no_grad():
        expected = model(value)
        for block in found:
            value = run_block(graph, block, value)
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.name)
def test_blocks_in_a_row_are_the_network(pattern: Pattern) -> None:
    torch.manual_seed(0)
    check_chain(settled(pattern.build()), SHAPE)


@pytest.mark.parametrize(
    ("student", "count"), [("resnet20", 11), ("vgg8", 6), ("mobilenet_v2", 20), ("shufflenet_v2", 6), ("hybrid_serial", 5)]
)
def test_every_student_is_a_chain_of_blocks(student: str, count: int) -> None:
    torch.manual_seed(0)
    model = settled(STUDENTS[student](classes=5, image_size=16, width=0.1), (3, 16, 16))
    check_chain(model, (3, 16, 16))
    assert len(blocks(trace(model, names_of(model, (3, 16, 16)), (3, 16, 16)), names_of(model, (3, 16, 16)))) >= count


def test_rounding_starts_at_the_weight_itself_wherever_the_grid_reaches() -> None:
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    chain = AdaptiveRounding(weight, weight.flatten(1).abs().amax(1) / 7, 4)
    torch.testing.assert_close(chain(weight).detach(), weight, rtol=1e-4, atol=1e-5)


def test_the_regulariser_is_zero_when_all_is_decided_and_one_for_each_weight_in_the_middle() -> None:
    weight = torch.tensor([[0.0, 1.0, 2.0]])
    decided, open_ = AdaptiveRounding(weight, torch.ones(1), 4), AdaptiveRounding(weight + 0.5, torch.ones(1), 4)
    assert float(decided.undecided(2.0).detach()) == pytest.approx(0.0, abs=1e-4)
    assert float(open_.undecided(2.0).detach()) == pytest.approx(3.0, abs=1e-4)


def learned(model: nn.Module, bits: dict[str, int], iterations: int) -> dict[str, IntegerWeight]:
    setting = Setting(QuantiseConfig(brecq=BrecqConfig(iterations=iterations)), images=images(64))
    return brecq(model, bits, lambda network: network, setting)


def test_without_iterations_it_is_rounding_to_the_nearest() -> None:
    model = residual()
    bits = dict.fromkeys(names_of(model), 4)
    nearest, found = ptq(model, bits, lambda network: network), learned(model, bits, 0)
    for name in bits:
        # a weight in the middle between two levels may go up here and to the even one there
        assert (nearest[name].values != found[name].values).float().mean() < 0.01


@pytest.mark.parametrize("bits", [2, 3])
def test_learned_rounding_keeps_the_output_better_than_the_nearest_does_and_moves_no_weight_by_a_step(bits: int) -> None:
    model = residual()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    names = ["conv1", "conv2", "project"]
    found = learned(model, dict.fromkeys(names, bits), 150)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    x = images(64, seed=5)

    def error(weights: dict[str, IntegerWeight]) -> float:
        with torch.no_grad():
            expected = residual()(x)
            other = residual()
            for name, weight in weights.items():
                other.get_submodule(name).weight.copy_(weight.dequantised())
            return float((other(x) - expected).norm())

    assert error(found) < 0.8 * error(ptq(model, dict.fromkeys(names, bits), lambda network: network))
    for name in names:
        weight = model.get_submodule(name).weight.detach()
        nearest = to_integers(weight, best_scales(weight, bits), bits)
        assert torch.equal(nearest.scales, found[name].scales)
        assert (nearest.values - found[name].values).abs().max() <= 1
        ratio = weight / per_channel(found[name].scales, weight)
        inside = (ratio >= nearest.values.min()) & (ratio <= nearest.values.max())
        assert ((found[name].values - ratio).abs()[inside] <= 1.001).all()
