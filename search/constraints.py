"""What sampler and dashboard are told of a space's limits.

A candidate beyond a soft one is trained all the same, and the sampler learns to keep them. One that a hard limit refused is a pruned
trial; TPE tries more like those that were beyond it by least, so it finds the candidates that are within where few are.
"""

from __future__ import annotations

import optuna

from core.candidate import bytes_of
from results.record import TrialRecord
from search.space import Constraints

KEY = "constraints"
"""Optuna's key, and how its other keys of constraints begin."""


def excesses(constraints: Constraints, record: TrialRecord) -> dict[str, float]:
    """Constraint -> how far the record is beyond it, as a share of the limit; 0 or less keeps it. Only of numbers that are known."""
    accuracy = record.reached.accuracy if record.reached is not None else None
    # before it is coded a file's bytes are a lower limit
    size_bytes = record.reached.size_bytes if record.reached is not None else record.size_bytes
    found = {}
    if constraints.latency_ms is not None and record.latency_ms is not None:
        found["latency_ms"] = record.latency_ms / constraints.latency_ms - 1
    if constraints.size_kb is not None and size_bytes is not None:
        found["size_kb"] = size_bytes / bytes_of(constraints.size_kb) - 1
    if constraints.accuracy is not None and accuracy is not None:
        found["accuracy"] = 1 - accuracy / constraints.accuracy
    return found


def attributes_of(constraints: Constraints, record: TrialRecord) -> dict[str, float | list[float]]:
    """Optuna's own attributes of a trial that say so: of soft limits all that is known, of hard ones only where they refused the trial.

    So no finished trial of a study with hard limits has any: GPSampler would spend models on limits that all of those keep.
    """
    found = excesses(constraints, record)
    if not found or not (constraints.soft or (record.state == "PRUNED" and max(found.values()) > 0)):
        return {}
    # `Trial.set_constraint` writes one key each; optuna-dashboard reads that of older Optunas, a list
    return {f"{KEY}:{name}": excess for name, excess in found.items()} | {KEY: list(found.values())}


def pass_on(constraints: Constraints, trial: optuna.Trial, record: TrialRecord) -> None:
    """Tell sampler and dashboard."""
    for key, value in attributes_of(constraints, record).items():
        trial.storage.set_trial_system_attr(trial._trial_id, key, value)
