"""What finished trials let one expect of a candidate: an upper limit of its accuracy, with a stated confidence.

A monotone linear model of the accuracy's log-odds in the candidate's traits (and, once it trains, in the accuracy of its last rung),
plus a quantile of what the model missed on trials that it had not seen. One mechanism serves both questions: may it be skipped
before training, and may its training be stopped. At a rung the model learns from final accuracies of engines, so what quantisation
still costs is part of it.

The quantile is exact for exchangeable trials. A sampler's trials are not quite: later ones are better, and trials that were stopped
are not learned from, which leaves the better ones. Both raise the limit, so both err towards training.

References: Vovk, "Cross-conformal predictors", 2015; Barber et al., "Predictive inference with the jackknife+", 2021 (CV+).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from core.candidate import Candidate, Rung

FOLDS = 10
WINDOW = 200
"""Finished trials that are learned from, the latest: the cost of a question stays constant."""
EDGE = 0.002
"""Accuracies are kept this far from 0 and 1, where log-odds end."""
RIDGE = 0.01


class Traits(NamedTuple):
    """What is known of a candidate before training. More of every entry of `capacity` cannot hurt, as far as the model knows."""

    student: str
    capacity: tuple[float, ...]


@dataclass(frozen=True)
class Finished:
    """A trial that was trained in full: its traits, its rungs, and the accuracy of its engine."""

    traits: Traits
    rungs: tuple[Rung, ...]
    accuracy: float


@dataclass(frozen=True)
class Outlook:
    """`upper` limits of accuracies. `ceiling`: none is above it, whatever the model says. `confidence` in (0, 1)."""

    finished: tuple[Finished, ...]
    confidence: float
    ceiling: float = 1.0

    def upper(self, traits: Traits, rung: Rung | None = None) -> float:
        """Upper limit of the final accuracy, in [0, 1]: the ceiling alone while too few trials tell more."""
        known = [(each, _at(each.rungs, rung)) for each in self.finished[-WINDOW:]]
        known = [(each, value) for each, value in known if value is not None]
        if len(known) < needed(self.confidence):
            return self.ceiling
        rows = [(each.traits, value) for each, value in known if value is not None]
        x = _design([*rows, (traits, 0.0 if rung is None else _log_odds(rung.accuracy))])
        y = np.array([_log_odds(each.accuracy) for each, _ in known])
        expected = float(_predict(x[:-1], y, x[-1:])[0])
        missed = np.sort(_missed(x[:-1], y))
        return min(self.ceiling, _share(expected + float(missed[math.ceil((len(y) + 1) * self.confidence) - 1])))


def needed(confidence: float) -> int:
    """Finished trials before a quantile of that confidence exists: 9 for 0.9, 19 for 0.95."""
    return math.ceil(round(confidence / (1.0 - confidence), 6))


def traits_of(candidate: Candidate, parameters: int, macs: int) -> Traits:
    """Size on a logarithmic scale, mean bits, and the bits whose rounding noise (4^-bits) is that of the mean over the positions."""
    bits = [group.weight_bits for group in candidate.groups]
    noise = sum(4.0**-each for each in bits) / len(bits)
    return Traits(
        candidate.student, (math.log2(parameters), math.log2(macs), min(8.0, sum(bits) / len(bits)), min(8.0, -math.log2(noise) / 2))
    )


def interval(accuracy: float, images: int, confidence: float) -> tuple[float, float]:
    """One-sided lower and upper limits, each of that confidence, of a share that was counted on `images` images (Wilson's score)."""
    from statistics import NormalDist

    z = NormalDist().inv_cdf(confidence)
    centre = (accuracy + z * z / (2 * images)) / (1 + z * z / images)
    half = z / (1 + z * z / images) * math.sqrt(accuracy * (1 - accuracy) / images + z * z / (4 * images**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def _at(rungs: Sequence[Rung], rung: Rung | None) -> float | None:
    """Log-odds of the accuracy that a trial had at the same rung; 0 where none is asked for, None where it was not there."""
    if rung is None:
        return 0.0
    same = [each.accuracy for each in rungs if (each.stage, each.epoch) == (rung.stage, rung.epoch)]
    return _log_odds(same[-1]) if same else None


def _design(rows: Sequence[tuple[Traits, float]]) -> np.ndarray:
    """(N, features), all coefficients to be at least 0: capacity and the rung's value in [0, 1]; student and constant with both signs."""
    rising = np.array([(*traits.capacity, value) for traits, value in rows])
    low, high = rising.min(0), rising.max(0)
    rising = (rising - low) / np.where(high > low, high - low, 1.0)
    students = sorted({traits.student for traits, _ in rows})
    free = np.array([[1.0, *(float(traits.student == name) for name in students)] for traits, _ in rows])
    return np.hstack([rising, free, -free])


def _predict(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Predictions at `at` (M, features) of a nonnegative ridge fit of y (N,) on x (N, features)."""
    from scipy.optimize import nnls

    features = x.shape[1]
    mean = y.mean()
    stacked = np.vstack([x, math.sqrt(RIDGE * len(y)) * np.eye(features)])
    coefficients, _ = nnls(stacked, np.concatenate([y - mean, np.zeros(features)]))
    return np.asarray(at @ coefficients + mean)


def _missed(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """y minus its prediction by a model that has not seen it; as many folds as trials while there are few."""
    folds = np.arange(len(y)) % min(FOLDS, len(y))
    missed = np.empty_like(y)
    for fold in np.unique(folds):
        out = folds == fold
        missed[out] = y[out] - _predict(x[~out], y[~out], x[out])
    return missed


def _log_odds(share: float) -> float:
    share = min(max(share, EDGE), 1.0 - EDGE)
    return math.log(share / (1.0 - share))


def _share(log_odds: float) -> float:
    # what is clamped on the way in is open on the way out
    return 1.0 if log_odds >= _log_odds(1.0) else 1.0 / (1.0 + math.exp(-log_odds))
