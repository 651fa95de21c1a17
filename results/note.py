"""One trial, and one study, in Markdown: the notes that optuna-dashboard shows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

from core.candidate import BuildReport, Candidate
from results.choices import executions, unusual
from results.record import TrialRecord
from results.report_text import command, markdown, opening, whole_front
from results.table import caption, conditions
from results.view import StudyView

OWN_BITS = {"float": "float, not quantised", "nncf": "8 bits where NNCF quantises, else float"}
MARK = "*Kept up to date by paretopress; without this line your own note stays.*"
"""Ends a study's note."""


def trial_note(record: TrialRecord, outcome: str) -> str:
    """How a trial ended (`outcome`, a line), its plan in words, what it measured and where its time went; about 1 KB."""
    facts = [*_plan(record), *_measured(record), *_known(record), *_accuracies(record), *_seconds(record), *_files(record)]
    return "\n".join([f"**{plain(outcome)}**", "", *(f"- {fact}" for fact in facts)])


def study_note(view: StudyView) -> str:
    """What the study is, its front, and the next commands."""
    front = [markdown(whole_front(view)), plain(caption(view.front, view.teacher))] if view.front else []
    commands = [
        f"- `{command(view, 'export_best')} --rank R` writes a model as a folder that runs",
        f"- `{command(view, 'explain')} --rank R` says what is inside one",
        f"- `{command(view, 'report')}` writes all of this, and more, as one page",
    ]
    return "\n\n".join([plain(opening(view)), *front, "\n".join(commands), *_places(view), MARK])


def _places(view: StudyView) -> list[str]:
    """What Optuna's numbers of a list mean: `search.sample` asks for the place of bits and ratios."""
    lists = {"bits_i": view.space.get("quantise", {}).get("weight_bits"), "ratio_i": view.space.get("prune", {}).get("ratio")}
    told = [f"{plain(name)} is the place in the list {plain(str(values))}" for name, values in lists.items() if isinstance(values, list)]
    return [f"Among Optuna's parameters {' and '.join(told)}, counted from 0."] if told else []


def plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_<>\[\]|#])", r"\\\1", text)


def _plan(record: TrialRecord) -> list[str]:
    candidate = record.candidate
    if candidate is None:
        return []
    distil, groups = candidate.distil, candidate.groups
    taught = f"{distil.loss} at temperature {distil.temperature:g}, weight {distil.weight:g}, labels {distil.ce_weight:g}"
    return [
        f"network: {plain(candidate.student)}, width {candidate.width:g}",
        "channels removed, first layer to last: " + _runs([f"{100 * group.prune_ratio:.0f} %" for group in groups]),
        _bits(candidate),
        f"execution, first layer to last: {_runs(executions(candidate))}",
        f"training: {plain(taught)}, from {'its own initial' if distil.init == 'scratch' else 'the dense network’s'} weights",
        *_rest(candidate),
    ]


def _bits(candidate: Candidate) -> str:
    """As they are stored: what was sampled acts on no quantiser that has bits of its own."""
    if candidate.quantiser in OWN_BITS:
        return f"weights: {OWN_BITS[candidate.quantiser]}"
    bits = _runs([str(group.weight_bits) for group in candidate.groups])
    return f"bits, first layer to last: {bits}{_edges(candidate)}, by {candidate.quantiser}"


def _rest(candidate: Candidate) -> list[str]:
    """What else is not usual; the edges' bits are told with the others."""
    told = "; ".join(text for key, text in unusual(candidate).items() if key != "edge_bits")
    return [f"also chosen: {plain(told)}"] if told else []


def _edges(candidate: Candidate) -> str:
    return "" if candidate.edge_bits is None else f"; {candidate.edge_bits} in the first and the last layer"


def _runs(values: Sequence[str]) -> str:
    """'8, 4, 4, 4' -> '8, 4 (3 times)'."""
    runs = [(value, len(list(run))) for value, run in groupby(values)]
    return ", ".join(value + (f" ({count} times)" if count > 1 else "") for value, count in runs)


def _measured(record: TrialRecord) -> list[str]:
    measured = record.measurement
    if measured is None:
        return []
    latency, judge = measured.latency, "labels" if measured.judged_by == "labels" else "the teacher's top-1"
    if isinstance(latency, BuildReport):
        speed = plain(conditions(latency))
    else:
        (low, high), steady = latency.ci_ms, "" if latency.stable else f"; {latency.unrest()}"
        speed = f"latency: interval {low:.3f} to {high:.3f} ms, p95 {latency.p95_ms:.3f} ms, {plain(conditions(latency))}{steady}"
    return [
        f"accuracy against {judge} on {measured.images} search images; engine and PyTorch agree on {100 * measured.agreement:.2f} %",
        f"{measured.parameters:,} parameters, {measured.macs / 1e6:.2f} MMACs, {measured.mean_bits:.1f} mean bits",
        speed,
    ]


def _known(record: TrialRecord) -> list[str]:
    """Of a trial that was given up: what was known of it."""
    if record.measurement is not None:
        return []
    size = [] if record.size_bytes is None else [f"{record.size_bytes:,} bytes"]
    known = size + ([] if record.latency_ms is None else [f"{record.latency_ms:.3f} ms"])
    return [f"known before training: {', '.join(known)}"] if known else []


def _accuracies(record: TrialRecord) -> list[str]:
    stages = [
        f"{plain(stage)} " + ", ".join(f"{100 * rung.accuracy:.1f}" for rung in rungs)
        for stage, rungs in groupby(record.rungs, key=lambda rung: rung.stage)
    ]
    return [f"accuracy after each epoch, %, on a part of the search split: {'; '.join(stages)}"] if stages else []


def _seconds(record: TrialRecord) -> list[str]:
    taken = ", ".join(f"{plain(stage)} {seconds:.1f}" for stage, seconds in record.seconds.items())
    return [f"seconds: {taken}; {sum(record.seconds.values()):.1f} in all"] if taken else []


def _files(record: TrialRecord) -> list[str]:
    return [] if record.path is None else [f"files: `{record.path}` in the run's folder"]
