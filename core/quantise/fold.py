"""Batch norm into the layer before it: integers and indices stay, scales and bias take over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from core.quantise.integer import per_channel
from core.quantise.stored import StoredWeight
from core.quantise.trace import trace

Layer = nn.Conv2d | nn.Linear
Norm = nn.BatchNorm2d | nn.BatchNorm1d


def fold_batch_norms(traced: fx.GraphModule, weights: Mapping[str, StoredWeight]) -> dict[str, StoredWeight]:
    """Take every batch norm that follows a layer of `weights` out of the graph; the weights with new scales and signs.

    Biases change in place. A norm stays where its layer has other users or is called more than once.
    """
    folded = dict(weights)
    for node, layer, norm in list(_pairs(traced, weights)):
        before = cast(fx.Node, node.args[0])
        name = str(before.target)
        folded[name] = _fold(layer, norm, folded[name])
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    return folded


@torch.no_grad()
def make_gains_positive(model: nn.Module, planned: Collection[str], input_shape: tuple[int, int, int]) -> None:
    """Turn weight, mean and gain of every channel whose batch norm has a negative gain: the same function, in place.

    What is turned becomes the layer's and the norm's own, so that whoever shared it keeps it as it was.
    A grid of b bits reaches from -2^(b-1) to 2^(b-1) - 1, so folding a negative gain into integers would clip the lowest one.
    """
    traced = trace(model, planned, input_shape)
    calls = _calls(traced)
    for node, layer, norm in _pairs(traced, planned):
        computed = parametrize.is_parametrized(layer) or parametrize.is_parametrized(norm)  # nothing to turn
        if norm.weight is None or calls[str(node.target)] > 1 or computed or not bool((norm.weight < 0).any()):
            continue
        sign = torch.where(norm.weight < 0, -1.0, 1.0)
        assert norm.running_mean is not None
        norm.running_mean = norm.running_mean * sign
        for module, name in ((norm, "weight"), (layer, "weight"), (layer, "bias")):
            if (value := getattr(module, name)) is not None:
                setattr(module, name, nn.Parameter(value * per_channel(sign, value), value.requires_grad))


def norms_after(traced: fx.GraphModule, planned: Collection[str]) -> dict[fx.Node, fx.Node]:
    """Call of a layer of `planned` -> that of the batch norm behind it, which `fold_batch_norms` would fold."""
    return {cast(fx.Node, node.args[0]): node for node, _, _ in _pairs(traced, planned)}


def _pairs(traced: fx.GraphModule, planned: Collection[str]) -> Iterator[tuple[fx.Node, Layer, Norm]]:
    """(node of the norm, layer, norm) wherever a norm's only input is a planned layer's only output."""
    modules, calls = dict(traced.named_modules()), _calls(traced)
    for node in traced.graph.nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or before.target not in planned:
            continue
        layer, norm = modules[str(before.target)], modules[str(node.target)]
        once = len(before.users) == 1 and calls[str(before.target)] == 1
        # a BatchNorm1d on (B, T, K) normalises T, which is not the layer's output
        fits = isinstance(layer, nn.Conv2d) or len(before.meta["tensor_meta"].shape) == 2
        if once and fits and isinstance(norm, Norm) and norm.running_var is not None:
            assert isinstance(layer, Layer)
            yield node, layer, norm


def _calls(traced: fx.GraphModule) -> Counter[str]:
    return Counter(str(node.target) for node in traced.graph.nodes if node.op == "call_module")


def _fold(layer: Layer, norm: Norm, weight: StoredWeight) -> StoredWeight:
    """y = g (w x + b - mean) / std + beta, so w' = w g / std; the bias follows."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    gain: Tensor = norm.weight if norm.weight is not None else torch.ones_like(variance)
    shift: Tensor = norm.bias if norm.bias is not None else torch.zeros_like(variance)
    factor = gain / torch.sqrt(variance + norm.eps)
    bias = layer.bias if layer.bias is not None else torch.zeros_like(variance)
    layer.bias = nn.Parameter((shift + (bias - mean) * factor).detach())
    return weight.scaled(factor.detach())
