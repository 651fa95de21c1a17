"""The baseline that cannot be queued at the start: bits by the rounding error of weights, which a parent must have learned before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import FixedTrial

from core.candidate import AllocationPlan, Candidate, WeightBits
from core.layers import layer_infos
from core.plan import group_of
from objectives.allocation import settle
from objectives.bench import Stages, Workbench
from search.baselines import nearest_to
from search.sample import sample
from search.space import Space, options


def allocated(space: Space, uniform: Mapping[str, Any], bench: Workbench, stages: Stages) -> dict[str, Any] | None:
    """The parameters of the trial `uniform`, whose parent is trained, with its bytes shared out by SQNR; None where that is no other trial.

    Where all layers round about equally well, the fairest shares of those bytes are equal ones. Then it is the bytes halfway to the next
    fewer bits (the next more, where there are none), which cannot be shared equally. A position has the bits of the last layer that is at
    it or before it, as positions between two layers do nothing for this student; where several layers share a position, the choice nearest
    to the mean of their bits, weighted by their parameters.
    """
    candidate, choices = sample(space, FixedTrial(dict(uniform))), options(space.quantise.weight_bits)
    for budget in _budgets(choices[uniform["bits_0"]], choices):
        plan = AllocationPlan(strategy="sqnr", choices=_in_int8(choices), budget_bits=budget)
        settled = settle(candidate.model_copy(update={"allocation": plan}), bench, stages)
        found = dict(uniform)
        for position, bits in enumerate(_by_position(candidate, settled, space.quantise.positions, bench)):
            if bits is not None:
                found[f"bits_{position}"] = choices.index(nearest_to(bits, choices))
        if found != uniform:
            return found
    return None


def _budgets(bits: WeightBits, choices: Sequence[WeightBits]) -> list[float]:
    """Bits per weight that are shared out, the first that brings another trial; none where there is nothing to choose."""
    among = _in_int8(choices)
    if bits not in among or len(among) == 1:
        return []
    place = among.index(bits)
    return [float(bits), (bits + among[place - 1 if place else 1]) / 2]


def _in_int8(choices: Sequence[WeightBits]) -> tuple[WeightBits, ...]:
    """16 bits would take a layer out of INT8, which is another question."""
    return tuple(bits for bits in choices if bits <= 8)


def _by_position(candidate: Candidate, settled: Candidate, positions: int, bench: Workbench) -> list[float | None]:
    """Bits of each position, by the layers of `settled`, which has a group for each; None before the first layer that is free."""
    infos = layer_infos(bench.network(candidate.student, candidate.width), bench.input_shape)
    count, edges = len(infos), (0, len(infos) - 1) if candidate.edge_bits is not None else ()
    groups = len(candidate.groups)
    at = [group_of(layer, count, groups) * positions // groups for layer in range(count)]
    shared: list[Sequence[int]] = [[layer for layer in range(count) if at[layer] == p and layer not in edges] for p in range(positions)]
    found: list[float | None] = []
    for layers in shared:
        weights = sum(infos[layer].weights for layer in layers)
        mean = sum(infos[layer].weights * settled.groups[layer].weight_bits for layer in layers) / weights if layers else None
        found.append(mean if mean is not None else (found[-1] if found else None))
    return found
