"""Rounding without training: the range of every channel's grid, and biases that take back what rounding shifts on average.

References:
    Nagel et al. 2019, Data-Free Quantization through Weight Equalization and Bias Correction, arXiv 1906.04721: section 4.2, the
    empirical correction (appendix D), here in one pass, layer after layer, each on the output of the corrected ones before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from core.config import RangeConfig
from core.quantise.integer import IntegerWeight, best_scales, largest_of, limits, to_integers
from core.quantise.layers import IntegerConv2d, IntegerLinear
from core.quantise.setting import Finetune, Setting, weight_of
from core.quantise.stored import FloatWeight, half

DEFAULT = Setting()


def ptq(model: nn.Module, bits: Mapping[str, int], finetune: Finetune, setting: Setting = DEFAULT) -> dict[str, IntegerWeight]:
    """Round every layer to its grid; no training. `bits` maps names of Conv2d and Linear layers to 2-8 or 16."""
    return {name: rounded(weight_of(model, name), depth, setting.config.ptq) for name, depth in bits.items()}


def keep_float(model: nn.Module, bits: Mapping[str, int], finetune: Finetune, setting: Setting = DEFAULT) -> dict[str, FloatWeight]:
    """Every weight as it is, in float32, whatever its bits."""
    return {name: FloatWeight(weight_of(model, name).detach().float().clone()) for name in bits}


def rounded(weight: Tensor, bits: int, rule: RangeConfig) -> IntegerWeight:
    """`weight` (out, ...) on the grid whose range is chosen by `rule`."""
    return to_integers(weight, range_scales(weight, bits, rule), bits)


def range_scales(weight: Tensor, bits: int, rule: RangeConfig) -> Tensor:
    """Scales (out,) of a grid of `bits` bits: of least squared error, or so that the highest level is the largest kept magnitude."""
    if rule.range == "mse" or bits > 8:
        return best_scales(weight, bits)
    share = 1.0 if rule.range == "minmax" else rule.percentile / 100
    return largest_of(weight.detach().flatten(1).float(), share) / limits(bits)[1]


@torch.inference_mode()
def correct_biases(graph: fx.GraphModule, reference: fx.GraphModule, images: Tensor) -> None:
    """Shift every bias of `graph` so that the mean output of its channel is that of `reference`, the same graph in float.

    `images`: float32 (N, C, H, W). Both graphs run once on all of them.
    """
    means = _Means(reference)
    means.run(images)
    _Corrector(graph, means.found).run(images)


class _Means(fx.Interpreter):
    """Remembers the mean output of every layer's first call."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.found: dict[str, Tensor] = {}

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """The module's output."""
        output = super().call_module(target, args, kwargs)
        layer = self.submodules[target]
        if isinstance(layer, IntegerConv2d | IntegerLinear) and target not in self.found:
            self.found[target] = _mean(layer, output)
        return output


class _Corrector(fx.Interpreter):
    """Mends the bias of each layer when it is first called, and hands on the mended output."""

    def __init__(self, graph: fx.GraphModule, means: Mapping[str, Tensor]) -> None:
        super().__init__(graph)
        self.means = dict(means)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """The module's output, after its bias was mended."""
        output = super().call_module(target, args, kwargs)
        layer = self.submodules[target]
        if not isinstance(layer, IntegerConv2d | IntegerLinear) or target not in self.means:
            return output
        before = layer.bias.clone()
        layer.bias.copy_(half(before + self.means.pop(target) - _mean(layer, output)))
        return output + _along_channels(layer, layer.bias - before, output)


def _mean(layer: IntegerConv2d | IntegerLinear, output: Tensor) -> Tensor:
    """(out,): over everything but the channels, which a linear layer has last."""
    axis = 1 if _is_map(layer) else output.ndim - 1
    return output.mean([dimension for dimension in range(output.ndim) if dimension != axis])


def _along_channels(layer: IntegerConv2d | IntegerLinear, values: Tensor, output: Tensor) -> Tensor:
    return values.view(-1, *[1] * (output.ndim - 2)) if _is_map(layer) else values


def _is_map(layer: IntegerConv2d | IntegerLinear) -> bool:
    return isinstance(layer, IntegerConv2d) or layer.as_conv
