"""One threshold on the error of rounding picks every layer's bits.

References: Kloberdanz & Le 2023, MixQuant: Mixed Precision Quantization with a Bit-width Optimization Search, arXiv 2309.17341: the
relative rule, written from its abstract and known to us by hearsay alone: the fewest bits whose squared error is at most QEM times that
at 8 bits, here `sqnr_loss_db` = 10 log10(QEM).
The error of a uniform grid falls by 6 dB per bit whatever the layer, so the relative rule gives nearly one bit-width to all layers; an
absolute threshold tells layers with heavy tails from others.
"""

from __future__ import annotations

import math
from bisect import bisect_left

from torch import Tensor

from core.allocate.problem import Evidence, Problem
from core.candidate import AllocationPlan
from core.config import RangeConfig
from core.errors import TrialError
from core.quantise.ptq import rounded
from core.quantise.setting import weight_of

REFERENCE_BITS = 8
EXACT_DB = 200.0
"""Of a layer that loses nothing, or has nothing to lose."""


def sqnr(problem: Problem, plan: AllocationPlan, evidence: Evidence) -> dict[str, int]:
    """Of each layer the fewest bits that reach the threshold, or the most there are.

    The threshold is `sqnr_db`, or each layer's own at 8 bits less `sqnr_loss_db`, or the highest absolute one that keeps the budget.
    """
    weights = {layer.name: weight_of(evidence.model, layer.name) for layer in problem.free}
    table = {name: {bits: sqnr_db(weight, bits, evidence.rounding) for bits in problem.choices} for name, weight in weights.items()}
    if plan.sqnr_db is not None:
        return by_threshold(table, plan.sqnr_db)
    if plan.sqnr_loss_db is not None:
        best = {name: sqnr_db(weight, REFERENCE_BITS, evidence.rounding) for name, weight in weights.items()}
        relative = {name: {bits: value - best[name] for bits, value in row.items()} for name, row in table.items()}
        return by_threshold(relative, -plan.sqnr_loss_db)
    values = sorted({value for row in table.values() for value in row.values()}) or [0.0]  # where the edges are all there is
    broken = bisect_left(values, True, key=lambda value: not problem.keeps(by_threshold(table, value)))
    # the lowest value gives every layer its fewest bits or what is as good, and those keep the budget
    return by_threshold(table, values[max(0, broken - 1)])


def by_threshold(table: dict[str, dict[int, float]], threshold: float) -> dict[str, int]:
    """The fewest bits of each layer whose value is at least `threshold`, else the most."""
    return {name: next((bits for bits in sorted(row) if row[bits] >= threshold), max(row)) for name, row in table.items()}


def sqnr_db(weight: Tensor, bits: int, rule: RangeConfig) -> float:
    """10 log10(sum w^2 / sum (w - q)^2) of `weight` (out, ...) rounded to `bits` bits, per channel; at most `EXACT_DB`.

    Raises TrialError for weights that are not finite.
    """
    weight = weight.detach().float()
    noise = float((rounded(weight, bits, rule).dequantised() - weight).square().sum())
    signal = float(weight.square().sum())
    if not math.isfinite(signal):
        raise TrialError("sqnr needs finite weights, but those of a layer are not; take another allocation.strategy, or train again")
    return min(EXACT_DB, 10.0 * math.log10(signal / noise)) if noise > 0 and signal > 0 else EXACT_DB
