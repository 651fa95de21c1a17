"""What finished trials let one expect of a candidate: an upper limit of its accuracy, with a stated confidence.

A monotone linear model of the accuracy's log-odds in the candidate's traits (and, once it was looked at, in what its first look and its
last two have shown), plus a quantile of what the model missed on trials that it had not seen. One mechanism serves both questions: may
it be skipped before training, and may its training be stopped. At a rung the model learns from final accuracies of engines, so what
quantisation still costs is part of it.

The quantile is exact for exchangeable trials. A sampler's trials are not quite: later ones are better, and trials that were stopped
are not learned from, which leaves the better ones. Both raise the limit, so both err towards training.

A candidate is asked about by its traits, by the look before its training and after every epoch, and one answer is enough to end it. If
each were wrong with a probability of its own, K answers would be wrong up to K times as often. So the confidence is that of all together:
what counts of a finished trial is its worst miss over all of them, each in units of what is missed there. Splitting the error among them
(Bonferroni) would keep the same word, but for a confidence of 0.9 its quantiles exist after 49 trials where there are 5, and after 139
where there are 14; and they are higher, as looks at one training miss alike. This one exists after 9.

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

from core.candidate import START, Candidate, Rung

FOLDS = 10
FEWEST = 9
"""Finished trials before anything is said."""
WINDOW = 200
"""Finished trials that are learned from, the latest: the cost of a question stays constant."""
EDGE = 0.002
"""Accuracies are kept this far from 0 and 1, where log-odds end."""
RIDGE = 0.003
SMALL = 0.3
"""The range of settings and names, where that of capacity and looks is 1: so they count for little until many trials agree on them."""
TOGETHER = True
"""Whether the confidence is that of all questions about a candidate together; else that of each alone (benchmarks may compare)."""
Look = tuple[str, float]
"""Stage and epoch of a rung."""


class Traits(NamedTuple):
    """What is known of a candidate before training. More of every entry of `capacity` cannot hurt, as far as the model knows."""

    student: str
    capacity: tuple[float, ...]
    width: float = 1.0
    kinds: tuple[str, ...] = ()
    """Names of methods, in a fixed order."""
    settings: tuple[float, ...] = ()
    """What may help or hurt."""


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

    def upper(self, traits: Traits, rungs: Sequence[Rung] = ()) -> float:
        """Upper limit of the final accuracy, in [0, 1]: the ceiling alone while too few trials tell more.

        `rungs`: all looks so far. The limit holds with the confidence for all questions about a candidate together.
        """
        looks = tuple((rung.stage, rung.epoch) for rung in rungs)
        known = tuple(each for each in self.finished[-WINDOW:] if _values(each.rungs, looks) is not None)
        if len(known) < needed(self.confidence):
            return self.ceiling
        x, y = _design([*_rows(known, looks), *_rows([Finished(traits, tuple(rungs), 0.0)], looks)]), _finals(known)
        expected = float(_predict(x[:-1], y, x[-1:])[0])
        missed = np.sort(_worst_missed(known, looks) if self.together else _missed(x[:-1], y))
        rank = math.ceil(round((len(known) + 1) * self.confidence, 6))
        return min(self.ceiling, _share(expected + float(missed[rank - 1])))


def needed(confidence: float) -> int:
    """Finished trials before a quantile of that confidence exists: 9 for 0.9, 19 for 0.95; and before fewer are called a sample."""
    return max(FEWEST, math.ceil(round(confidence / (1.0 - confidence), 6)))


def traits_of(candidate: Candidate, parameters: int, macs: int) -> Traits:
    """Capacity: size on a logarithmic scale, mean bits, and the bits whose rounding noise (4^-bits) is that of the mean over the positions.

    Settings: log2 of the temperature, the teacher's weight, the share of positions in INT8.
    """
    bits = [group.weight_bits for group in candidate.groups]
    noise = sum(4.0**-each for each in bits) / len(bits)
    capacity = (math.log2(parameters), math.log2(macs), min(8.0, sum(bits) / len(bits)), min(8.0, -math.log2(noise) / 2))
    plan = candidate.distil
    in_int8 = sum(group.execution == "int8" for group in candidate.groups) / len(candidate.groups)
    kinds = (plan.loss, plan.init, candidate.quantiser, candidate.importance, candidate.order)
    return Traits(candidate.student, capacity, candidate.width, kinds, (math.log2(plan.temperature), plan.weight, in_int8))


def interval(accuracy: float, images: int, confidence: float) -> tuple[float, float]:
    """One-sided lower and upper limits, each of that confidence, of a share that was counted on `images` images (Wilson's score)."""
    from statistics import NormalDist

    z = NormalDist().inv_cdf(confidence)
    centre = (accuracy + z * z / (2 * images)) / (1 + z * z / images)
    half = z / (1 + z * z / images) * math.sqrt(accuracy * (1 - accuracy) / images + z * z / (4 * images**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def _values(rungs: Sequence[Rung], looks: Sequence[Look]) -> tuple[float, ...] | None:
    """Log-odds of the accuracies that a trial had at the first of the `looks` and at the last two; None where it was not there."""
    at = {(each.stage, each.epoch): each.accuracy for each in rungs}
    if not all(look in at for look in looks):
        return None
    told = dict.fromkeys([*looks[:1], *looks[-2:]])
    return tuple(_log_odds(at[look]) for look in told)


def _rows(known: Sequence[Finished], looks: Sequence[Look]) -> list[tuple[Traits, tuple[float, ...]]]:
    """What the model is told of trials that were all there."""
    return [(each.traits, values) for each in known if (values := _values(each.rungs, looks)) is not None]


def _finals(known: Sequence[Finished]) -> np.ndarray:
    """(N,) log-odds of the final accuracies."""
    return np.array([_log_odds(each.accuracy) for each in known])


def _design(rows: Sequence[tuple[Traits, tuple[float, ...]]]) -> np.ndarray:
    """(N, features), all coefficients to be at least 0: capacity and looks; with both signs settings, and a constant for every kind."""
    rising = _ranged(np.array([(*traits.capacity, *values) for traits, values in rows]))
    settings = SMALL * _ranged(np.array([traits.settings for traits, _ in rows]))
    named = [(("student", traits.student), ("student", traits.student, traits.width), *enumerate(traits.kinds)) for traits, _ in rows]
    names = dict.fromkeys(name for each in named for name in each)
    own = [set(each) for each in named]
    free = np.array([[1.0, *(SMALL * (name in each) for name in names)] for each in own])
    return np.hstack([rising, settings, free, -settings, -free])


def _ranged(columns: np.ndarray) -> np.ndarray:
    """(N, features) -> the same shape, every feature in [0, 1]."""
    low, high = columns.min(0), columns.max(0)
    return np.asarray((columns - low) / np.where(high > low, high - low, 1.0))


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


def _worst_missed(known: tuple[Finished, ...], looks: tuple[Look, ...]) -> np.ndarray:
    """(N,) each trial's largest miss by its traits and over all looks, in units of each one's spread; as it would be now, after `looks`."""
    shared = set.intersection(*({(rung.stage, rung.epoch) for rung in looked_at(each.rungs)} for each in known))
    later = [look for rung in known[0].rungs if (look := (rung.stage, rung.epoch)) in shared and look not in looks]
    misses = _misses(known, (*looks, *later))
    spreads = [max(float(missed.std()), 1e-9) for missed in misses]
    return np.max([missed / spread for missed, spread in zip(misses, spreads, strict=True)], axis=0) * spreads[len(looks)]


@lru_cache(maxsize=8)
def _misses(known: tuple[Finished, ...], looks: tuple[Look, ...]) -> list[np.ndarray]:
    """(N,) misses by traits alone, then at every look, which knows those before it. Kept: they change with the next finished trial."""
    y = _finals(known)
    return [_missed(_design(_rows(known, looks[:count])), y) for count in range(len(looks) + 1)]


def looked_at(rungs: Sequence[Rung]) -> Sequence[Rung]:
    """The rungs at which a training may be stopped: all but that with which it ends, which a quantiser without training does not have."""
    return rungs[:-1] if rungs and rungs[-1].stage not in (START, "distil") else rungs


def _log_odds(share: float) -> float:
    share = min(max(share, EDGE), 1.0 - EDGE)
    return math.log(share / (1.0 - share))


def _share(log_odds: float) -> float:
    # what is clamped on the way in is open on the way out
    return 1.0 if log_odds >= _log_odds(1.0) else 1.0 / (1.0 + math.exp(-log_odds))
