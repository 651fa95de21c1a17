"""Magnitude pruning of single weights: which stay, and a parametrisation that keeps the others at zero through every training.

Such zeros make the coded file smaller, never the network: its shapes, operations and latency stay (core/prune.py removes channels).

References: Han et al. 2016, Deep Compression, arXiv 1510.00149, section 2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from core.quantise.setting import Setting


def keep_largest(weight: Tensor, setting: Setting) -> Tensor:
    """Bool, the shape of `weight`: which weights are not pruned. Never all are. Of equal ones the first go."""
    magnitudes = weight.detach().abs()
    if setting.sparsity == 0:
        return torch.ones_like(weight, dtype=torch.bool)
    if setting.sparsity_by == "std":
        threshold = setting.sparsity * weight.detach().std(correction=0)
        return (magnitudes > threshold) | (magnitudes == magnitudes.max())
    pruned = magnitudes.flatten().argsort(stable=True)[: min(round(setting.sparsity * weight.numel()), weight.numel() - 1)]
    kept = torch.ones(weight.numel(), dtype=torch.bool, device=weight.device)
    kept[pruned] = False
    return kept.view_as(weight)


class Masked(nn.Module):
    """Parametrisation of a weight: what is not in `kept`, bool of its shape, is zero and gets no gradient."""

    kept: Tensor

    def __init__(self, kept: Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", kept)

    def forward(self, weight: Tensor) -> Tensor:
        """float32 -> the same shape."""
        return weight * self.kept
