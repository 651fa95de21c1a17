"""The Pareto front of a study, its ranks, and the choice of one point under limits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from core.candidate import KB, bytes_of, milliseconds
from core.errors import UserError
from results.record import TrialRecord

Point = tuple[float, ...]


def objectives(record: TrialRecord) -> Point:
    """(accuracy in [0, 1], size in bytes, latency p50 in ms) of a measured record; without the third where engines are only built."""
    assert record.measurement is not None, f"trial {record.number} is not measured"
    return record.measurement.accuracy, float(record.measurement.size_bytes), *milliseconds(record.measurement.latency)


def non_dominated(points: Sequence[Point]) -> list[int]:
    """Indices, ascending, of the points that no other dominates: first number maximised, the others minimised.

    Equal points do not dominate each other, so all of them stay. A point with NaN can be compared with nothing and is on no front.
    """
    usable = [index for index, point in enumerate(points) if not any(math.isnan(value) for value in point)]
    if not usable:
        return []
    costs = np.array([_order(points[index]) for index in usable])
    kept: list[int] = []
    # In this order a point comes after every point that dominates it, so the first that is left is never dominated itself.
    left = np.lexsort(costs.T[::-1])
    while left.size:
        first = costs[left[0]]
        kept += [usable[index] for index in left[(costs[left] == first).all(axis=1)]]
        left = left[(costs[left] < first).any(axis=1)]
    return sorted(kept)


def front(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """The non-dominated COMPLETE records by rank: accuracy, ties to the faster, then the smaller, then the lower trial number.

    Trials that resolve to the same network (equal fingerprints) count once, with the lowest trial number.
    """
    unique = complete(records)
    best = [unique[index] for index in non_dominated([objectives(record) for record in unique])]
    return sorted(best, key=_rank_order)


def complete(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """COMPLETE records by trial number, one per fingerprint."""
    unique: dict[str | None, TrialRecord] = {}
    for record in sorted(records, key=lambda record: record.number):
        if record.state == "COMPLETE":
            unique.setdefault(record.fingerprint, record)
    return list(unique.values())


def at_rank(records: Iterable[TrialRecord], rank: int) -> TrialRecord:
    """The record of that rank on the front of `records`; UserError for an empty front or a rank beyond it."""
    ranked = _front_or_error(records)
    if not 0 <= rank < len(ranked):
        raise UserError(f"--rank must be between 0 and {len(ranked) - 1} (the front has {_count(len(ranked), 'point')}), but got {rank}")
    return ranked[rank]


def select(
    records: Iterable[TrialRecord],
    max_latency_ms: float | None = None,
    max_size_kb: float | None = None,
    min_accuracy: float | None = None,
) -> TrialRecord:
    """The best rank that keeps every limit given (ms, KB of 1000 bytes, accuracy in [0, 1]).

    Raises UserError for an impossible limit, for an empty front, and when nothing fits: then it names the nearest miss (the
    point whose largest relative excess is smallest) and the binding limit (where that excess is).
    """
    limits = _limits(max_latency_ms, max_size_kb, min_accuracy)
    ranked = _front_or_error(records)
    if max_latency_ms is not None and len(objectives(ranked[0])) < 3:
        raise UserError("--max-latency-ms needs latencies, but this study only built engines (runtime.build_for); leave it out")
    for record in ranked:
        if all(limit.excess(record) <= 0.0 for limit in limits):
            return record
    nearest = min(ranked, key=lambda record: max(limit.excess(record) for limit in limits))
    binding = max(limits, key=lambda limit: limit.excess(nearest))
    raise UserError(
        f"no point of the front ({len(ranked)}) keeps {' and '.join(str(limit) for limit in limits)}; nearest miss: "
        f"rank {ranked.index(nearest)} (trial {nearest.number}) with {_describe(nearest)}; binding limit: {binding.flag}, "
        f"relax it to {binding.needed(nearest)} or search on with more --trials"
    )


class _Limit(NamedTuple):
    """One limit: `axis` indexes (accuracy, size, latency), `bound` is in that axis's unit, `unit` scales it for messages."""

    flag: str
    axis: int
    bound: float
    unit: float

    def excess(self, record: TrialRecord) -> float:
        """How far the record is beyond the limit, relative to it; <= 0 keeps it."""
        value = objectives(record)[self.axis]
        return (self.bound - value if self.axis == 0 else value - self.bound) / (self.bound or 1.0)

    def needed(self, record: TrialRecord) -> str:
        """The record's own value, rounded so that the record keeps it as a limit."""
        value = objectives(record)[self.axis] / self.unit
        return f"{math.floor(value * 1e4) / 1e4:.4f}" if self.axis == 0 else f"{math.ceil(value * 1e4) / 1e4:.4f}".rstrip("0").rstrip(".")

    def __str__(self) -> str:
        return f"{self.flag} {self.bound / self.unit:g}"


def _limits(max_latency_ms: float | None, max_size_kb: float | None, min_accuracy: float | None) -> list[_Limit]:
    for flag, value in (("--max-latency-ms", max_latency_ms), ("--max-size-kb", max_size_kb)):
        if value is not None and not (0.0 < value < math.inf):
            raise UserError(f"{flag} must be a number above 0, but got {value:g}")
    if min_accuracy is not None and not 0.0 <= min_accuracy <= 1.0:
        hint = f"; for {min_accuracy:g} % give {min_accuracy / 100:g}" if 1.0 < min_accuracy <= 100.0 else ""
        raise UserError(f"--min-accuracy must be between 0 and 1, but got {min_accuracy:g}{hint}")
    asked = (
        ("--max-latency-ms", 2, max_latency_ms, 1),
        ("--max-size-kb", 1, None if max_size_kb is None else bytes_of(max_size_kb), KB),
        ("--min-accuracy", 0, min_accuracy, 1),
    )
    return [_Limit(flag, axis, bound, unit) for flag, axis, bound, unit in asked if bound is not None]


def _front_or_error(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    records = list(records)
    ranked = front(records)
    if not ranked:
        states = [record.state for record in records]
        raise UserError(
            f"the front is empty: of {_count(len(states), 'finished trial')} none is complete ({states.count('PRUNED')} pruned, "
            f"{states.count('FAIL')} failed); run search.run with more --trials"
        )
    return ranked


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _describe(record: TrialRecord) -> str:
    accuracy, size_bytes, *latency_ms = objectives(record)
    return ", ".join([f"accuracy {accuracy:.4f}", f"{size_bytes / KB:.1f} KB", *(f"{median:.3f} ms" for median in latency_ms)])


def _order(point: Point) -> Point:
    return -point[0], *point[1:]


def _rank_order(record: TrialRecord) -> tuple[float, ...]:
    accuracy, size_bytes, *latency_ms = objectives(record)
    return -accuracy, *latency_ms, size_bytes, record.number
