"""What search.refine leaves: records of retrained or re-timed points, and what statistics say of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from core.candidate import Frozen
from core.errors import UserError
from core.files import write_atomically
from results.record import TeacherReport, TrialRecord

FILE = "refined.json"
TIE = 0.05
"""Two points are tied in accuracy unless the exact McNemar test tells them apart at this level."""


class Finalist(Frozen):
    """What is known of one refined point beside its record. Accuracies in [0, 1], intervals of 95 %."""

    searched_rank: int
    seeds: dict[int, float]
    """Seed -> accuracy on the search split; the best of them is the record's model. Empty where nothing was trained."""
    searched_accuracy: float
    searched_latency_ms: float | None
    """None where the search only built engines."""
    search_interval: tuple[float, float]
    test: dict[str, Any] | None = None
    """accuracy, images, interval of the test split."""
    rounds_ms: tuple[float, ...]
    """Median latency in every round."""
    tied_accuracy: tuple[int, ...] = ()
    """Ranks on the refined front that the search images do not tell apart from this one."""
    tied_latency: tuple[int, ...] = ()
    """Ranks whose latency intervals overlap with this one's."""


class Refinement(Frozen):
    """refined.json: `records` and `finalists` belong together, by rank on the refined front, points off it last."""

    command: tuple[str, ...]
    runtime: str
    device: dict[str, Any]
    fingerprint: str
    epochs: float | None
    teacher: TeacherReport
    records: tuple[TrialRecord, ...]
    finalists: tuple[Finalist, ...]


def read_refined(folder: Path) -> Refinement:
    """Of the run in `folder`. Raises UserError where there is none, or one of another version."""
    path = folder / FILE
    try:
        return Refinement.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"a refined front must have been made, but there is no {path}; run search.refine first") from error
    except ValidationError as error:
        raise UserError(f"{path} must be of this version, but is not ({error.errors()[0]['msg']}); run search.refine again") from error


def write_refined(folder: Path, refinement: Refinement) -> Path:
    """Beside the searched front."""
    return write_atomically(folder / FILE, refinement.model_dump_json(indent=1) + "\n")


def mcnemar(right: np.ndarray, other: np.ndarray) -> float:
    """p-value of the exact two-sided McNemar test for two models on the same images; `right`, `other` bool (N,). 1 where they never differ.

    References: McNemar 1947; Dietterich, Approximate Statistical Tests for Comparing Supervised Classification Learning Algorithms, 1998.
    """
    only, others = int((right & ~other).sum()), int((other & ~right).sum())
    n, k = only + others, min(only, others)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)


def accuracy_ties(right: list[np.ndarray]) -> list[tuple[int, ...]]:
    """Per model the indices of those that the images do not tell apart from it; `right` is bool (N,) per model."""
    return _ties(len(right), lambda i, j: mcnemar(right[i], right[j]) >= TIE)


def latency_ties(intervals: list[tuple[float, float]]) -> list[tuple[int, ...]]:
    """Per model the indices of those whose interval overlaps with its own."""
    return _ties(len(intervals), lambda i, j: intervals[i][0] <= intervals[j][1] and intervals[j][0] <= intervals[i][1])


def _ties(count: int, tied: Any) -> list[tuple[int, ...]]:
    return [tuple(j for j in range(count) if j != i and tied(i, j)) for i in range(count)]
