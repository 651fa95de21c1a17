"""What every entry of QUANTISERS promises: fn(model, bits per layer, finetune) -> integers per layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from core.candidate import WEIGHT_BITS
from core.quantise import QUANTISERS
from core.quantise.graph import build_graph
from core.quantise.integer import limits
from tests.tiny_nets import SHAPE, Residual, images, plan_of, settled

every_quantiser = pytest.mark.parametrize("name", QUANTISERS)
BITS = dict(zip(("stem", "conv1", "conv2", "project", "head"), (8, 2, 3, 5, 16), strict=True))


def network() -> nn.Module:
    torch.manual_seed(0)
    return settled(Residual())


def untrained(model: nn.Module) -> nn.Module:
    return model


@every_quantiser
def test_every_layer_gets_integers_of_its_bits_and_shape(name: str) -> None:
    model = network()
    shapes = {layer: model.get_submodule(layer).weight.shape for layer in BITS}
    integers = QUANTISERS[name](model, BITS, untrained)
    assert set(integers) == set(BITS)
    for layer, bits in BITS.items():
        low, high = limits(bits)
        assert integers[layer].bits == bits
        assert integers[layer].values.shape == shapes[layer]
        assert integers[layer].scales.shape == shapes[layer][:1]
        assert low <= int(integers[layer].values.min()) <= int(integers[layer].values.max()) <= high
        assert (integers[layer].scales > 0).all()
        assert not integers[layer].scales.requires_grad


@every_quantiser
def test_scales_up_to_eight_bits_fit_a_half_float(name: str) -> None:
    integers = QUANTISERS[name](network(), BITS, untrained)
    assert all(torch.equal(weight.scales.half().float(), weight.scales) for weight in integers.values() if weight.bits <= 8)


@every_quantiser
def test_layers_keep_their_names_and_types(name: str) -> None:
    model = network()
    before = {layer: type(module) for layer, module in model.named_modules()}
    QUANTISERS[name](model, BITS, untrained)
    assert {layer: type(module) for layer, module in model.named_modules()} == before
    assert all(isinstance(model.get_submodule(layer).weight, nn.Parameter) for layer in BITS)


@every_quantiser
@pytest.mark.parametrize("bits", WEIGHT_BITS)
def test_the_quantised_network_nears_the_float_one_as_bits_grow(name: str, bits: int) -> None:
    model = network()
    x = images(32)
    with torch.no_grad():
        expected = model(x)
        plan = plan_of(model, bits=bits, execution="float")  # type: ignore[arg-type]
        integers = QUANTISERS[name](model, {layer.name: bits for layer in plan.layers}, untrained)
        error = (build_graph(model, integers, plan, "uint8_relu", SHAPE)(x) - expected).norm() / expected.norm()
    assert error < {2: 2.0, 3: 0.6, 4: 0.3, 5: 0.15, 6: 0.08, 7: 0.04, 8: 0.02, 16: 0.002}[bits]


@every_quantiser
def test_equal_networks_get_equal_integers(name: str) -> None:
    first, second = (QUANTISERS[name](network(), BITS, untrained) for _ in range(2))
    assert all(torch.equal(first[layer].values, second[layer].values) for layer in BITS)
