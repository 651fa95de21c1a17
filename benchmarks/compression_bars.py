"""Which bars of the project the rows of benchmarks/results/compression.json meet, each with its figure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

Rows = dict[int, dict[str, Any]]
"""seed -> row"""
Grid = Mapping[tuple[str, str], Rows]
"""(student, kind) -> its rows"""
STRATEGIES = ("haq", "sqnr", "sensitivity", "sdq", "per_layer", "per_position")
SEEDS = {"resnet20": 3}
"""How many paired seeds a claim about this network takes; others one."""
LONGER = 10 / 3
"""How many times as many epochs the rows have that are trained for longer: 40 and 10."""
KB = 1000
EPS = 1e-3
"""In points: accuracies are shares in float32, and one image of 10,000 is 0.01."""


@dataclass(frozen=True)
class Bar:
    """A claim, what it is judged by, and whether it holds; None: the rows for it are not all there, or say nothing.

    Where a claim is about the best of several kinds, that one is chosen on the search split and judged on the test split.
    """

    claim: str
    figure: str
    met: bool | None


def bars(table: Grid) -> list[Bar]:
    """All bars, in the order of the requirements."""
    students = sorted({student for student, _ in table})
    found: list[Bar] = []
    for student in students:
        found += [
            _lost(table, student, "w4", 0.5, f"{student}: lsq W4A8 loses at most 0.5 point"),
            _lost(table, student, "w3", 1.0, f"{student}: lsq W3A8 loses at most 1 point"),
            _mixed(table, student),
            _nncf(table, student),
            _rate(table, student),
        ]
    found += [_chain(table), _near_teacher(table), _tiny(table), *_engines(table)]
    return [bar for bar in found if bar.met is not None or bar.figure]


def bar_lines(found: Sequence[Bar]) -> list[str]:
    """A table in Markdown."""
    words = {True: "met", False: "not met", None: "open"}
    return ["| bar | figure | |", "|---|---|---|", *(f"| {bar.claim} | {bar.figure} | {words[bar.met]} |" for bar in found)]


def differences(rows: Rows, baseline: Rows, split: str = "test") -> list[float]:
    """Accuracies in points, of the seeds that both have, one less the other."""
    key = f"{split}_accuracy"
    return [100 * (row[key] - baseline[seed][key]) for seed, row in rows.items() if seed in baseline]


def float_of(kind: str) -> str:
    """The kind that is the FP32 network of another kind."""
    return "long-fp32" if kind.startswith("long-") else "fp32"


def all_seeds(student: str, found: Sequence[float]) -> bool:
    """Whether so many pairs are those that a claim takes."""
    return len(found) >= SEEDS.get(student, 1)


def error_of(values: Sequence[float]) -> float:
    """Standard error of the mean; NaN for fewer than two."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def _told(values: Sequence[float]) -> str:
    error = f" ± {error_of(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):+.2f}{error} points (n = {len(values)})"


def _lost(table: Grid, student: str, kind: str, most: float, claim: str) -> Bar:
    """Beside it what the same fine-tuning does for the FP32 network in float, where that was made."""
    floats = table.get((student, "fp32"), {})
    tuned = differences(table.get((student, "fp32-tuned"), {}), floats)
    bar = _held(claim, student, differences(table.get((student, kind), {}), floats), lambda mean: mean >= -most - EPS)
    return replace(bar, figure=f"{bar.figure}; as long in float: {_told(tuned)}") if bar.figure and tuned else bar


def _held(claim: str, student: str, found: Sequence[float], holds: Callable[[float], bool]) -> Bar:
    """By the mean of differences in pairs, once all seeds are there."""
    if not found:
        return Bar(claim, "", None)
    return Bar(claim, _told(found), holds(statistics.fmean(found)) if all_seeds(student, found) else None)


def _mixed(table: Grid, student: str) -> Bar:
    """The best strategy, against uniform bits at the same bytes; one seed has no standard error."""
    claim = f"{student}: the best mixed bits beat uniform ones at W3's bytes by more than a standard error"
    uniform = table.get((student, "w3"), {})
    searched = {name: differences(table.get((student, f"{name}-w3"), {}), uniform, "search") for name in STRATEGIES}
    searched = {name: found for name, found in searched.items() if found}
    if not searched:
        return Bar(claim, "", None)
    name = max(searched, key=lambda name: statistics.fmean(searched[name]))
    found = differences(table[student, f"{name}-w3"], uniform)
    known = len(found) > 1 and all_seeds(student, found)
    figure = f"{name}: {_told(found)}; on the search split {_told(searched[name])}"
    return Bar(claim, figure, statistics.fmean(found) > error_of(found) if known else None)


def _nncf(table: Grid, student: str) -> Bar:
    claim = f"{student}: NNCF's INT8 is better than ours by at most 0.2 point"
    found = differences(table.get((student, "int8-nncf"), {}), table.get((student, "int8"), {}))
    return _held(claim, student, found, lambda mean: mean <= 0.2 + EPS)


def _rate(table: Grid, student: str) -> Bar:
    """Bytes that lsq takes for the accuracy of each `rate`, over its own; the mean over seeds of the best weight that has all seeds.

    A row below all of lsq's has no equal: how small lsq gets there was not measured.
    """
    claim = f"{student}: rate has 1.3x smaller coded files than lsq at equal accuracy"
    lsq = [table.get((student, kind), {}) for kind in ("w2", "w3", "w4")]
    kinds = [kind for name, kind in table if name == student and kind.startswith("rate")]
    kinds = [kind for kind in kinds if all_seeds(student, list(table[student, kind]))] or kinds
    searched = {kind: found for kind in kinds if (found := _ratios(table[student, kind], lsq, "search"))}
    if not searched:
        return Bar(claim, "", None)
    best = max(searched, key=lambda kind: statistics.fmean(searched[kind]))
    found = _ratios(table[student, best], lsq, "test")
    if not found:
        return Bar(claim, f"{best}: below all of lsq's on the test split", None)
    mean, chosen_by = statistics.fmean(found), statistics.fmean(searched[best])
    figure = f"{best}: {mean:.2f}x (n = {len(found)}); on the search split {chosen_by:.2f}x"
    return Bar(claim, figure, mean >= 1.3 if all_seeds(student, found) else None)


def _ratios(rows: Rows, lsq: Sequence[Rows], split: str) -> list[float]:
    """For each seed that all have; [] where one is below all of lsq's."""
    lines = {seed: [each[seed] for each in lsq] for seed in rows if all(seed in each for each in lsq)}
    key = f"{split}_accuracy"
    if any(rows[seed][key] < min(each[key] for each in line) for seed, line in lines.items()):
        return []
    return [bytes_for(rows[seed][key], line, key) / rows[seed]["coded_bytes"] for seed, line in lines.items()]


def bytes_for(accuracy: float, line: Sequence[Mapping[str, Any]], key: str = "test_accuracy") -> float:
    """The fewest coded bytes at which the line through `line`'s rows reaches `accuracy`, which is at least that of one of them.

    What is better than all of them is compared with the best of them: a file is never held against one that was not made.
    """
    points = sorted((row["coded_bytes"], row[key]) for row in line)
    if points[0][1] >= accuracy:
        return float(points[0][0])
    for (size, below), (larger, above) in pairwise(points):
        if below < accuracy <= above:
            return float(size + (larger - size) * (accuracy - below) / (above - below))
    best = max(point[1] for point in points)
    return float(min(size for size, reached in points if reached == best))


def _chain(table: Grid) -> Bar:
    """Of the chains that lose little enough the smallest; else the one that loses least."""
    claim = "vgg8: Deep Compression's chain is 35x smaller than its FP32 file and loses at most 0.5 point"
    floats = table.get(("vgg8", "fp32"), {})
    found = []
    for (student, kind), rows in table.items():
        if student == "vgg8" and kind.startswith(("codebook", "chain")) and (searched := differences(rows, floats, "search")):
            smaller = [floats[seed]["packed_bytes"] / row["coded_bytes"] for seed, row in rows.items() if seed in floats]
            found.append((statistics.fmean(searched), statistics.fmean(smaller), kind))
    if not found:
        return Bar(claim, "", None)
    kept = [each for each in found if each[0] >= -0.5 - EPS]
    _, smaller_by, kind = max(kept, key=lambda each: each[1]) if kept else max(found)
    lost = differences(table["vgg8", kind], floats)
    return Bar(claim, f"{kind}: {smaller_by:.1f}x, {_told(lost)}", statistics.fmean(lost) >= -0.5 - EPS and smaller_by >= 35)


def _near_teacher(table: Grid) -> Bar:
    claim = "within 1.5 points of a teacher of 89.5 % in 80 KB, on the test split"
    small = [row for rows in table.values() for row in rows.values() if row["coded_bytes"] <= 80 * KB]
    if not small:
        return Bar(claim, "", None)
    best = max(small, key=lambda row: row["search_accuracy"])
    reached, teacher = 100 * best["test_accuracy"], 100 * best["teacher_test_accuracy"]
    figure = f"{best['row']}: {reached:.2f} % of {teacher:.2f} %, {best['coded_bytes'] / KB:.1f} KB, {best['parameters']:,} parameters"
    return Bar(claim, figure, reached >= teacher - 1.5 - EPS and teacher >= 89.5 - EPS)


def _tiny(table: Grid) -> Bar:
    """Any network of the same teacher and recipe may have so few bytes; it is held against resnet8 of the same seed."""
    claim = "resnet8 (MLPerf Tiny): the FP32 accuracy in 24 KB"
    floats = table.get(("resnet8", "fp32"), {})

    def taught_alike(row: Mapping[str, Any]) -> bool:
        return row["seed"] in floats and row["teacher_test_accuracy"] == floats[row["seed"]]["teacher_test_accuracy"]

    small = [
        {seed: row for seed, row in rows.items() if row["coded_bytes"] <= 24 * KB and taught_alike(row)}
        for (_, kind), rows in table.items()
        if not kind.startswith("long-")
    ]
    small = [each for each in small if each]
    if not small:
        return Bar(claim, "", None)
    best = max(small, key=lambda each: statistics.fmean(differences(each, floats, "search")))
    first, found = next(iter(best.values())), differences(best, floats)
    named = f"{first['student']} {first['kind']}"
    return Bar(claim, f"{named}: {_told(found)}, {first['coded_bytes'] / KB:.1f} KB", statistics.fmean(found) >= -EPS)


def _engines(table: Grid) -> list[Bar]:
    """The worst row of each precision; a processor without bfloat16 has none of that one."""
    rows = [row for kinds in table.values() for row in kinds.values() if "openvino" in row]
    claims = {"f32": (0.999, "at least 99.9 %"), "bf16": (0.99, "at least 99 %")}
    if not rows:
        return []
    found = []
    for precision, (least, words) in claims.items():
        there = [row for row in rows if precision in row["openvino"]]
        if not there:
            continue
        worst = min(there, key=lambda row: row["openvino"][precision]["agreement"])
        share = worst["openvino"][precision]["agreement"]
        claim = f"engine and simulation, float layers in {precision}: equal top-1 on {words} of the images"
        found.append(Bar(claim, f"{100 * share:.2f} % ({worst['row']}, worst of {len(there)})", share >= least))

    def apart(row: Mapping[str, Any]) -> float:
        return 100 * max(abs(each["accuracy"] - each["simulated_accuracy"]) for each in row["openvino"].values())

    worst = max(rows, key=apart)
    claim = "engine and simulation: accuracies differ by at most 0.3 point"
    return [*found, Bar(claim, f"{apart(worst):.2f} points ({worst['row']}, worst of {len(rows)})", apart(worst) <= 0.3 + EPS)]
