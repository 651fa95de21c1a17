"""Training for the bytes of the coded file: LSQ with the entropy of the integers in the loss.

The coded file spends -log2 p(n) bits on integer n, with p the share of n in its tensor. Training sees that length at every latent
weight by linear interpolation between the two integers around it, under the table as it stands in this step; on the grid it is
exact. Weights and steps get its gradient: weights drift to frequent levels, and steps grow where that costs little accuracy. It acts
in the first ACTS of a training; in the rest the weights that are left recover from having been pulled, as after pruning.

References:
    Oktay et al. 2020, Scalable Model Compression by Entropy Penalized Reparameterization, arXiv 1906.06624: rate in the loss, with a
    learned density; here the density is the histogram itself, as the coder has it.
    Yang & Jin 2021, FracBits, arXiv 2007.02017: linear interpolation between two levels of a cost.
The gradient of a step has LSQ's scale, so that rate and task pull on it in the proportion that the loss states.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from core.quantise.integer import IntegerWeight, per_channel
from core.quantise.lsq import grids, positive, train_on_grids
from core.quantise.setting import Finetune, Setting

DEFAULT = Setting()
ACTS = 2 / 3
"""Share of a training in which the rate is in the loss, there divided by this: over the training it has the weight that is asked for."""
UNSEEN = 0.5
"""Count of a level that no weight is on: it costs one bit more than one that a single weight is on."""


def rate(model: nn.Module, bits: Mapping[str, int], finetune: Finetune, setting: Setting = DEFAULT) -> dict[str, IntegerWeight]:
    """`lsq`, with `sparsity` too, with `rate_weight` * (mean coded bits of a weight) in the loss; with `rate_weight` 0 it is `lsq`."""
    if setting.rate_weight == 0:
        return train_on_grids(model, bits, finetune, setting)

    def penalty(progress: float) -> Tensor:
        if progress > ACTS:
            return torch.zeros(())
        layers = grids(model)
        coded = torch.stack([coded_bits(latent, grid.step, grid.low, grid.high) for latent, grid in layers]).sum()
        return setting.rate_weight / ACTS * coded / sum(latent.numel() for latent, _ in layers)

    trains = any(depth <= 8 for depth in bits.values())
    return train_on_grids(model, bits, finetune, setting, penalty if trains else None)


def coded_bits(weight: Tensor, step: Tensor, low: int, high: int) -> Tensor:
    """Bits that an ideal coder spends on the integers of `weight` (out, ...) at `step` (out,): scalar, differentiable in both."""
    bits: Tensor = _CodedBits.apply(weight, step, low, high)
    return bits


class _CodedBits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, step: Tensor, low: int, high: int) -> Tensor:
        scales = per_channel(positive(step), weight)
        ratio = (weight / scales).nan_to_num_(0.0)  # the loss of a training that diverged says so, once an epoch
        level = ratio.round().clamp_(low, high).sub_(low).long()
        lengths = code_lengths(level, high - low + 1)
        below = ratio.floor().clamp_(low, high - 1)
        index = below.sub(low).long()
        slope = lengths.diff()[index]
        part = ratio - below
        total = (lengths[index] + slope * part.clamp(0.0, 1.0)).sum()
        ctx.save_for_backward(slope.mul_((part >= 0) & (part <= 1)), ratio, scales, step)
        ctx.high = high
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        slope, ratio, scales, step = ctx.saved_tensors
        weight_grad = grad * slope / scales
        size = ratio[0].numel()
        step_grad = -(weight_grad * ratio).sum(tuple(range(1, ratio.ndim))) * step.sign() / (size * ctx.high) ** 0.5
        return weight_grad, step_grad, None, None


def code_lengths(level: Tensor, count: int) -> Tensor:
    """Bits (count,) of each of `count` levels under the shares that they have in `level`, integers >= 0 of any shape."""
    found = torch.bincount(level.flatten(), minlength=count).float()
    return torch.log2(level.numel() / found.clamp_min(UNSEEN))
