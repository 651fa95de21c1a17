"""What the rows of search_efficiency.py say: how much sooner ours has the hypervolume with which the plain arm ends."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from results.analysis import hypervolume, logarithmic, reference_of
from results.front import Point
from results.record import TeacherReport

CLASSES = 10
BAR = 10
"""Times sooner."""
Points = list[tuple[float, float, float, float]]
"""(seconds since the arm's start, accuracy, bytes, ms) of every network that was trained in full."""
LATENCIES = {False: "each arm's own latencies", True: "both timed again by one host"}
COLUMNS = {
    "plain_seconds": ("plain loop, s", 0),
    "plain_first_seconds": ("first there, s", 0),
    "plain_hypervolume": ("its hypervolume", 3),
    "our_seconds": ("ours gets there, s", 0),
    "our_trials": ("our trials till then", 0),
    "speedup": ("times sooner", 1),
    "speedup_of_first": ("than it was first there", 1),
    "our_hypervolume": ("ours at its end", 3),
}


def result(content: Mapping[str, Any]) -> dict[str, Any]:
    """Kind of latencies -> the seeds' results and what they say together."""
    found = {}
    for again, kind in LATENCIES.items():
        seeds = {seed: told for seed in seeds_of(content) if (told := compare(content, seed, again)) is not None}
        if seeds:
            found[kind] = {"seeds": {str(seed): told for seed, told in seeds.items()}, **verdict(seeds)}
    return found


def seeds_of(content: Mapping[str, Any]) -> list[int]:
    """Those of which there is any row."""
    return sorted({int(name.partition(":")[2]) for name in content["rows"]})


def compare(content: Mapping[str, Any], seed: int, again: bool = False) -> dict[str, float | None] | None:
    """One seed's result, with latencies timed `again` or each arm's own; None while a row is missing.

    `plain_seconds` is the plain arm's last trial, `plain_first_seconds` when it first had its final hypervolume. Where ours never gets
    there, `our_seconds` and `our_trials` are None and both speed-ups 0.
    """
    both = grown(content, seed, again)
    if both is None:
        return None
    theirs, own = both
    ours = content["rows"][f"ours:{seed}"]
    plain_seconds, goal = theirs[-1]
    first = next(seconds for seconds, volume in theirs if volume >= goal)
    there = next((seconds for seconds, volume in own if volume >= goal), None)
    trials = None if there is None else sum(seconds <= there for seconds in ours.get("ended", [seconds for seconds, _ in own]))
    return {
        "plain_seconds": plain_seconds,
        "plain_first_seconds": first,
        "plain_hypervolume": goal,
        "our_seconds": there,
        "our_trials": trials,
        "our_hypervolume": own[-1][1],
        "speedup": plain_seconds / there if there else 0.0,
        "speedup_of_first": first / there if there else 0.0,
    }


def grown(content: Mapping[str, Any], seed: int, again: bool) -> tuple[list[tuple[float, float]], list[tuple[float, float]]] | None:
    """(seconds, hypervolume) after each point of the plain arm, and of ours; None while a row is missing."""
    rows = content["rows"]
    if not {f"plain:{seed}", f"ours:{seed}", *([f"retimed:{seed}"] if again else [])} <= rows.keys():
        return None
    reference = reference_of(TeacherReport.model_validate(rows[f"ours:{seed}"]["teacher"]), CLASSES)
    return volumes(points_of(rows, "plain", seed, again), reference), volumes(points_of(rows, "ours", seed, again), reference)


def points_of(rows: Mapping[str, Any], arm: str, seed: int, again: bool) -> Points:
    """An arm's points, with the milliseconds of the second timing where asked."""
    points = rows[f"{arm}:{seed}"]["points"]
    times = rows[f"retimed:{seed}"][arm] if again else [point[3] for point in points]
    return [(seconds, accuracy, size, ms) for (seconds, accuracy, size, _), ms in zip(points, times, strict=True)]


def volumes(points: Points, reference: Point) -> list[tuple[float, float]]:
    """(seconds, hypervolume) after each point."""
    coordinates = [logarithmic(point[1:]) for point in points]
    return [(point[0], hypervolume(coordinates[: number + 1], reference)) for number, point in enumerate(points)]


def verdict(seeds: Mapping[int, Mapping[str, float | None]]) -> dict[str, Any]:
    """The median of the speed-ups, 0 where ours never got there, and the seeds that miss the bar; it stands for every seed by itself."""
    speedups = {seed: float(told["speedup"] or 0.0) for seed, told in seeds.items()}
    return {
        "median": statistics.median(speedups.values()),
        "never": [seed for seed, speedup in speedups.items() if speedup == 0],
        "below_bar": [seed for seed, speedup in speedups.items() if speedup < BAR],
        "median_keeps_bar": statistics.median(speedups.values()) >= BAR,
        "every_seed_keeps_bar": all(speedup >= BAR for speedup in speedups.values()),
    }


def report(content: Mapping[str, Any]) -> str:
    """A Markdown table per kind of latencies."""
    return "\n\n".join(f"With {kind}:\n\n{_table(told)}" for kind, told in result(content).items()) or "no seed has both arms yet"


def section(content: Mapping[str, Any]) -> str:
    """For docs/protocol.md: what was compared, where, the tables and the picture of pictures.py."""
    shared = content["shared"]
    device, versions = shared["device"], shared["versions"]
    named = ", ".join(f"{name} {versions[name]}" for name in ("torch", "optuna", "onnxruntime"))
    lines = [
        f"**Live:** `search.run` against the loop of `benchmarks/plain_search.py`, which runs {shared['trials']} trials of",
        f"{shared['epochs']} epochs, every one in full. Both search `spaces/cifar10.yaml` on {shared['train_limit']:,} images with one",
        f"teacher file and ONNX Runtime, by wall-clock; ours begins in an empty folder and runs {shared['our_trials']} trials",
        f"(`{' '.join(shared['ours'])}`; a parent is trained once, and its candidates share it).",
        "A front is its hypervolume over (error, log2 bytes, log2 ms).",
        f"{device['cpu']}, {device['cores']} cores, {named}; {len(seeds_of(content))} seeds.",
        "",
        report(content),
        "",
        "![hypervolume over time](search_efficiency.png)",
    ]
    return "\n".join(lines)


def _table(told: Mapping[str, Any]) -> str:
    lines = ["| seed | " + " | ".join(heading for heading, _ in COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for seed, row in told["seeds"].items():
        lines.append(f"| {seed} | " + " | ".join(_cell(row[key], digits) for key, (_, digits) in COLUMNS.items()) + " |")
    never = f"; never there: {_seeds(told['never'])}" if told["never"] else ""
    below = f"; less than {BAR} times with seeds {_seeds(told['below_bar'])}" if told["below_bar"] else ""
    return "\n".join([*lines, f"\nMedian: {told['median']:.1f} times sooner{below}{never}"])


def _cell(value: float | None, digits: int) -> str:
    return "never" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _seeds(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
