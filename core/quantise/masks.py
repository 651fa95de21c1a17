"""Magnitude pruning of single weights: which stay, and a parametrisation that keeps the others at zero through every training.

Such zeros make the coded file smaller, never the network: its shapes, operations and latency stay (core/prune.py removes channels).

References:
    Han et al. 2016, Deep Compression, arXiv 1510.00149, section 2.
    Lee et al. 2021, Layer-adaptive Sparsity for the Magnitude-based Pruning, arXiv 2010.07611: `lamp`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from core.candidate import SparsityRule
from core.quantise.setting import Setting


def kept_in(weights: Mapping[str, Tensor], setting: Setting) -> dict[str, Tensor]:
    """`keep_largest` of every layer; with `global` and `lamp` a share of all their weights at once.

    `global` takes the smallest, so layers of many small weights lose more of them; `lamp` those of the least `lamp_scores`.
    """
    score = OF_ALL.get(setting.sparsity_by)
    if setting.sparsity == 0 or score is None or not weights:
        return {name: keep_largest(weight, setting) for name, weight in weights.items()}
    scores = {name: score(weight.detach()) for name, weight in weights.items()}
    kept = _largest(torch.cat([each.flatten() for each in scores.values()]), setting.sparsity)
    parts = zip(scores.items(), kept.split([each.numel() for each in scores.values()]), strict=True)
    return {name: part.view_as(each) | (each == each.max()) for (name, each), part in parts}


def lamp_scores(weight: Tensor) -> Tensor:
    """float64 in [0, 1], the shape of `weight`: its square over the sum of the squares that are no smaller.

    What a layer still has is the measure, so all layers' scores may be compared: a layer's scale does not count, and its largest
    weight scores 1. Of equal weights the first score lower. (Lee et al. 2021, LAMP, arXiv 2010.07611, equation 4)
    """
    squares, order = weight.detach().double().square().flatten().sort(stable=True)
    no_smaller = squares.flip(0).cumsum(0).flip(0)
    scores = torch.empty_like(squares)
    scores[order] = squares / no_smaller.clamp_min(torch.finfo(torch.float64).tiny)
    return scores.view_as(weight)


OF_ALL: dict[SparsityRule, Callable[[Tensor], Tensor]] = {"global": torch.abs, "lamp": lamp_scores}
"""Rules of which `sparsity` is a share of all layers' weights -> the score by which those are compared, the least go."""


def keep_largest(weight: Tensor, setting: Setting) -> Tensor:
    """Bool, the shape of `weight`: which weights are not pruned. Never all are. Of equal ones the first go."""
    magnitudes = weight.detach().abs()
    if setting.sparsity == 0:
        return torch.ones_like(weight, dtype=torch.bool)
    if setting.sparsity_by == "std":
        threshold = setting.sparsity * weight.detach().std(correction=0)
        return (magnitudes > threshold) | (magnitudes == magnitudes.max())
    return _largest(magnitudes.flatten(), setting.sparsity).view_as(weight)


def _largest(magnitudes: Tensor, sparsity: float) -> Tensor:
    """Bool (n,): without a share `sparsity` of the `magnitudes` (n,), but never of all."""
    kept = torch.ones(len(magnitudes), dtype=torch.bool, device=magnitudes.device)
    kept[magnitudes.argsort(stable=True)[: min(round(sparsity * len(magnitudes)), len(magnitudes) - 1)]] = False
    return kept


class Masked(nn.Module):
    """Parametrisation of a weight: what is not in `kept`, bool of its shape, is zero and gets no gradient."""

    kept: Tensor

    def __init__(self, kept: Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", kept)

    def forward(self, weight: Tensor) -> Tensor:
        """float32 -> the same shape."""
        return weight * self.kept
