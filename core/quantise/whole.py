"""8 bits in one call, for people who want only that: every plain convolution and linear layer of a network, without a plan.

References: the two calls of source 001's guide, `quantize_model(model)` and `dequantize_model(model)`; hence the spelling.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from core.candidate import LayerPlan, ShapePlan
from core.compress import calibrate
from core.errors import UserError
from core.layers import layer_infos
from core.quantise.fold import make_gains_positive
from core.quantise.graph import build_graph
from core.quantise.integer import IntegerWeight
from core.quantise.layers import ActivationQuantiser, IntegerConv2d, IntegerLinear
from core.quantise.ptq import ptq
from core.quantise.setting import untrained, weight_of
from core.quantise.trace import TRACE_ERRORS

BITS: Final = 8


def quantize_model(model: nn.Module, images: Tensor | None = None) -> nn.Module:
    """A copy of `model` in eval mode on the CPU whose convolutions and linear layers hold int8 weights.

    Weights: symmetric, one scale per output channel, the scale of least squared error; biases as half floats. Layers of a type of
    their own (weight norm, inside nn.MultiheadAttention) stay in float. It computes in float and is a quarter of the size. A network that
    computes with the weight of such a layer itself, as `F.linear(x, self.fc.weight)`, then finds integers there: give `images`.
    With `images`, normalised float32 (N, C, H, W), batch norms are folded and the activations are quantised to 8 bits as well:
    what an INT8 engine computes, simulated; the network must be traceable by torch.fx then.
    Raises UserError when there is nothing to quantise, or when the network cannot be traced.
    """
    copied = copy.deepcopy(model).cpu().float().eval()
    names = [name for name, layer in copied.named_modules() if _is_plain(layer)]
    names = [name for name in names if not _is_read_by_its_owner(copied, name)]
    if not names:
        raise UserError(f"quantize_model needs nn.Conv2d or nn.Linear layers, but {type(model).__name__} has none")
    if broken := [name for name in names if not bool(weight_of(copied, name).isfinite().all())]:
        raise UserError(f"quantize_model needs finite weights, but those of {broken[0]} are not; load other weights, or train again")
    if images is not None:
        return _with_activations(copied, names, images)
    weights = ptq(copied, dict.fromkeys(names, BITS), untrained)
    return _replaced(copied, {layer: _integer_layer(layer, weights[name]) for name, layer in copied.named_modules() if name in weights})


def dequantize_model(model: nn.Module) -> nn.Module:
    """A copy of what `quantize_model` gave, where it is, with ordinary float32 layers that hold the de-quantised weights.

    Without `images` its state dict has the names and shapes of the original's. Raises UserError for a network without integer layers.
    """
    copied = copy.deepcopy(model)
    new: dict[nn.Module, nn.Module] = {}
    for module in copied.modules():
        if isinstance(module, IntegerConv2d | IntegerLinear):
            new[module] = _float_layer(module)
        elif isinstance(module, ActivationQuantiser):
            new[module] = nn.Identity()
    if not new:
        raise UserError(f"dequantize_model needs a network from quantize_model, but {type(model).__name__} holds no integer layer")
    return _replaced(copied, new).eval()


def _integer_layer(layer: nn.Module, weight: IntegerWeight) -> nn.Module:
    if isinstance(layer, nn.Conv2d):
        return IntegerConv2d(layer, weight)
    assert isinstance(layer, nn.Linear)
    return IntegerLinear(layer, weight, as_conv=False)


def _with_activations(model: nn.Module, names: list[str], images: Tensor) -> nn.Module:
    if images.ndim != 4 or len(images) == 0 or not images.is_floating_point():
        raise UserError(f"images must be normalised float32 (N, C, H, W), but are {images.dtype} {tuple(images.shape)}; see docs/distil.md")
    channels, height, width = images.shape[1:]
    shape = (channels, height, width)
    try:
        infos = layer_infos(model, shape)
    except TRACE_ERRORS as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        law = f"images must fit the network, but {type(model).__name__} does not take (C, H, W) = {shape} ({reason})"
        raise UserError(f"{law}; give it images of the channels and size that it was trained on") from error
    layers = tuple(
        LayerPlan(name=info.name, out_channels=info.out_channels, weight_bits=BITS, execution="int8")
        for info in infos
        if info.name in names
    )
    bits = {layer.name: BITS for layer in layers}
    make_gains_positive(model, bits, shape)
    weights = ptq(model, bits, untrained)
    graph = build_graph(model, weights, ShapePlan(student=type(model).__name__, width=1.0, layers=layers), "uint8_relu", shape)
    calibrate(graph, images.detach().cpu().float())
    return graph


def _is_plain(layer: nn.Module) -> bool:
    """A subclass may compute more than its weights say, and a hook may make them."""
    return type(layer) in (nn.Conv2d, nn.Linear) and "weight" in layer._parameters


def _is_read_by_its_owner(model: nn.Module, name: str) -> bool:
    """nn.TransformerEncoderLayer hands the weights of its layers to a kernel of its own."""
    return isinstance(model.get_submodule(name.rpartition(".")[0]), nn.TransformerEncoderLayer)


def _replaced(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """`model` with other modules in the places of some, under every name that they have."""
    if model in new:
        return new[model]
    for owner in list(model.modules()):
        for leaf, child in list(owner._modules.items()):
            if child is not None and child in new:
                setattr(owner, leaf, new[child])
    return model


@torch.no_grad()
def _float_layer(layer: IntegerConv2d | IntegerLinear) -> nn.Module:
    weight = layer.float_weight()
    outputs, inputs = weight.shape[:2]
    made: nn.Module
    common: dict[str, Any] = {"bias": layer.has_bias, "device": weight.device}
    if isinstance(layer, IntegerConv2d):
        mode = layer.border[1] if layer.border else "zeros"
        options: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation, "padding_mode": mode}
        kernel = tuple(weight.shape[2:])
        made = nn.Conv2d(inputs * layer.groups, outputs, kernel, groups=layer.groups, **options, **common)  # type: ignore[arg-type]
    elif layer.as_conv:
        made = nn.Conv2d(inputs, outputs, 1, **common)
    else:
        made = nn.Linear(inputs, outputs, **common)
    made.load_state_dict({"weight": weight, **({"bias": layer.bias} if layer.has_bias else {})})
    return made
