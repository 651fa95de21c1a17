"""Soft constraints: a candidate beyond them is trained all the same, and the sampler learns to keep them."""

from __future__ import annotations

import optuna

from core.candidate import bytes_of
from results.record import TrialRecord
from search.space import Constraints


def excesses(constraints: Constraints, record: TrialRecord) -> dict[str, float]:
    """Constraint -> how far the record is beyond it, as a share of the limit; 0 or less keeps it. Only of numbers that are known."""
    accuracy = record.measurement.accuracy if record.measurement is not None else None
    # before it is coded a file's bytes are a lower limit
    size_bytes = record.measurement.size_bytes if record.measurement is not None else record.size_bytes
    found = {}
    if constraints.latency_ms is not None and record.latency_ms is not None:
        found["latency_ms"] = record.latency_ms / constraints.latency_ms - 1
    if constraints.size_kb is not None and size_bytes is not None:
        found["size_kb"] = size_bytes / bytes_of(constraints.size_kb) - 1
    if constraints.accuracy is not None and accuracy is not None:
        found["accuracy"] = 1 - accuracy / constraints.accuracy
    return found


def pass_on(constraints: Constraints, trial: optuna.Trial, record: TrialRecord) -> None:
    """Tell sampler and dashboard."""
    found = excesses(constraints, record)
    for name, excess in found.items():
        trial.set_constraint(name, excess)
    if found:
        # optuna-dashboard reads the key of older Optunas, for which there is no method any more
        trial.storage.set_trial_system_attr(trial._trial_id, "constraints", list(found.values()))
