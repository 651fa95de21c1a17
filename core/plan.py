"""From genes at depth positions to a plan for every layer: which ratio, which bits, which execution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from core.candidate import Candidate, Execution, GroupPlan, LayerPlan, ShapePlan

if TYPE_CHECKING:
    from core.layers import LayerInfo  # it imports torch, and a plan is read without


def group_of(index: int, layers: int, groups: int) -> int:
    """Depth position of layer `index` of `layers` among `groups` positions; one to one when both are equal."""
    return index * groups // layers


def genes(candidate: Candidate, infos: Sequence[LayerInfo]) -> dict[str, GroupPlan]:
    """The genes of every layer, by name."""
    count = len(infos)
    return {info.name: candidate.groups[group_of(index, count, len(candidate.groups))] for index, info in enumerate(infos)}


def prune_ratios(candidate: Candidate, infos: Sequence[LayerInfo]) -> dict[str, float]:
    """Share of output channels to remove, by layer of the dense network; in [0, 1)."""
    return {name: gene.prune_ratio for name, gene in genes(candidate, infos).items()}


def shape_plan(candidate: Candidate, pruned: Sequence[LayerInfo], *, depthwise_int8: bool) -> ShapePlan:
    """What the candidate resolves to on its pruned network's layers, in order of execution.

    16-bit layers execute in float, and depthwise ones too where the runtime says so (docs/architecture.md, decision 1).
    """
    by_layer = genes(candidate, pruned)
    layers = []
    for index, info in enumerate(pruned):
        gene = by_layer[info.name]
        edge = index in (0, len(pruned) - 1) and candidate.edge_bits is not None
        bits = candidate.edge_bits if edge and candidate.edge_bits is not None else gene.weight_bits
        execution: Execution = gene.execution
        if bits > 8 or (info.groups > 1 and not depthwise_int8):
            execution = "float"
        layers.append(LayerPlan(name=info.name, out_channels=info.out_channels, weight_bits=bits, execution=execution))
    return ShapePlan(student=candidate.student, width=candidate.width, layers=tuple(layers))
