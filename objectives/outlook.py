"""What finished trials let one expect of a candidate: an upper limit of its accuracy, with a stated confidence.

A monotone linear model of the accuracy's log-odds in the candidate's traits (and, once it trains, in the accuracy of its last rung),
plus a quantile of what the model missed on trials that it had not seen. One mechanism serves both questions: may it be skipped
before training, and may its training be stopped. At a rung the model learns from final accuracies of engines, so what quantisation
still costs is part of it.

The quantile is exact for exchangeable trials. A sampler's trials are not quite: later ones are better, and trials that were stopped
are not learned from, which leaves the better ones. Both raise the limit, so both err towards training.

A training is looked at after every epoch, and is stopped when one look says so. If each look were wrong with a probability of its own,
K looks would be wrong up to K times as often. So the confidence is that of all looks at a training together: what counts of a
finished trial is its worst miss over all of them. Splitting the error among the looks (Bonferroni) would keep the same word, but for a
confidence of 0.9 its quantiles exist after 49 trials where there are 5 looks, and after 139 where there are 14; and they are higher, as
looks at one training miss alike. This one exists after 9.

References: Vovk, "Cross-conformal predictors", 2015; Barber et al., "Predictive inference with the jackknife+", 2021 (CV+);
for all looks together: Diquigiovanni et al., "Conformal prediction bands for multivariate functional data", 2022 (the largest scaled miss).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from core.candidate import Candidate, Rung

FOLDS = 10
WINDOW = 200
"""Finished trials that are learned from, the latest: the cost of a question stays constant."""
EDGE = 0.002
"""Accuracies are kept this far from 0 and 1, where log-odds end."""
RIDGE = 0.01
TOGETHER = True
"""Whether the confidence is that of all looks at a training together; else that of each look alone (benchmarks may compare)."""
Look = tuple[str, float]
"""Stage and epoch of a rung."""


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
    together: bool = TOGETHER

    def upper(self, traits: Traits, rung: Rung | None = None) -> float:
        """Upper limit of the final accuracy, in [0, 1]: the ceiling alone while too few trials tell more.

        Without a rung it holds with the confidence; with one, it does at all rungs of a training together.
        """
        look = None if rung is None else (rung.stage, rung.epoch)
        known = tuple(each for each in self.finished[-WINDOW:] if _at(each.rungs, look) is not None)
        if len(known) < needed(self.confidence):
            return self.ceiling
        x = _design([*_rows(known, look), (traits, 0.0 if rung is None else _log_odds(rung.accuracy))])
        y = _finals(known)
        expected = float(_predict(x[:-1], y, x[-1:])[0])
        missed = np.sort(_missed(x[:-1], y) if look is None or not self.together else _worst_missed(known, look))
        rank = math.ceil(round((len(known) + 1) * self.confidence, 6))
        return min(self.ceiling, _share(expected + float(missed[rank - 1])))


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


def _at(rungs: Sequence[Rung], look: Look | None) -> float | None:
    """Log-odds of the accuracy that a trial had at that rung; 0 where none is asked for, None where it was not there."""
    if look is None:
        return 0.0
    same = [each.accuracy for each in rungs if (each.stage, each.epoch) == look]
    return _log_odds(same[-1]) if same else None


def _rows(known: Sequence[Finished], look: Look | None) -> list[tuple[Traits, float]]:
    """What the model is told of trials that were all there."""
    return [(each.traits, value) for each in known if (value := _at(each.rungs, look)) is not None]


def _finals(known: Sequence[Finished]) -> np.ndarray:
    """(N,) log-odds of the final accuracies."""
    return np.array([_log_odds(each.accuracy) for each in known])


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


def _worst_missed(known: tuple[Finished, ...], look: Look) -> np.ndarray:
    """(N,) each trial's largest miss over all looks that these share, in units of each look's spread; as it would be at `look`."""
    shared = set.intersection(*({(rung.stage, rung.epoch) for rung in looked_at(each.rungs)} for each in known)) | {look}
    misses = _misses(known, tuple(sorted(shared)))
    spreads = {each: max(float(missed.std()), 1e-9) for each, missed in misses.items()}
    return np.max([missed / spreads[each] for each, missed in misses.items()], axis=0) * spreads[look]


@lru_cache(maxsize=8)
def _misses(known: tuple[Finished, ...], looks: tuple[Look, ...]) -> dict[Look, np.ndarray]:
    """Look -> (N,) misses. Kept, as they change with the next finished trial only."""
    y = _finals(known)
    return {look: _missed(_design(_rows(known, look)), y) for look in looks}


def looked_at(rungs: Sequence[Rung]) -> Sequence[Rung]:
    """The rungs at which a training may be stopped: all but that with which it ends, which a quantiser without training does not have."""
    return rungs[:-1] if rungs and rungs[-1].stage != "distil" else rungs


def _log_odds(share: float) -> float:
    share = min(max(share, EDGE), 1.0 - EDGE)
    return math.log(share / (1.0 - share))


def _share(log_odds: float) -> float:
    # what is clamped on the way in is open on the way out
    return 1.0 if log_odds >= _log_odds(1.0) else 1.0 / (1.0 + math.exp(-log_odds))
