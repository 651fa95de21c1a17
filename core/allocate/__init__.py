"""Which bits each layer gets, where the search does not say it itself. docs/architecture.md, decision 15.

`STRATEGIES`: name -> fn(problem, plan, evidence) -> bits of every free layer. What each looks at:

    haq          one action per depth position, mapped to bits; a budget then lowers layer by layer
    sqnr         one threshold on the error of rounding the trained parent's weights
    sensitivity  what each layer's bits cost the trained parent, and integer programming under a budget
    per_layer    nothing: bits were sampled for every layer

Executions are as sampled; under a latency budget (`budget_ms`) core/allocate/latency.py makes some of them INT8.
`sdq` (core/allocate/sdq.py) learns its bits in the candidate's own training. Until then it has the fewest that it may have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from core.allocate.haq import clamped, haq
from core.allocate.problem import Evidence, Problem, problem_of
from core.allocate.sensitivity import sensitivity
from core.allocate.sqnr import sqnr
from core.candidate import AllocationPlan, Candidate, GroupPlan, ShapePlan
from core.errors import UserError
from core.layers import LayerInfo
from core.plan import genes

TRAINED = ("sqnr", "sensitivity")
"""Strategies that look at the weights of the trained parent."""


def per_layer(problem: Problem, plan: AllocationPlan, evidence: Evidence) -> dict[str, int]:
    """The bits that were sampled for each layer, in order of execution. UserError for a network with more layers than that."""
    if len(plan.layers) < problem.layers:
        raise UserError(
            f"allocation per_layer takes a position for every layer, but {evidence.student} has {problem.layers} and quantise.positions is "
            f"{len(plan.layers)}; set quantise.positions to {problem.layers}"
        )
    return {layer.name: plan.layers[layer.index][0] for layer in problem.free}


def lowest(problem: Problem, plan: AllocationPlan, evidence: Evidence) -> dict[str, int]:
    """The fewest bits in every layer: a lower limit of the bytes."""
    return problem.uniform(min(plan.choices))


STRATEGIES: dict[str, Callable[[Problem, AllocationPlan, Evidence], Mapping[str, int]]] = {
    "per_layer": per_layer,
    "haq": haq,
    "sqnr": sqnr,
    "sensitivity": sensitivity,
    "sdq": lowest,
}


def allocate(candidate: Candidate, infos: Sequence[LayerInfo], evidence: Evidence) -> Candidate:
    """The candidate with one group for each of the pruned network's layers `infos`, and with their bits.

    `evidence` is asked for what the strategy looks at. A candidate whose bits are final comes back as it is. Raises InfeasibleCandidate
    when the budget cannot be kept.
    """
    plan = candidate.allocation
    if plan.strategy == "per_position" or plan.settled:
        return candidate
    as_settled = partial(settled, candidate, infos)
    problem = problem_of(
        candidate, infos, lambda bits: evidence.file_bytes(as_settled(bits)), lambda bits: evidence.plan_of(as_settled(bits))
    )
    problem.check_feasible()
    chosen = STRATEGIES[plan.strategy](problem, plan, evidence)
    assert problem.keeps(chosen), "a strategy keeps its budget"
    return settled(candidate, infos, chosen, final=plan.strategy != "sdq")


def in_bytes(
    candidate: Candidate, infos: Sequence[LayerInfo], file_bytes: Callable[[Candidate], int], plan_of: Callable[[Candidate], ShapePlan]
) -> Candidate:
    """A settled candidate, some of whose layers have become INT8 since: with fewer bits, the last layers first, until it keeps `budget_kb`.

    Every layer in INT8 brings a scale of its activations into the file. Raises InfeasibleCandidate when the budget cannot be kept.
    """
    if candidate.allocation.budget_kb is None:
        return candidate

    def lowered(bits: Mapping[str, int]) -> Candidate:
        pairs = zip(infos, candidate.groups, strict=True)
        groups = [group.model_copy(update={"weight_bits": bits.get(info.name, group.weight_bits)}) for info, group in pairs]
        return candidate.model_copy(update={"groups": tuple(groups)})

    problem = problem_of(candidate, infos, lambda bits: file_bytes(lowered(bits)), lambda bits: plan_of(lowered(bits)))
    return lowered(clamped(problem, {layer.name: candidate.groups[layer.index].weight_bits for layer in problem.free}))


def settled(candidate: Candidate, infos: Sequence[LayerInfo], bits: Mapping[str, int], final: bool = True) -> Candidate:
    """One group for each layer: sampled ratio and execution, and `bits`; layers that are not in `bits` have the edges' bits."""
    by_layer = genes(candidate, infos)
    groups = []
    for index, info in enumerate(infos):
        gene = by_layer[info.name]
        depth = bits.get(info.name, candidate.edge_bits)
        execution = candidate.allocation.layers[index][1] if candidate.allocation.layers else gene.execution
        changed = {"weight_bits": depth, "execution": execution if depth is not None and depth <= 8 else "float"}
        groups.append(GroupPlan.model_validate(gene.model_dump() | changed))
    plan = candidate.allocation.model_copy(update={"settled": final})
    return candidate.model_copy(update={"groups": tuple(groups), "allocation": plan})
