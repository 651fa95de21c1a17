"""What an allocation chooses among: the layers that are free, their bytes at every depth, and the budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from core.candidate import AllocationPlan, Candidate, ShapePlan, bytes_of
from core.config import PtqConfig
from core.errors import InfeasibleCandidate
from core.layers import LayerInfo

Losses = Mapping[str, Mapping[int, float]]
"""layer -> bits -> what the loss rises by when this layer alone has so many bits"""


@dataclass(frozen=True)
class Evidence:
    """What strategies may ask for. `model` is the pruned network with the weights to look at; the others cost something when called."""

    model: nn.Module
    student: str
    losses: Callable[[], Losses]
    file_bytes: Callable[[Candidate], int]
    """Bytes of the bit-packed file of a settled candidate."""
    plan_of: Callable[[Candidate], ShapePlan]
    """The exact plan of a settled candidate."""
    rounding: PtqConfig


@dataclass(frozen=True)
class Free:
    """A layer whose bits are to be chosen; the `index`-th of its network."""

    name: str
    index: int
    weights: int
    channels: int
    shares: bool = False
    """Whether its integers are indices of a codebook."""
    most: int = 8
    """Bits that are stored at most where 8 or fewer are chosen: 7 where this device is exact in INT8 with no more."""

    def bytes(self, bits: float) -> int:
        """Of its integers in the bit-packed file; and of what scales of 16-bit layers take more, 2 bytes for each channel, or of 2 bytes
        for each value of a codebook."""
        bits = min(bits, self.most) if bits <= 8 else bits
        integers = -int(-self.weights * bits // 8)
        values = min(2 ** math.ceil(bits), self.weights) if self.shares and bits <= 8 else 0
        return integers + (2 * self.channels if bits > 8 else 2 * values + (values > 127))  # a length of two bytes


@dataclass(frozen=True)
class Problem:
    """Free layers in order of execution, choices in rising order; `budget` is in bytes of the free layers together, None for none."""

    free: tuple[Free, ...]
    choices: tuple[int, ...]
    layers: int
    """Of the whole network."""
    budget: int | None = None
    stated: str = ""
    """The budget in the user's words."""

    def uniform(self, bits: int) -> dict[str, int]:
        """The same bits in every free layer."""
        return {layer.name: bits for layer in self.free}

    def bytes(self, bits: Mapping[str, int]) -> int:
        """Of the free layers."""
        return sum(layer.bytes(bits[layer.name]) for layer in self.free)

    def keeps(self, bits: Mapping[str, int]) -> bool:
        """Whether the budget is kept."""
        return self.budget is None or self.bytes(bits) <= self.budget

    def check_feasible(self) -> None:
        """Raises InfeasibleCandidate when all layers at the fewest bits break the budget."""
        if self.choices and not self.keeps(self.uniform(self.choices[0])):
            least = self.bytes(self.uniform(self.choices[0]))
            raise InfeasibleCandidate(
                f"the bits must keep {self.stated}, which leaves {max(0, self.budget or 0)} bytes for {len(self.free)} layers, but "
                f"{self.choices[0]} bits in each take {least}; not trained"
            )


def problem_of(
    candidate: Candidate,
    infos: Sequence[LayerInfo],
    file_bytes: Callable[[Mapping[str, int]], int],
    plan_of: Callable[[Mapping[str, int]], ShapePlan],
) -> Problem:
    """The choice that the candidate leaves open.

    Of the bits of the free layers `file_bytes` says the bytes of the whole file, and `plan_of` what every layer has of them.
    """
    edges = (0, len(infos) - 1) if candidate.edge_bits is not None else ()
    inner = [(index, info) for index, info in enumerate(infos) if index not in edges]
    counted = candidate.allocation.budget_bits is not None or candidate.allocation.budget_kb is not None
    most = {layer.name: layer.weight_bits for layer in plan_of({info.name: 8 for _, info in inner}).layers} if counted else {}
    shares = candidate.quantiser == "codebook"
    free = tuple(Free(info.name, index, info.weights, info.out_channels, shares, most.get(info.name, 8)) for index, info in inner)
    problem = Problem(free, candidate.allocation.choices, len(infos))
    budget, stated = _budget(problem, candidate.allocation, file_bytes)
    return replace(problem, budget=budget, stated=stated)


def _budget(problem: Problem, plan: AllocationPlan, file_bytes: Callable[[Mapping[str, int]], int]) -> tuple[int | None, str]:
    """Bytes of the free layers, and the limit in words; the smaller one where two are stated."""
    found: list[tuple[int, str]] = []
    if plan.budget_bits is not None:
        stated = sum(replace(layer, most=8).bytes(plan.budget_bits) for layer in problem.free)
        found.append((stated, f"allocation.budget_bits {plan.budget_bits:g}"))
    if plan.budget_kb is not None:
        lowest = problem.uniform(problem.choices[0])
        others = file_bytes(lowest) - problem.bytes(lowest)
        found.append((int(bytes_of(plan.budget_kb)) - others, f"allocation.budget_kb {plan.budget_kb:g}"))
    return min(found) if found else (None, "")
