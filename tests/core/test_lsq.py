"""LSQ against its paper, and what training with it leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from core.config import TrainConfig
from core.export import packed_tensors
from core.pack import pack
from core.quantise.graph import build_graph
from core.quantise.integer import IntegerWeight, limits, per_channel
from core.quantise.lsq import StepQuantiser, lsq
from core.quantise.masks import keep_largest
from core.quantise.ptq import ptq
from core.quantise.rate import rate
from core.quantise.setting import Penalty, Setting
from core.students import STUDENTS
from core.train import Device, fit
from tests.tiny_data import view_set
from tests.tiny_nets import Residual, plan_of, settled, train


def reference_step_gradient(weight: Tensor, step: Tensor, grad: Tensor, bits: int) -> Tensor:
    """Equation 3 of the paper, element by element, times its gradient scale 1 / sqrt(N Qp)."""
    low, high = limits(bits)
    result = torch.zeros_like(step)
    for channel in range(len(step)):
        for w, g in zip(weight[channel].flatten().tolist(), grad[channel].flatten().tolist(), strict=True):
            ratio = w / step[channel].item()
            slope = low if ratio <= low else high if ratio >= high else -ratio + round(ratio)
            result[channel] += g * slope
    return result / (weight[0].numel() * high) ** 0.5


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_gradient_of_a_step_is_equation_3(bits: int) -> None:
    torch.manual_seed(0)
    weight, grad = torch.randn(4, 2, 3, 3), torch.randn(4, 2, 3, 3)
    quantiser = StepQuantiser(weight, bits)
    quantiser.step.data.mul_(0.93)  # off the edge, where the largest weight is exactly the highest level
    quantiser(weight.requires_grad_()).backward(grad)
    assert quantiser.step.grad is not None
    torch.testing.assert_close(
        quantiser.step.grad, reference_step_gradient(weight, quantiser.step.detach(), grad, bits), rtol=1e-4, atol=1e-5
    )


def test_weights_inside_the_grid_get_the_gradient_unchanged_and_clipped_ones_none() -> None:
    weight = torch.tensor([[0.3, -0.9, 5.0, -5.0]], requires_grad=True)
    quantiser = StepQuantiser(weight.detach(), 3)
    quantiser.step.data.fill_(0.5)  # the grid reaches from -2.0 to 1.5
    quantiser(weight).backward(torch.ones(1, 4))
    assert weight.grad is not None
    assert weight.grad.tolist() == [[1.0, 1.0, 0.0, 0.0]]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_forward_pass_is_on_the_grid(bits: int) -> None:
    weight = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    quantiser = StepQuantiser(weight, bits)
    levels = quantiser(weight).detach() / per_channel(quantiser.step.detach(), weight)
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
    assert levels.min() >= limits(bits)[0] - 1e-3
    assert levels.max() <= limits(bits)[1] + 1e-3


@pytest.mark.parametrize("quantise", [lsq, rate])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_file_has_the_very_levels_that_training_computed_with_also_of_weights_between_two(
    quantise: Callable[..., dict[str, IntegerWeight]], bits: int
) -> None:
    model, seen = nn.Sequential(nn.Linear(64, 8)), {}
    low, high = limits(bits)
    between = torch.arange(low, high).repeat(64)[:64].add(0.5).repeat(8, 1)
    between *= 1 + 1e-4 * torch.randn(between.shape, generator=torch.Generator().manual_seed(0))

    def finetune(model: nn.Module, penalty: Penalty | None = None) -> None:
        chain: Any = model.get_submodule("0").parametrizations.weight
        chain[0].step.data.copy_(torch.linspace(0.07, 0.13, 8))  # no half floats
        chain.original.data.copy_(between * chain[0].step[:, None])
        seen["levels"] = (model.get_submodule("0").weight / chain[0].step[:, None]).round().detach()

    stored = quantise(model, {"0": bits}, finetune, Setting(rate_weight=0.1))["0"]
    assert torch.equal(stored.values.float(), seen["levels"])
    assert torch.equal(stored.scales.half().float(), stored.scales)


def train_a_little(model: nn.Module, penalty: Penalty | None = None) -> None:
    train(model, penalty, steps=5)


def test_after_training_the_weights_of_every_layer_are_on_their_grid_and_nothing_is_left_of_lsq() -> None:
    torch.manual_seed(0)
    model = settled(Residual())
    names = [*model.state_dict()]
    bits = dict(zip([layer.name for layer in plan_of(model).layers], (8, 2, 4, 3, 16), strict=True))
    before = {name: model.get_submodule(name).weight.detach().clone() for name in bits}
    integers = lsq(model, bits, train_a_little)
    assert sorted(model.state_dict()) == sorted(names)
    for name, depth in bits.items():
        weight = model.get_submodule(name).weight.detach()
        assert not torch.equal(weight, before[name])
        assert integers[name].bits == depth
        moved = (integers[name].dequantised() - weight).abs() / per_channel(integers[name].scales, weight)
        # the kept scale is the step rounded to a half float: a value on the edge may fall on the next level
        assert moved.max() < (1.1 if depth <= 8 else 1.0)
        assert (moved < 0.1).float().mean() > (0.9 if depth <= 8 else 0.0)


def test_training_moves_the_steps() -> None:
    torch.manual_seed(0)
    model = settled(Residual())
    first = StepQuantiser(model.conv1.weight, 3).step.detach().clone()
    integers = lsq(model, {"conv1": 3}, train_a_little)
    assert not torch.allclose(integers["conv1"].scales, first, rtol=1e-3)


@pytest.mark.parametrize("quantiser", [lsq, rate])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_pruned_weights_are_the_integer_0_in_every_step_and_in_the_end(quantiser: Callable[..., Any], bits: int) -> None:
    torch.manual_seed(0)
    model = settled(Residual())
    setting = Setting(sparsity=0.6, rate_weight=0.1)
    kept = {layer.name: keep_largest(model.get_submodule(layer.name).weight, setting) for layer in plan_of(model).layers}
    seen: list[Tensor] = []
    model.conv2.register_forward_hook(lambda layer, inputs, output: seen.append(layer.weight.detach().clone()))
    integers = quantiser(model, dict.fromkeys(kept, bits), train_a_little, setting)
    assert len(seen) == 5
    assert all((weight[~kept["conv2"]] == 0).all() for weight in seen)
    assert not torch.equal(seen[0], seen[-1])
    for name, weight in integers.items():
        assert (weight.values[~kept[name]] == 0).all()
        assert (model.get_submodule(name).weight[~kept[name]] == 0).all()
        assert (weight.values[kept[name]] != 0).float().mean() > 0.5  # the grid is that of what is left


def test_a_masked_network_is_no_smaller_one_but_its_coded_file_is() -> None:
    sizes, packed = [], []
    for sparsity in (0.0, 0.8):
        torch.manual_seed(0)
        model = settled(STUDENTS["light_cnn"](classes=4, channels=1, image_size=8, width=0.5), (1, 8, 8))
        plan = plan_of(model, (1, 8, 8), bits=4)
        bits = {layer.name: layer.weight_bits for layer in plan.layers}
        weights = lsq(model, bits, lambda model: None, Setting(sparsity=sparsity))
        tensors = packed_tensors(build_graph(model, weights, plan, "uint8_relu", (1, 8, 8)))
        packed.append(len(pack(tensors)))
        sizes.append(len(pack(tensors, "coded")))
    assert packed[0] == packed[1]
    assert sizes[1] < 0.6 * sizes[0]


@pytest.mark.parametrize(("ema", "sparsity"), [(0.0, 0.0), (0.9, 0.0), (0.9, 0.3)])
def test_the_training_loop_trains_steps_in_bf16_and_with_averaged_weights(ema: float, sparsity: float) -> None:
    torch.manual_seed(0)
    model = settled(STUDENTS["light_cnn"](classes=4, channels=1, image_size=8, width=0.25), (1, 8, 8))
    bits = {layer.name: layer.weight_bits for layer in plan_of(model, (1, 8, 8), bits=3).layers}
    device = Device(torch.device("cpu"), torch.bfloat16)
    config = TrainConfig(epochs=4.0, batch_size=16, lr=0.02, ema=ema)
    data = view_set()

    def finetune(model: nn.Module) -> nn.Module:
        return fit(model, data, lambda logits, batch: nn.functional.cross_entropy(logits.float(), batch.labels), config, device, seed=0)

    integers = lsq(model, bits, finetune, Setting(sparsity=sparsity))
    with torch.no_grad():
        everything = torch.arange(len(data))
        assert (model(data.batch(everything, 0)).argmax(1) == data.labels).float().mean() > 0.9
    assert all(int(weight.values.min()) >= -4 and int(weight.values.max()) <= 3 for weight in integers.values())


def test_without_training_lsq_is_plain_rounding() -> None:
    torch.manual_seed(0)
    model = settled(Residual())
    bits = {layer.name: layer.weight_bits for layer in plan_of(model, bits=4).layers}
    rounded, learned = ptq(model, bits, lambda model: None), lsq(model, bits, lambda model: None)
    for name in bits:
        assert torch.equal(rounded[name].values, learned[name].values)
        assert torch.equal(rounded[name].scales, learned[name].scales)


def test_a_weight_that_the_network_computes_by_weight_norm_is_trained_as_one_weight() -> None:
    torch.manual_seed(0)
    model = settled(Residual())
    plain = model.conv1.weight.detach().clone()
    weight_norm(model.conv1)
    integers = lsq(model, {"conv1": 8}, lambda model: None)
    torch.testing.assert_close(integers["conv1"].dequantised(), plain, rtol=0, atol=float(plain.abs().max()) / 100)
    assert "weight" in dict(model.conv1.named_parameters())
