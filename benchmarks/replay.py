"""What skipping, stopping and the samplers are worth, replayed on a recorded table: no training, 100 seeds.

    python -m benchmarks.replay benchmarks/tables/table-cifar10.json --seeds 100

`gate`: the table's rows in 100 random orders, through the very gate of a search. Told are the training seconds that were not spent, the
hypervolume lost at the end, and of the skipped and stopped trials the share that would have joined the front at that moment, with
its 95 % upper limit (Clopper-Pearson over the trials of one order on average: orders share their rows, so they are no more trials).
`samplers`: each proposes candidates and gets the nearest row that is not yet taken, by the distance of its parameters; the mean
hypervolume at a quarter, a half and all of the budget, half the table's rows. The nearest row blurs differences between samplers.
Writes results/replay.json.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from benchmarks.table_search import record_of
from core.config import StoppingConfig
from core.errors import HopelessCandidate
from core.files import write_atomically
from objectives.budget import Known
from objectives.outlook import traits_of
from results.analysis import hypervolume, logarithmic, reference_of
from results.front import Point, front, non_dominated, objectives
from results.record import TeacherReport, TrialRecord
from search.account import TRAINED
from search.samplers import make_sampler
from search.stopping import Gatekeeper, Judge, measured
from search.study import DIRECTIONS

OUT = Path(__file__).parent / "results" / "replay.json"


@dataclass(frozen=True)
class Table:
    """A recorded table, read."""

    rows: tuple[TrialRecord, ...]
    params: tuple[dict[str, Any], ...]
    teacher: TeacherReport
    images: int
    reference: Point


@dataclass(frozen=True)
class Outcome:
    """One order of the rows: shares of the seconds saved and the hypervolume lost; trials ended early; those that would have joined."""

    saved: float
    lost: float
    skipped: int
    stopped: int
    would_have_joined: int


def read_table(content: dict[str, Any], classes: int) -> Table:
    """From the JSON of table_search.py."""
    teacher = TeacherReport.model_validate(content["facts"]["teacher"])
    rows = tuple(record_of(row) for row in content["rows"])
    params = tuple(row["params"] for row in content["rows"])
    return Table(rows, params, teacher, measured(rows[0]).images, reference_of(teacher, classes))


def replay(table: Table, seed: int, config: StoppingConfig) -> Outcome:
    """The rows in an order drawn from `seed`, through the gate."""
    order = random.Random(seed).sample(table.rows, len(table.rows))
    judge = Judge(config, table.teacher.accuracy, table.images)
    kept: list[TrialRecord] = []
    best: list[TrialRecord] = []
    spent, skipped, stopped, joined = 0.0, 0, 0, 0
    for row in order:
        gate = Gatekeeper(judge, lambda: kept, lambda: best, {})
        try:
            through(gate, row)
        except HopelessCandidate:
            skipped, stopped = skipped + (gate.notes["ending"] == "skipped"), stopped + (gate.notes["ending"] == "stopped")
            points = [objectives(each) for each in (*best, row)]
            joined += len(points) - 1 in non_dominated(points)
            spent += training_seconds(row) * len(gate.notes.get("rungs", ())) / len(row.rungs)
            continue
        spent += training_seconds(row)
        kept.append(row)
        best[:] = front([*best, row])
    whole = volume(front(table.rows), table.reference)
    return Outcome(
        saved=1 - spent / sum(map(training_seconds, table.rows)),
        lost=1 - volume(best, table.reference) / whole,
        skipped=skipped,
        stopped=stopped,
        would_have_joined=joined,
    )


def through(gate: Gatekeeper, row: TrialRecord) -> None:
    """Ask the gate what a search asks. Raises HopelessCandidate where it refuses."""
    point = measured(row)
    assert row.candidate is not None
    known = Known(traits_of(row.candidate, point.parameters, point.macs), point.size_bytes, point.latency)
    gate.before_training(known)
    for rung in row.rungs:
        gate.at_rung(known, rung, rung is row.rungs[-1])


def training_seconds(row: TrialRecord) -> float:
    """What a skip saves."""
    return sum(row.seconds.get(stage, 0.0) for stage in TRAINED)


def volume(records: Sequence[TrialRecord], reference: Point) -> float:
    return hypervolume([logarithmic(objectives(record)) for record in records], reference)


def gate_claims(table: Table, seeds: int, config: StoppingConfig) -> dict[str, Any]:
    """Medians and the worst tenth over `seeds` orders."""
    outcomes = [replay(table, seed, config) for seed in range(seeds)]
    ended = sum(each.skipped + each.stopped for each in outcomes)
    joined = sum(each.would_have_joined for each in outcomes)
    mean_ended = round(ended / seeds)
    return {
        "confidence": config.confidence,
        "saved_median": statistics.median(each.saved for each in outcomes),
        "saved_worst_tenth": sorted(each.saved for each in outcomes)[seeds // 10],
        "hypervolume_lost_median": statistics.median(each.lost for each in outcomes),
        "hypervolume_lost_worst_tenth": sorted(each.lost for each in outcomes)[-1 - seeds // 10],
        "skipped_per_order": sum(each.skipped for each in outcomes) / seeds,
        "stopped_per_order": sum(each.stopped for each in outcomes) / seeds,
        "would_have_joined": joined / ended if ended else 0.0,
        "would_have_joined_upper_95": upper_share(joined / seeds, mean_ended) if ended else 1.0,
    }


def upper_share(positives: float, count: int, confidence: float = 0.95) -> float:
    """One-sided Clopper-Pearson limit of a share; `positives` need not be whole."""
    from scipy.stats import beta

    return float(beta.ppf(confidence, positives + 1, count - positives)) if positives < count else 1.0


def sampler_claims(table: Table, name: str, seeds: int) -> dict[str, list[float]]:
    """Hypervolume after a quarter, a half and all of the budget, a value per seed."""
    budget = len(table.rows) // 2
    marks = {"quarter": budget // 4, "half": budget // 2, "all": budget}
    found: dict[str, list[float]] = {mark: [] for mark in marks}
    for seed in range(seeds):
        taken = list(search(table, name, seed, budget))
        for mark, count in marks.items():
            found[mark].append(volume(front(taken[:count]), table.reference))
    return found


def search(table: Table, name: str, seed: int, budget: int) -> Iterator[TrialRecord]:
    """The rows that a sampler finds, in order."""
    study = optuna.create_study(directions=list(DIRECTIONS), sampler=make_sampler(name, seed, 0, budget))
    spaces = distributions(table)
    left = set(range(len(table.rows)))
    for _ in range(budget):
        trial = study.ask(spaces)
        nearest = nearest_row(table, trial.params, left, spaces)
        left.remove(nearest)
        study.tell(trial, objectives(table.rows[nearest]))
        yield table.rows[nearest]


def nearest_row(table: Table, params: dict[str, Any], left: set[int], spaces: dict[str, Any]) -> int:
    """Index of the row among `left` whose parameters are nearest."""
    return min(sorted(left), key=lambda index: distance(params, table.params[index], spaces))


def distributions(table: Table) -> dict[str, optuna.distributions.BaseDistribution]:
    """The box around the rows: names are choices, numbers are ranges."""
    found: dict[str, optuna.distributions.BaseDistribution] = {}
    for name in table.params[0]:
        values = [params[name] for params in table.params]
        if isinstance(values[0], str) or name == "width":
            found[name] = optuna.distributions.CategoricalDistribution(sorted(set(values)))
        elif isinstance(values[0], int):
            found[name] = optuna.distributions.IntDistribution(min(values), max(values))
        else:
            found[name] = optuna.distributions.FloatDistribution(min(values), max(values))
    return found


def distance(a: dict[str, Any], b: dict[str, Any], spaces: dict[str, Any]) -> float:
    """Sum over the parameters: 0 or 1 for choices, the square of the difference as a share of the range for numbers."""
    total = 0.0
    for name, space in spaces.items():
        if isinstance(space, optuna.distributions.CategoricalDistribution):
            total += a[name] != b[name]
        elif space.high > space.low:
            total += ((a[name] - b[name]) / (space.high - space.low)) ** 2
    return total


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--samplers", nargs="*", default=["tpe", "nsga2", "random"])
    parser.add_argument("--confidences", nargs="+", type=float, default=[0.8, 0.9, 0.95])
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args(argv)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    table = read_table(json.loads(args.table.read_text(encoding="utf-8")), args.classes)
    gates = [gate_claims(table, args.seeds, StoppingConfig(confidence=confidence)) for confidence in args.confidences]
    samplers = {name: sampler_claims(table, name, args.seeds) for name in args.samplers}
    means = {name: {mark: statistics.mean(values) for mark, values in found.items()} for name, found in samplers.items()}
    result = {
        "table": args.table.name,
        "rows": len(table.rows),
        "seeds": args.seeds,
        "gate": gates,
        "samplers_mean": means,
        "samplers": samplers,
    }
    write_atomically(args.out, json.dumps(result, indent=1) + "\n")
    print(json.dumps({"gate": gates, "samplers_mean": means}, indent=1))


if __name__ == "__main__":
    main()
