"""What the bits of each layer cost, and the best choice under a budget by integer programming.

References: Cai et al. 2020, ZeroQ, arXiv 2001.00281: sensitivity as the divergence of the answers when one layer alone is quantised
(section 3.3), and the assumption that layers' costs add up. The exact solution is that of HiGHS through scipy's `milp`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from core.allocate.haq import clamped
from core.allocate.problem import Evidence, Losses, Problem
from core.candidate import AllocationPlan
from core.config import RangeConfig
from core.errors import TrialError
from core.quantise.ptq import rounded
from core.quantise.setting import own_layer, weight_of

CLOSER = 0.1
"""A solution that costs less than this of the one before is worth another look, in finer units."""


def sensitivity(problem: Problem, plan: AllocationPlan, evidence: Evidence) -> dict[str, int]:
    """The bits with the least sum of costs within the budget; without one the most bits."""
    if problem.budget is None:
        return problem.uniform(problem.choices[-1])
    return cheapest(problem, evidence.losses())


def cheapest(problem: Problem, losses: Losses) -> dict[str, int]:
    """Minimise the sum of losses[layer][bits] over one choice per layer, subject to the budget. Exact.

    Raises TrialError for losses that are not finite. Those below 0 are rounding errors of losses that are 0.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    assert problem.budget is not None
    if not problem.free:
        return {}
    count, options = len(problem.free), len(problem.choices)
    cost = np.array([[losses[layer.name][bits] for bits in problem.choices] for layer in problem.free])
    if not np.isfinite(cost).all():
        name = problem.free[int((~np.isfinite(cost)).any(1).argmax())].name
        raise TrialError(
            f"sensitivity needs a finite loss for every layer and bit, but that of {name} is not; take another allocation.strategy"
        )
    cost = cost.clip(min=0.0)
    cost -= cost.min(1, keepdims=True)  # what a layer costs at any depth decides nothing
    place = {depth: index for index, depth in enumerate(problem.choices)}
    size = np.array([[layer.bytes(bits) for bits in problem.choices] for layer in problem.free])
    one_each = np.kron(np.eye(count), np.ones(options))
    rules = [LinearConstraint(one_each, 1, 1), LinearConstraint(size.reshape(1, -1), -np.inf, problem.budget)]
    # the solver's tolerances are absolute, and costs may be tiny, or some of them huge: they count in units of a solution's cost, and a
    # choice that alone costs more is none
    bits = clamped(problem, problem.uniform(problem.choices[-1]))
    known = np.inf
    while (total := float(sum(row[place[bits[layer.name]]] for layer, row in zip(problem.free, cost, strict=True)))) < CLOSER * known:
        known = total
        within = cost <= known
        # among equals the smaller file
        scaled = np.where(within, cost, 0.0) / max(known, 1e-30) + 1e-9 * size / size.max()
        bounds, exact = Bounds(0, within.ravel().astype(float)), {"mip_rel_gap": 0.0}
        solved = milp(scaled.ravel(), constraints=rules, integrality=np.ones(count * options), bounds=bounds, options=exact)
        assert solved.success, solved.message  # what is known is a solution
        chosen = solved.x.reshape(count, options).argmax(1)
        bits = {layer.name: problem.choices[index] for layer, index in zip(problem.free, chosen, strict=True)}
        bits = clamped(problem, bits)  # the solver keeps the budget to its own tolerance
    return bits


@torch.no_grad()
def measure_losses(
    model: nn.Module, names: Sequence[str], choices: Sequence[int], images: Tensor, rule: RangeConfig, batch: int = 256
) -> dict[str, dict[int, float]]:
    """Mean Kullback-Leibler divergence, in nats, of the network's answers from its own in float, with each layer alone at each depth.

    `images`: float32 (N, C, H, W) on the CPU, where the model is, which keeps its weights. It needs no label, and is 0 where nothing
    is lost.
    """
    found: dict[str, dict[int, float]] = {name: {} for name in names}
    model = copy.deepcopy(model).eval()
    parts = images.split(batch)
    expected = [torch.log_softmax(model(part).float(), 1) for part in parts]
    for name in names:
        own_layer(model, name)
        weight = weight_of(model, name)
        kept = weight.clone()
        for bits in choices:
            weight.copy_(rounded(kept, bits, rule).dequantised())
            total = sum(float(_divergence(log, model(part))) for log, part in zip(expected, parts, strict=True))
            found[name][bits] = total / len(images)
        weight.copy_(kept)
    return found


def _divergence(expected: Tensor, logits: Tensor) -> Tensor:
    """Sum over the batch of KL(expected || softmax(logits)); `expected` are log-probabilities (B, K)."""
    actual = torch.log_softmax(logits.float(), 1)
    return (expected.exp() * (expected - actual)).sum()


def expected_losses(model: nn.Module, names: Sequence[str], choices: Sequence[int], rule: RangeConfig) -> Mapping[str, Mapping[int, float]]:
    """What stands for a measurement before anything is trained: the squared error of rounding."""
    table: dict[str, dict[int, float]] = {}
    for name in names:
        weight = weight_of(model, name).detach().float()
        table[name] = {bits: float((rounded(weight, bits, rule).dequantised() - weight).square().sum()) for bits in choices}
    return table
