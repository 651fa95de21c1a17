"""What skipping and stopping are worth: the rows of a recorded table in random orders, through the very gate of a search.

Seconds are charged per stage, and within a stage by the epochs that were done. A skipped candidate costs no training, no accuracy
and no parent; one that is stopped costs its epochs and the parent. A parent is charged once, with the first candidate that needs it.
Engines are timed before the gate is asked, so their seconds are neither spent nor saved.
"""

from __future__ import annotations

import random
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import joblib
import numpy as np

from benchmarks.recorded import Table, volume
from benchmarks.table_search import parent_of
from core.candidate import Rung
from core.config import StoppingConfig
from core.errors import HopelessCandidate
from objectives.budget import Known
from objectives.outlook import TOGETHER, traits_of
from results.front import front, non_dominated, objectives
from results.record import TrialRecord
from search.account import PARTS, TRAINED
from search.stopping import Gatekeeper, Judge, measured


@dataclass(frozen=True)
class Ended:
    """A row that the gate refused. `upper`: the limit of its accuracy that a skip rested on."""

    row: TrialRecord
    stopped: bool
    joins: bool
    """Whether it would have joined the front of that moment."""
    upper: float
    rungs: tuple[Rung, ...]


@dataclass(frozen=True)
class Outcome:
    """One order of the rows: shares of the training seconds saved, without and with those of parents, and of the hypervolume lost."""

    saved: float
    saved_later: float
    """Of the order's second half."""
    saved_with_parents: float
    possible: float
    """What is saved by who knows every accuracy before and trains what joins the front alone."""
    lost: float
    ended: tuple[Ended, ...]

    def of(self, stopped: bool) -> list[Ended]:
        """The stopped rows, or the skipped ones."""
        return [each for each in self.ended if each.stopped is stopped]


def order_of(table: Table, seed: int) -> list[TrialRecord]:
    """The rows, shuffled."""
    return random.Random(seed).sample(table.rows, len(table.rows))


def replay(table: Table, order: Sequence[TrialRecord], config: StoppingConfig, together: bool = TOGETHER) -> Outcome:
    """The rows in that order, through the gate. `together`: a stop's confidence is that of all looks at a training."""
    judge = Judge(config, together)
    kept: list[TrialRecord] = []
    best: list[TrialRecord] = []
    ended: list[Ended] = []
    costs: list[float] = []
    parents = set[str]()
    for row in order:
        gate = Gatekeeper(judge, lambda: kept, lambda: best, {})
        try:
            through(gate, row)
        except HopelessCandidate:
            ended.append(_ended(gate, row, judge.outlook(kept).upper(known_of(row).traits), best))
            costs.append(spent_until(row, ended[-1].rungs) if ended[-1].stopped else 0.0)
            parents |= parents_of([row]) if ended[-1].stopped else set()
            continue
        costs.append(training_seconds(row))
        parents |= parents_of([row])
        kept.append(row)
        best[:] = front([*best, row])
    full, half = [training_seconds(row) for row in order], len(order) // 2
    spent, whole, shared = sum(costs), sum(full), _seconds(table, parents_of(table.rows))
    return Outcome(
        saved=1 - spent / whole,
        saved_later=1 - sum(costs[half:]) / sum(full[half:]),
        saved_with_parents=1 - (spent + _seconds(table, parents)) / (whole + shared),
        possible=1 - sum(map(training_seconds, joining(order))) / whole,
        lost=1 - volume(best, table.reference) / volume(front(table.rows), table.reference),
        ended=tuple(ended),
    )


def joining(order: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The rows that are on the front when they arrive."""
    best: list[TrialRecord] = []
    joined = []
    for row in order:
        found = front([*best, row])
        if any(each is row for each in found):
            joined.append(row)
            best = found
    return joined


def _ended(gate: Gatekeeper, row: TrialRecord, upper: float, best: Sequence[TrialRecord]) -> Ended:
    points = [objectives(each) for each in (*best, row)]
    joins = len(points) - 1 in non_dominated(points)
    return Ended(row, gate.notes["ending"] == "stopped", joins, upper, tuple(gate.notes.get("rungs", ())))


def through(gate: Gatekeeper, row: TrialRecord) -> None:
    """Ask the gate what a search asks. Raises HopelessCandidate where it refuses."""
    known = known_of(row)
    gate.before_training(known)
    for rung in row.rungs:
        gate.at_rung(known, rung)


def known_of(row: TrialRecord) -> Known:
    """What was known of the row before its training."""
    point = measured(row)
    assert row.candidate is not None
    size = point.size_bytes if row.size_bytes is None else row.size_bytes
    return Known(traits_of(row.candidate, point.parameters, point.macs), size, point.latency)


# --- seconds ---------------------------------------------------------------------------------------------------------


def training_seconds(row: TrialRecord) -> float:
    """What a skip saves."""
    return sum(row.seconds.get(stage, 0.0) for stage in TRAINED)


def spent_until(row: TrialRecord, done: Sequence[Rung]) -> float:
    """Seconds of the training up to the last rung of `done`: a stage's share by the epochs done within it."""
    ends = {rung.stage: rung.epoch for rung in row.rungs if rung.epoch}
    reached = {rung.stage: rung.epoch for rung in done}
    share = {stage: reached.get(stage, 0.0) / end for stage, end in ends.items()}
    # a stage without epochs, as prune with the look before training, is over before the first one
    return sum(row.seconds.get(stage, 0.0) * share.get(stage, 1.0) for stage in PARTS["training"])


def parents_of(rows: Sequence[TrialRecord]) -> set[str]:
    """The parents that the rows' training needs."""
    return {parent_of(row.candidate) for row in rows if row.candidate is not None and row.candidate.distil.init == "inherit"}


def _seconds(table: Table, parents: set[str]) -> float:
    return sum(table.parents.get(name, 0.0) for name in parents)


# --- claims ----------------------------------------------------------------------------------------------------------


def gate_claims(
    table: Table, orders: Sequence[Sequence[TrialRecord]], config: StoppingConfig, jobs: int = 1, together: bool = TOGETHER
) -> dict[str, Any]:
    """Medians and the worst tenth over the orders; of skipped and of stopped trials, who would have joined, and who was optimal."""
    run = joblib.delayed(replay)
    outcomes: list[Outcome] = joblib.Parallel(n_jobs=jobs)(run(table, order, config, together) for order in orders)
    optimal = {row.number for row in front(table.rows)}
    return {
        "confidence": config.confidence,
        "confidence_of": "all answers about a candidate" if together else "each answer",
        "orders": len(orders),
        "optimal_rows": len(optimal),
        **_spread("saved", [each.saved for each in outcomes], worst_is_low=True),
        **_spread("saved_later", [each.saved_later for each in outcomes], worst_is_low=True),
        **_spread("possible", [each.possible for each in outcomes], worst_is_low=True),
        **_spread("saved_with_parents", [each.saved_with_parents for each in outcomes], worst_is_low=True),
        **_spread("hypervolume_lost", [each.lost for each in outcomes], worst_is_low=False),
        **_ending_claims("stopped", [each.of(stopped=True) for each in outcomes], optimal),
        **_ending_claims("skipped", [each.of(stopped=False) for each in outcomes], optimal),
        **_bounds(outcomes, optimal),
    }


def _spread(name: str, values: Sequence[float], *, worst_is_low: bool) -> dict[str, float]:
    ordered = sorted(values, reverse=not worst_is_low)
    return {f"{name}_median": statistics.median(values), f"{name}_worst_tenth": ordered[len(values) // 10]}


def _ending_claims(name: str, orders: Sequence[Sequence[Ended]], optimal: set[int]) -> dict[str, float]:
    """Of the trials that ended in one way. Orders share their rows: the limit is that of other rows, or of the trials of one order."""
    count, joined = sum(map(len, orders)), sum(each.joins for order in orders for each in order)
    return {
        f"{name}_per_order": count / len(orders),
        f"{name}_different_rows": len({each.row.number for order in orders for each in order}),
        f"{name}_would_have_joined": joined / count if count else 0.0,
        f"{name}_would_have_joined_upper_95_rows": upper_share_of_rows([each for order in orders for each in order]),
        f"{name}_would_have_joined_upper_95": upper_share(joined / len(orders), round(count / len(orders))),
        f"optimal_{name}": sum(each.row.number in optimal for order in orders for each in order),
    }


def _bounds(outcomes: Sequence[Outcome], optimal: set[int]) -> dict[str, float]:
    """How often the limit that a skip rested on was right, and how many optimal rows were skipped although it was: the law says none."""
    skipped = [each for outcome in outcomes for each in outcome.of(stopped=False)]
    right = [each for each in skipped if measured(each.row).accuracy <= each.upper]
    lost = sum(each.row.number in optimal for each in right)
    return {"skipped_bound_right": len(right) / len(skipped) if skipped else 1.0, "optimal_skipped_bound_right": lost}


def upper_share_of_rows(ended: Sequence[Ended], confidence: float = 0.95) -> float:
    """One-sided limit of the share that joins, 1 of nothing: rows drawn anew (BCa bootstrap), each with all that orders made of it."""
    from scipy.stats import bootstrap

    each_row = defaultdict[int, list[bool]](list)
    for each in ended:
        each_row[each.row.number].append(each.joins)
    if not 0 < sum(each.joins for each in ended) < len(ended):  # nothing varies: so many independent rows
        return upper_share(sum(any(joins) for joins in each_row.values()), len(each_row))
    joined, count = (np.array([measure(joins) for joins in each_row.values()], float) for measure in (sum, len))

    def share(joined: np.ndarray, count: np.ndarray, axis: int = -1) -> np.ndarray:
        return joined.sum(axis) / count.sum(axis)

    found = bootstrap((joined, count), share, paired=True, alternative="less", confidence_level=confidence, rng=0)
    return float(found.confidence_interval.high)


def upper_share(positives: float, count: int, confidence: float = 0.95) -> float:
    """One-sided Clopper-Pearson limit of a share, 1 of nothing; `positives` need not be whole."""
    from scipy.stats import beta

    return float(beta.ppf(confidence, positives + 1, count - positives)) if positives < count else 1.0
