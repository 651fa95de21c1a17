"""Where a study's time went, and what was not spent."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from results.record import TrialRecord
from results.table import duration

PARTS = {
    "parents": ("parent",),
    "allocation": ("allocate",),
    "training": ("prune", "quantise dense", "distil", "quantise"),
    "engine": ("shape", "engine", "build"),
    "accuracy": ("accuracy",),
    "journal": ("journal",),
    "waiting": ("wait",),
}
"""Part of the account -> stages of a trial."""
TRAINED = (*PARTS["training"], *PARTS["accuracy"])
"""Stages that a skipped trial does without."""


def account(records: Sequence[TrialRecord], starts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`seconds` per part over all starts, `trials` by how they ended, and the `saved_seconds` that this estimates from mean stages.

    Seconds of several workers add up, so they are more than a clock shows: then there is no `other`. A start that was killed has told
    nothing but its trials.
    """
    stages: defaultdict[str, float] = defaultdict(float)
    for record in records:
        for stage, taken in record.seconds.items():
            stages[stage] += taken
    seconds = {
        "teacher": _sum(starts, "teacher_seconds"),
        **{part: sum(stages[name] for name in names) for part, names in PARTS.items()},
        "sampler": _sum(starts, "sampler_seconds"),
        "storage": _sum(starts, "storage_seconds"),
    }
    if all(start.get("workers", 1) == 1 for start in starts):
        seconds["other"] = max(0.0, _sum(starts, "wall_seconds") - sum(seconds.values()))
    return {
        "seconds": {part: round(value, 1) for part, value in seconds.items()},
        "trials": dict(Counter(record.ending or record.state.lower() for record in records)),
        "saved_seconds_estimated": {ending: round(value, 1) for ending, value in saved(records).items()},
    }


def saved(records: Sequence[TrialRecord]) -> dict[str, float]:
    """Ending -> seconds that its trials did not take, estimated from the mean of each stage over those trained in full.

    A skipped, stopped or reused candidate may have been smaller or larger than the mean: this is an estimate. One that missed a limit
    of accuracy at the end was trained in full.
    """
    full = [record for record in records if (record.state, record.ending) == ("COMPLETE", None) or record.refused]
    mean = {stage: sum(record.seconds.get(stage, 0.0) for record in full) / len(full) for stage in TRAINED} if full else {}
    result: defaultdict[str, float] = defaultdict(float)
    for record in records:
        if record.ending is not None and not record.refused and mean:
            result[record.ending] += sum(max(0.0, seconds - record.seconds.get(stage, 0.0)) for stage, seconds in mean.items())
    return dict(result)


def account_text(told: Mapping[str, Any]) -> list[str]:
    """Two lines for the end of a run."""
    seconds, trials, spared = told["seconds"], told["trials"], told["saved_seconds_estimated"]
    whole = sum(seconds.values()) or 1.0
    parts = [f"{part} {duration(value)} ({100 * value / whole:.0f} %)" for part, value in seconds.items() if value >= 0.005 * whole]
    names = ("complete", "skipped", "stopped", "reused", "limit", "pruned", "fail")
    ends = [f"{trials[name]} {name}" for name in names if trials.get(name)]
    total = sum(spared.values())
    hours = f"; about {duration(total)} of training saved (estimated from the mean stages)" if total else ""
    whose = "time" if "other" in seconds else "time of all workers together"
    return [f"{whose}: {', '.join(parts)}", f"trials: {', '.join(ends)}{hours}"]


def _sum(starts: Sequence[Mapping[str, Any]], key: str) -> float:
    return sum(float(start.get(key, 0.0)) for start in starts)
