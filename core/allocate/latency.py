"""A latency budget: layers that were sampled as float become INT8 by a measured table, until the sum keeps it.

References: Wang et al. 2019, HAQ: Hardware-Aware Automated Quantization with Mixed Precision, arXiv 1811.08886: bits are lowered layer by
layer, the last first, until a table of layers' latencies keeps the budget; code at 8228d12.
Departures: bits below 8 make no layer faster here (docs/architecture.md, decision 1), so that executions are lowered, in one sweep; the
table is measured on this device, not simulated.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from core.candidate import Candidate, Execution, Frozen, ShapePlan
from core.errors import InfeasibleCandidate
from core.layers import LayerInfo


class LayerTime(Frozen):
    """Milliseconds of one dense layer in each execution, and its multiply-accumulates."""

    int8_ms: float
    float_ms: float
    macs: int

    def ms(self, execution: Execution) -> float:
        """In this execution."""
        return self.int8_ms if execution == "int8" else self.float_ms

    def scaled(self, macs: int) -> LayerTime:
        """Of the layer with so many multiply-accumulates left: time is taken to fall in proportion."""
        share = macs / self.macs if self.macs else 1.0
        return LayerTime(int8_ms=self.int8_ms * share, float_ms=self.float_ms * share, macs=macs)


class TimeTable(Frozen):
    """What the layers of a network take, and all else together, in milliseconds of one call."""

    layers: dict[str, LayerTime]
    """Without those that the runtime does not name in both twins: they count with the rest."""
    rest_ms: float
    """Pools, sums, changes of layout: the same whatever executes in INT8, and however much is pruned."""

    def pruned(self, infos: Sequence[LayerInfo]) -> TimeTable:
        """For the pruned network of these layers."""
        layers = {info.name: self.layers[info.name].scaled(info.macs) for info in infos if info.name in self.layers}
        return TimeTable(layers=layers, rest_ms=self.rest_ms)

    def total_ms(self, executions: Mapping[str, Execution]) -> float:
        """Of a call in which every layer has its execution."""
        return self.rest_ms + sum(time.ms(executions[name]) for name, time in self.layers.items())

    def gain_ms(self, name: str, before: Execution, after: Execution) -> float:
        """What the change saves; 0 for a layer that is not in the table."""
        return self.layers[name].ms(before) - self.layers[name].ms(after) if name in self.layers else 0.0


def time_table(times: Mapping[Execution, tuple[float, Mapping[str, float]]], infos: Sequence[LayerInfo]) -> TimeTable:
    """The table of two twins: execution -> (latency in ms, layer -> ms), of the dense network of the layers `infos`.

    `rest_ms` is what the latency has beside its layers, the larger one of both.
    """
    (int8, plain), names = (times["int8"][1], times["float"][1]), {info.name: info.macs for info in infos}
    layers = {
        name: LayerTime(int8_ms=int8[name], float_ms=plain[name], macs=macs)
        for name, macs in names.items()
        if name in int8 and name in plain
    }
    rests = [latency - sum(found[name] for name in layers) for latency, found in times.values()]
    return TimeTable(layers=layers, rest_ms=max(0.0, *rests))


def in_time(candidate: Candidate, infos: Sequence[LayerInfo], dense: TimeTable, plan_of: Callable[[Candidate], ShapePlan]) -> Candidate:
    """The candidate with layers flipped from float to INT8, the last first, where that is faster, until `budget_ms` is kept.

    `candidate` has a group for each of the pruned network's layers `infos`; `plan_of` says what a runtime and a quantiser make of one.
    A layer of 16 bits that is flipped gets the most bits that INT8 takes. Raises InfeasibleCandidate when the budget cannot be kept.
    """
    budget, table = candidate.allocation.budget_ms, dense.pruned(infos)
    assert budget is not None
    before, possible = executions_of(plan_of(candidate)), executions_of(plan_of(_flipped(candidate, range(len(infos)))))
    after, flipped = dict(before), list[int]()
    for index, info in reversed(list(enumerate(infos))):
        if table.total_ms(after) <= budget:
            break
        if table.gain_ms(info.name, before[info.name], possible[info.name]) > 0:
            after[info.name] = possible[info.name]
            flipped.append(index)
    if (least := table.total_ms(after)) > budget:
        raise InfeasibleCandidate(
            f"the layers must keep allocation.budget_ms {budget:g}, but with every one in INT8 that is faster so the table of this device "
            f"gives {least:.4f} ms; not trained"
        )
    return _flipped(candidate, flipped)


def executions_of(plan: ShapePlan) -> dict[str, Execution]:
    """Layer -> how it executes."""
    return {layer.name: layer.execution for layer in plan.layers}


def _flipped(candidate: Candidate, indices: Collection[int]) -> Candidate:
    """With INT8 asked for in these groups, and no more bits in them than that takes."""
    most = max(bits for bits in candidate.allocation.choices if bits <= 8)
    groups = [
        group.model_copy(update={"execution": "int8", "weight_bits": group.weight_bits if group.weight_bits <= 8 else most})
        if index in indices
        else group
        for index, group in enumerate(candidate.groups)
    ]
    return candidate.model_copy(update={"groups": tuple(groups)})
