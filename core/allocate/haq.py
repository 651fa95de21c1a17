"""HAQ's mapping of actions to bits and its budget, with the search's own sampler in place of DDPG.

References: Wang et al. 2019, HAQ: Hardware-Aware Automated Quantization with Mixed Precision, arXiv 1811.08886; code at 8228d12.
Departures: never fewer bits than the fewest (the code rounds an action of 0 to 0 bits where the fewest are 1); with gaps between the
choices the action picks among them evenly; this budget is one of bytes (that of latency: core/allocate/latency.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from core.allocate.problem import Evidence, Problem
from core.candidate import AllocationPlan
from core.plan import group_of


def haq(problem: Problem, plan: AllocationPlan, evidence: Evidence) -> dict[str, int]:
    """Bits by the action at each layer's depth; then, while the budget is broken, one step less layer by layer, the last first."""
    count = len(plan.actions)
    depths = {layer.name: group_of(layer.index, problem.layers, count) for layer in problem.free}
    bits = {name: bits_of(plan.actions[depth], problem.choices) for name, depth in depths.items()}
    return clamped(problem, bits)


def bits_of(action: float, choices: Sequence[int]) -> int:
    """round((max - min + 1) * action + min - 0.5), at least min and at most max, for choices without gaps; `action` in [0, 1]."""
    index = round(len(choices) * action + choices[0] - 0.5) - choices[0]  # half to even, as numpy has it there
    return choices[min(max(index, 0), len(choices) - 1)]


def action_of(bits: int, choices: Sequence[int]) -> float:
    """The action in [0, 1] that `bits_of` maps to `bits`, one of the choices: the middle of all that do."""
    return (choices.index(bits) + 0.5) / len(choices)


def clamped(problem: Problem, bits: dict[str, int]) -> dict[str, int]:
    """Sweeps over the layers from the last to the first, each time one step less, until the budget is kept.

    Raises InfeasibleCandidate where the fewest bits break it.
    """
    problem.check_feasible()
    bits = dict(bits)
    while not problem.keeps(bits):
        for layer in reversed(problem.free):
            step = problem.choices.index(bits[layer.name])
            bits[layer.name] = problem.choices[max(0, step - 1)]
            if problem.keeps(bits):
                break
    return bits
