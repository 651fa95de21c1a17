"""LSQ: quantisation-aware training with a learned step per output channel.

References:
    Esser et al. 2020, Learned Step Size Quantization, arXiv 1902.08153: gradient of the step (eq. 3), its scale
    1 / sqrt(N Qp) (section 2.2; N counts the weights of one channel here, as the step is per channel).
Departure: steps start at the grid's least squared error, not at 2 mean|w| / sqrt(Qp): budgets are a few epochs here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from core.quantise.integer import IntegerWeight, best_scales, limits, per_channel, to_integers

Finetune = Callable[[nn.Module], object]
"""Trains the network in place."""


def lsq(model: nn.Module, bits: Mapping[str, int], finetune: Finetune) -> dict[str, IntegerWeight]:
    """Train `model` in place with every layer's weight on its grid; return the integers of every layer.

    `bits` maps names of Conv2d and Linear layers to 2-8 or 16; 16-bit layers train in float and are rounded afterwards.
    """
    trained = {name: depth for name, depth in bits.items() if depth <= 8}
    for name, depth in trained.items():
        parametrize.register_parametrization(_plain(model, name), "weight", StepQuantiser(_weight(model, name), depth))
    finetune(model)
    integers = {}
    for name, depth in bits.items():
        if name in trained:
            layer = model.get_submodule(name)
            chain: Any = layer.parametrizations.weight  # type: ignore[union-attr]
            integers[name] = to_integers(chain.original, chain[0].step.abs(), depth)
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
        else:
            integers[name] = _rounded(_weight(model, name), depth)
    return integers


def ptq(model: nn.Module, bits: Mapping[str, int], finetune: Finetune) -> dict[str, IntegerWeight]:
    """Round to the grid of least squared error, no training. Same contract as `lsq`."""
    return {name: _rounded(_weight(model, name), depth) for name, depth in bits.items()}


def _rounded(weight: Tensor, bits: int) -> IntegerWeight:
    return to_integers(weight, best_scales(weight, bits), bits)


def _weight(model: nn.Module, name: str) -> Tensor:
    return cast(Tensor, model.get_submodule(name).weight)


def _plain(model: nn.Module, name: str) -> nn.Module:
    """The layer, its weight freed of what the user's network computes it by (weight norm): one grid, one latent weight."""
    layer = model.get_submodule(name)
    if parametrize.is_parametrized(layer, "weight"):
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return layer


class StepQuantiser(nn.Module):
    """Parametrisation of a weight (out, ...): its value on the grid, with straight-through gradients and a learned step (out,)."""

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__()
        self.low, self.high = limits(bits)
        self.step = nn.Parameter(best_scales(weight, bits))

    def forward(self, weight: Tensor) -> Tensor:
        """float32 (out, ...) -> the same shape, on the grid."""
        return _RoundToStep.apply(weight, self.step, self.low, self.high)


class _RoundToStep(torch.autograd.Function):
    """One function instead of eight recorded operations: a training step costs a few per cent more, not a third."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, step: Tensor, low: int, high: int) -> Tensor:
        scales = per_channel(step.abs().clamp_min(1e-8), weight)
        ratio = weight / scales
        rounded = ratio.round().clamp_(low, high)
        ctx.save_for_backward(ratio, rounded, step)
        ctx.limits = (low, high)
        return rounded * scales

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        ratio, rounded, step = ctx.saved_tensors
        low, high = ctx.limits
        inside = (ratio >= low) & (ratio <= high)
        slope = torch.where(inside, rounded - ratio, rounded)
        size = grad[0].numel()
        step_grad = (grad * slope).flatten(1).sum(1) * step.sign() / (size * high) ** 0.5
        return grad * inside, step_grad, None, None
