"""What one more bit or fewer channels cost, according to the trials that a study already has.

Two answers, both from measured trials alone: the trials most like a model (`nearest`), and a linear regression over all trials of
its student, or where these are too few over the trials of all students, each with a level of its own (`effects`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from results.choices import float_share, mean_ratio
from results.front import complete, objectives
from results.record import TrialRecord
from results.table import mean_bits

FEATURES = ("mean bits", "mean pruning ratio", "share of positions in float", "log2 width")
RESAMPLES = 1000
SPARE_TRIALS = 6
"""A regression with fewer trials beyond its coefficients would mostly fit noise."""


class Effect(NamedTuple):
    """What one more unit of a feature changes, with the 95 % interval: accuracy in [0, 1], size and latency as factors."""

    feature: str
    accuracy: tuple[float, float, float]
    size: tuple[float, float, float]
    latency: tuple[float, float, float] | None
    """None in a study that only builds engines."""


class Effects(NamedTuple):
    """Of the features that varied, and what they rest on: so many models of these students, the record's own first."""

    found: list[Effect]
    trials: int
    students: tuple[str, ...]


def features(record: TrialRecord) -> tuple[float, float, float, float]:
    """The values of `FEATURES`."""
    candidate = record.candidate
    assert candidate is not None, f"trial {record.number} has no candidate"
    return mean_bits(record), mean_ratio(candidate), float_share(candidate), math.log2(candidate.width)


def relatives(record: TrialRecord, records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The distinct complete trials of the record's student, itself included."""
    return [other for other in complete(records) if other.student == record.student and other.candidate is not None]


def nearest(record: TrialRecord, records: Sequence[TrialRecord], count: int = 3) -> list[TrialRecord]:
    """The trials of the same student whose features, each over its range in the study, are nearest to the record's; itself left out."""
    others = [other for other in relatives(record, records) if other.fingerprint != record.fingerprint]
    if not others:
        return []
    table = np.array([features(other) for other in (record, *others)])
    span = table.max(0) - table.min(0)
    distance = np.linalg.norm((table[1:] - table[0]) / np.where(span > 0, span, 1.0), axis=1)
    return [others[index] for index in np.argsort(distance, kind="stable")[:count]]


def effects(record: TrialRecord, records: Sequence[TrialRecord], seed: int = 0) -> Effects | None:
    """Effect of each feature that varied, the others held; None where there are too few trials.

    Least squares on accuracy, log bytes and log ms. The interval is the 2.5 % to 97.5 % range over 1000 resamples of the trials, each
    student's among themselves. References: Efron 1979 (bootstrap of pairs).
    """
    own = relatives(record, records)
    others = [other for other in complete(records) if other.student != record.student and other.candidate is not None]
    return _regression(own, seed) or _regression(own + others, seed)


def _regression(known: Sequence[TrialRecord], seed: int) -> Effects | None:
    """Over `known`; a level per student takes up what makes one better than another."""
    students = np.array([str(record.student) for record in known])
    names = tuple(dict.fromkeys(students.tolist()))
    table = np.array([features(record) for record in known])
    levels = (students[:, None] == np.array(names)).astype(float)
    groups = [np.flatnonzero(level) for level in levels.T]
    varied = [column for column in range(len(FEATURES)) if not _rests_on_one(table[:, column], groups)]
    if not varied:
        return None
    design = np.column_stack([levels, table[:, varied]])
    if len(known) < design.shape[1] + SPARE_TRIALS or np.linalg.matrix_rank(design) < design.shape[1]:
        return None
    target = np.array([(accuracy, *map(math.log, costs)) for accuracy, *costs in map(objectives, known)])
    estimate = np.linalg.lstsq(design, target, rcond=None)[0]
    low, high = _bootstrap(design, target, groups, seed)
    rows = range(len(names), design.shape[1])
    found = [_effect(FEATURES[varied[row - len(names)]], estimate[row], low[row], high[row]) for row in rows]
    return Effects(found, len(known), names)


def _rests_on_one(values: np.ndarray, groups: Sequence[np.ndarray]) -> bool:
    """Whether the `values` (n,) vary within groups for a single trial at most, whose own noise no resample would show."""
    varying = [counts for counts in (np.unique(values[group], return_counts=True)[1] for group in groups) if len(counts) > 1]
    return not varying or (len(varying) == 1 and len(varying[0]) == 2 and int(varying[0].min()) == 1)


def _bootstrap(design: np.ndarray, target: np.ndarray, groups: Sequence[np.ndarray], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """2.5 % and 97.5 % of the coefficients (columns, objectives) over resamples of each group's rows; one without a fit is drawn anew."""
    random = np.random.default_rng(seed)
    fits: list[np.ndarray] = []
    while len(fits) < RESAMPLES:
        rows = np.concatenate([random.choice(group, len(group)) for group in groups])
        if np.linalg.matrix_rank(design[rows]) == design.shape[1]:
            fits.append(np.linalg.lstsq(design[rows], target[rows], rcond=None)[0])
    low, high = np.percentile(fits, [2.5, 97.5], axis=0)
    return low, high


def _effect(feature: str, estimate: np.ndarray, low: np.ndarray, high: np.ndarray) -> Effect:
    """Coefficients (objectives,) and their limits, those of the costs as factors."""
    limits = list(zip(estimate, low, high, strict=True))
    accuracy = (float(limits[0][0]), float(limits[0][1]), float(limits[0][2]))
    size, latency = ((math.exp(at), math.exp(least), math.exp(most)) for at, least, most in (*limits[1:], limits[1])[:2])
    return Effect(feature, accuracy, size, latency if len(limits) == 3 else None)
