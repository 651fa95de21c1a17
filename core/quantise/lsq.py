"""LSQ: quantisation-aware training with a learned step per output channel.

References:
    Esser et al. 2020, Learned Step Size Quantization, arXiv 1902.08153: gradient of the step (eq. 3), its scale
    1 / sqrt(N Qp) (section 2.2; N counts the weights of one channel here, as the step is per channel).
    Han et al. 2016, Deep Compression, arXiv 1510.00149: magnitude pruning, the mask kept through the training (section 2).
Departure: steps start at the grid's least squared error, not at 2 mean|w| / sqrt(Qp): budgets are a few epochs here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from core.quantise.integer import IntegerWeight, as_trained, best_scales, limits, per_channel
from core.quantise.masks import Masked, kept_in
from core.quantise.ptq import rounded
from core.quantise.setting import Finetune, Penalty, Setting, plain_layer, weight_of

DEFAULT = Setting()
WIDER = 1 + 2**-22
"""Times a limit: the next float32 but one, so that a weight exactly on the limit is within."""


def lsq(model: nn.Module, bits: Mapping[str, int], finetune: Finetune, setting: Setting = DEFAULT) -> dict[str, IntegerWeight]:
    """Train `model` in place with every layer's weight on its grid; return the integers of every layer.

    `bits` maps names of Conv2d and Linear layers to 2-8 or 16; 16-bit layers train in float and are rounded afterwards.
    With `sparsity` the smallest weights of every other layer are the integer 0, from the first step to the file.
    """
    return train_on_grids(model, bits, finetune, setting)


def train_on_grids(
    model: nn.Module, bits: Mapping[str, int], finetune: Finetune, setting: Setting, penalty: Penalty | None = None
) -> dict[str, IntegerWeight]:
    """`lsq`, with `penalty` in the loss: it may look at the chains that `grids` lists."""
    trained = {name: depth for name, depth in bits.items() if depth <= 8}
    kept = kept_in({name: weight_of(model, name) for name in trained}, setting) if setting.sparsity > 0 else {}
    for name, depth in trained.items():
        layer = plain_layer(model, name)
        if name in kept:
            parametrize.register_parametrization(layer, "weight", Masked(kept[name]))
        parametrize.register_parametrization(layer, "weight", StepQuantiser(weight_of(model, name), depth))
    if penalty is None:
        finetune(model)
    else:
        finetune(model, penalty)
    integers = {name: _integers(model, name, depth, setting) for name, depth in bits.items()}
    for name in trained:  # after all have been read: layers may share their latent weight, which this rounds
        parametrize.remove_parametrizations(model.get_submodule(name), "weight", leave_parametrized=True)
    return integers


def _integers(model: nn.Module, name: str, bits: int, setting: Setting) -> IntegerWeight:
    layer = model.get_submodule(name)
    if bits > 8:
        return rounded(weight_of(model, name), bits, setting.config.ptq)
    latent, grid = _latent(layer.parametrizations.weight)  # type: ignore[union-attr]
    return as_trained(latent, positive(grid.step), bits)


def grids(model: nn.Module) -> list[tuple[Tensor, StepQuantiser]]:
    """(latent weight, pruned ones zero, and its grid) of every layer that trains on one."""
    chains = [module for module in model.modules() if isinstance(module, parametrize.ParametrizationList)]
    return [_latent(chain) for chain in chains if isinstance(chain[-1], StepQuantiser)]


def _latent(chain: Any) -> tuple[Tensor, StepQuantiser]:
    """What the grid of a layer rounds, and the grid: the last of its parametrisations, behind a mask if there is one."""
    return (chain[0](chain.original) if len(chain) > 1 else chain.original), chain[-1]


class StepQuantiser(nn.Module):
    """Parametrisation of a weight (out, ...): its value on the grid, with straight-through gradients and a learned step (out,)."""

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__()
        self.low, self.high = limits(bits)
        self.step = nn.Parameter(best_scales(weight, bits))

    def forward(self, weight: Tensor) -> Tensor:
        """float32 (out, ...) -> the same shape, on the grid."""
        return RoundToStep.apply(weight, self.step, self.low, self.high)


def positive(step: Tensor) -> Tensor:
    """The distance of two levels, (out,): a learned step may cross zero."""
    return step.abs().clamp_min(1e-8)


class RoundToStep(torch.autograd.Function):
    """One function instead of eight recorded operations: a training step costs a few per cent more, not a third."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, step: Tensor, low: int, high: int) -> Tensor:
        scales = per_channel(positive(step), weight)
        ratio = weight / scales
        rounded = ratio.round().clamp_(low, high)
        ctx.save_for_backward(ratio, rounded, step)
        ctx.limits = (low, high)
        return rounded * scales

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        ratio, rounded, step = ctx.saved_tensors
        low, high = ctx.limits
        # one kernel: the gradient within the limits
        inside = torch.ops.aten.hardtanh_backward(grad, ratio, low * WIDER, high * WIDER)
        # sum of grad * (rounded - ratio) within the limits, and of grad * rounded beyond them; in passes that keep to the memory format
        slope = torch.mul(grad, rounded).addcmul_(inside, ratio, value=-1).sum(tuple(range(1, grad.ndim)))
        return inside, slope * step.sign() / (grad[0].numel() * high) ** 0.5, None, None
