"""What every entry of QUANTISERS promises: fn(model, bits per layer, finetune, setting) -> stored weight per layer."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from core.candidate import DENSE, WEIGHT_BITS
from core.config import BrecqConfig, QuantiseConfig
from core.pack import QTensor
from core.quantise import MODEL_QUANTISERS, QUANTISERS
from core.quantise.graph import build_graph
from core.quantise.integer import IntegerWeight, limits
from core.quantise.setting import Finetune, Penalty, Setting
from core.quantise.stored import CodebookWeight, FloatWeight, StoredWeight, half
from core.runtimes import RUNTIMES
from tests.tiny_nets import SHAPE, Residual, conv, images, plan_of, settled, train

every_quantiser = pytest.mark.parametrize("name", QUANTISERS)
BITS = dict(zip(("stem", "conv1", "conv2", "project", "head"), (8, 2, 3, 5, 16), strict=True))
TRAINING = ("lsq", "rate", "codebook")
"""Quantisers that call the fine-tuning."""
SETTING = Setting(QuantiseConfig(brecq=BrecqConfig(iterations=20)), images=images(32), rate_weight=0.1)


def network() -> nn.Module:
    torch.manual_seed(0)
    return settled(Residual())


def untrained(model: nn.Module, penalty: object = None) -> nn.Module:
    return model


def trained(model: nn.Module, penalty: Penalty | None = None) -> nn.Module:
    """A few steps with weight decay, which moves also what no gradient reaches."""
    return train(model, penalty, steps=6, momentum=0.9, weight_decay=5e-4)


def stored(
    name: str, model: nn.Module, bits: Mapping[str, int] = BITS, finetune: Finetune = untrained, setting: Setting = SETTING
) -> Mapping[str, StoredWeight]:
    return QUANTISERS[name](model, bits, finetune, setting)


def levels_of(weight: StoredWeight) -> Tensor:
    """Integers, or indices of values."""
    assert not isinstance(weight, FloatWeight)
    return weight.values if isinstance(weight, IntegerWeight) else weight.indices


@every_quantiser
def test_every_layer_gets_a_weight_of_its_shape_and_of_no_more_values_than_its_bits_tell_apart(name: str) -> None:
    model = network()
    shapes = {layer: model.get_submodule(layer).weight.shape for layer in BITS}
    found = stored(name, model)
    assert list(found) == list(BITS)
    for layer, weight in found.items():
        assert weight.dequantised().shape == shapes[layer]
        assert weight.scales.shape == shapes[layer][:1]
        assert weight.bits == (32 if name == "float" else BITS[layer])
        assert not weight.dequantised().requires_grad
        for channel in weight.dequantised():
            assert len(channel.unique()) <= 2**weight.bits
        if isinstance(weight, IntegerWeight):
            low, high = limits(weight.bits)
            assert low <= int(weight.values.min()) <= int(weight.values.max()) <= high
            assert (weight.scales > 0).all()


@every_quantiser
def test_scales_and_values_up_to_eight_bits_fit_a_half_float(name: str) -> None:
    for weight in stored(name, network()).values():
        if weight.bits <= 8:
            assert torch.equal(half(weight.scales), weight.scales)
        if isinstance(weight, CodebookWeight):
            assert torch.equal(half(weight.codebook), weight.codebook)
            assert (weight.codebook.diff() >= 0).all()


@every_quantiser
def test_layers_keep_their_names_and_types_and_can_be_trained_on(name: str) -> None:
    model = network()
    before = {layer: type(module) for layer, module in model.named_modules()}
    stored(name, model)
    assert {layer: type(module) for layer, module in model.named_modules()} == before
    assert all(isinstance(model.get_submodule(layer).weight, nn.Parameter) for layer in BITS)
    assert all(parameter.requires_grad for parameter in model.parameters())


@every_quantiser
@pytest.mark.parametrize("bits", WEIGHT_BITS)
def test_the_quantised_network_nears_the_float_one_as_bits_grow(name: str, bits: int) -> None:
    model = network()
    x = images(32)
    with torch.no_grad():
        expected = model(x)
        plan = plan_of(model, bits=bits, execution="float")  # type: ignore[arg-type]
    found = stored(name, model, {layer.name: bits for layer in plan.layers})
    with torch.no_grad():
        error = (build_graph(model, found, plan, "uint8_relu", SHAPE)(x) - expected).norm() / expected.norm()
    assert error < {2: 2.0, 3: 0.6, 4: 0.3, 5: 0.15, 6: 0.08, 7: 0.04, 8: 0.02, 16: 0.002}[bits]


@every_quantiser
def test_the_error_of_the_weights_falls_with_every_bit(name: str) -> None:
    weight = network().conv2.weight.detach()
    errors = [float((stored(name, network(), {"conv2": bits})["conv2"].dequantised() - weight).norm()) for bits in WEIGHT_BITS]
    assert all(more <= fewer for fewer, more in pairwise(errors))
    assert errors[-1] <= 1e-4 * weight.norm()


@every_quantiser
def test_quantising_what_is_quantised_changes_nothing(name: str) -> None:
    model = network()
    first = stored(name, model)
    again = copy.deepcopy(model)
    for layer, weight in first.items():
        again.get_submodule(layer).weight.data.copy_(weight.dequantised())
    second = stored(name, again)
    for layer, weight in first.items():
        torch.testing.assert_close(second[layer].dequantised(), weight.dequantised(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", TRAINING)
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_after_training_every_weight_is_on_its_grid_and_within_its_range(name: str, sparsity: float) -> None:
    model, setting = network(), replace(SETTING, sparsity=sparsity)
    before = stored(name, network(), setting=setting)
    found = stored(name, model, finetune=trained, setting=setting)
    assert list(found) == list(BITS)
    for layer, weight in found.items():
        levels, values = levels_of(weight), weight.dequantised()
        low, high = limits(weight.bits) if isinstance(weight, IntegerWeight) else (0, 2**weight.bits - 1)
        assert low <= int(levels.min()) <= int(levels.max()) <= high
        assert not torch.equal(values, before[layer].dequantised())
        assert all(len(channel.unique()) <= 2**weight.bits for channel in values)
        if weight.bits <= 8:
            assert torch.equal(half(weight.scales), weight.scales)
            assert int((values == 0).sum()) >= int(sparsity * values.numel())
        # the network is left with what is stored, but for scales that were rounded to half floats since
        step = weight.scales.view(-1, *[1] * (values.ndim - 1)) if isinstance(weight, IntegerWeight) else weight.codebook.abs().max()
        assert ((model.get_submodule(layer).weight - values).abs() / step).median() < 0.01 + (weight.bits > 8)


@pytest.mark.parametrize("name", TRAINING)
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_what_is_stored_is_what_the_training_computed_with_but_for_half_floats(name: str, sparsity: float) -> None:
    torch.manual_seed(0)
    model, seen = nn.Sequential(nn.Linear(300, 300)), {}

    def finetune(model: nn.Module, penalty: Penalty | None = None) -> None:
        with torch.no_grad():
            for value in model.parameters():  # weights, steps, centroids: with that many some lie right between two levels
                value.mul_(1 + 0.01 * torch.rand_like(value))
        seen["0"] = model.get_submodule("0").weight.detach()

    found = stored(name, model, {"0": 3}, finetune, replace(SETTING, sparsity=sparsity))["0"]
    torch.testing.assert_close(found.dequantised(), seen["0"], rtol=2**-10, atol=0)


@pytest.mark.parametrize("name", sorted({*QUANTISERS} - {*TRAINING}))
def test_what_is_said_not_to_train_does_not(name: str) -> None:
    called: list[nn.Module] = []
    stored(name, network(), finetune=lambda model, penalty=None: called.append(model))
    assert not called


@pytest.mark.parametrize("name", sorted({*QUANTISERS} - DENSE))
@pytest.mark.parametrize(
    "rule",
    [{"sparsity": 0.7}, *({"sparsity": 0.7, "sparsity_by": rule} for rule in ("global", "lamp")), {"sparsity": 1.0, "sparsity_by": "std"}],
)
def test_whatever_reads_a_sparsity_has_so_many_zeros_and_the_others_have_none_more(name: str, rule: dict[str, Any]) -> None:
    bits = dict.fromkeys(BITS, 4)
    shares = [
        sum(int((each.dequantised() == 0).sum()) for each in stored(name, network(), bits, setting=replace(SETTING, **genes)).values())
        for genes in (rule, {})
    ]
    total = sum(network().get_submodule(layer).weight.numel() for layer in bits)
    assert shares[0] >= 0.55 * total
    assert shares[1] < 0.4 * total


@pytest.mark.parametrize("name", sorted(DENSE & {*QUANTISERS}))
def test_a_quantiser_without_zeros_leaves_sparsity_aside(name: str) -> None:
    plain, sparse = stored(name, network()), stored(name, network(), setting=replace(SETTING, sparsity=0.7))
    assert all(torch.equal(plain[layer].dequantised(), sparse[layer].dequantised()) for layer in BITS)


@pytest.mark.parametrize("name", MODEL_QUANTISERS)
def test_a_quantiser_of_whole_files_keeps_eight_bit_integers_near_the_weights(name: str) -> None:
    model, x = network(), images(32)
    plan = plan_of(model, bits=8)
    made = MODEL_QUANTISERS[name](model, plan, images(64, seed=1), RUNTIMES["onnxruntime"]())
    folded = {layer.name: made.tensors[f"{layer.name}.weight"] for layer in plan.layers}
    for weight in folded.values():
        assert isinstance(weight, QTensor)
        assert weight.bits == 8
        assert -127 <= int(weight.values.min()) <= int(weight.values.max()) <= 127
        assert (weight.scales > 0).all()
        # NNCF leaves half of the range unused where sums of two products could overflow
        assert (np.abs(weight.values).reshape(len(weight.values), -1).max(1) >= 63).all()
    with torch.no_grad():
        expected = model(x)
        error = (made.simulation(x) - expected).norm() / expected.norm()
    assert error < 0.1


@every_quantiser
def test_equal_networks_get_equal_weights(name: str) -> None:
    first, second = (stored(name, network()) for _ in range(2))
    assert all(torch.equal(first[layer].dequantised(), second[layer].dequantised()) for layer in BITS)


@every_quantiser
def test_layers_that_share_their_weight_get_a_grid_each_as_if_they_had_two(name: str) -> None:
    bits = {"first": 2, "second": 8, "third": 16, "head": 8}

    def shared(*, one: bool) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential()
        for layer in bits:
            model.add_module(layer, conv(3, 3))
        for layer in ("second", "third"):
            weight = model.get_submodule("first").weight
            model.get_submodule(layer).weight = weight if one else nn.Parameter(weight.detach().clone())
        return model.eval()

    setting = replace(SETTING, rate_weight=0.0)
    tied, apart = (stored(name, shared(one=one), bits, setting=setting) for one in (True, False))
    assert all(torch.equal(tied[layer].dequantised(), apart[layer].dequantised()) for layer in bits)


@every_quantiser
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_factor_per_channel_scales_the_weight(name: str, sign: float) -> None:
    factor = sign * torch.linspace(0.5, 2.0, 12)
    weight = stored(name, network())["conv2"]
    expected: Tensor = weight.dequantised() * factor.view(-1, 1, 1, 1)
    scale = weight.scales * factor.abs() if isinstance(weight, IntegerWeight) and sign < 0 else torch.zeros(12)
    moved = (weight.scaled(factor).dequantised() - expected).abs()
    # the lowest integer has no opposite: it moves by one step
    assert (moved <= scale.view(-1, 1, 1, 1) * 1.001 + 1e-3 * expected.abs()).all()


def test_a_setting_without_images_is_refused_by_the_quantiser_that_needs_them() -> None:
    from core.errors import UserError

    with pytest.raises(UserError, match="calibration_images"):
        QUANTISERS["brecq"](network(), BITS, untrained, replace(SETTING, images=None))
