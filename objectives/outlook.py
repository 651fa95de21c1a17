"""What finished trials let one expect of a candidate: an upper limit of its accuracy, with a stated confidence.

A monotone linear model of the accuracy's log-odds in the candidate's traits (and, once it was looked at, in what its first look and its
last two have shown), plus a quantile of what the model missed on trials that it had not seen. One mechanism serves both questions: may
it be skipped before training, and may its training be stopped. At a rung the model learns from final accuracies of engines, so what
quantisation still costs is part of it.

Its coverage holds about as often as it says where trials are exchangeable: that was measured (tests, docs/protocol.md), CV+ proves less.
A sampler's trials are not quite exchangeable: later ones are better, and trials that were stopped are not learned from, which leaves the
better ones. Both raise the limit, so both err towards training. Where finished trials have nothing like the candidate (a student or a
method that none of them has, more capacity than any has), nothing is said of it.

A candidate is asked about by its traits, by the look before its training and after every epoch of its first half, and one answer is enough
to end it. If each were wrong with a probability of its own, K answers would be wrong up to K times as often. So the confidence is that of
all together: what counts of a finished trial is its worst miss over all of them, each in units of what is missed there. Splitting the error
among them (Bonferroni) would keep the same word, but for a confidence of 0.9 its quantiles exist after 49 trials where there are 5, and
after 139 where there are 14; and they are higher, as looks at one training miss alike. This one exists after 9.

References: Vovk, "Cross-conformal predictors", 2015; Barber et al., "Predictive inference with the jackknife+", 2021 (CV+);
for all looks together: Diquigiovanni et al., "Conformal prediction bands for multivariate functional data", 2022 (the largest scaled miss).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from core.candidate import IN_FLOAT, OWN_BITS, START, Candidate, Rung

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
MARGIN = 0.1
"""How far beyond the finished trials something is still said, as a share of what they range over."""
TOGETHER = True
"""Whether the confidence is that of all questions about a candidate together; else that of each alone (benchmarks may compare)."""
Look = tuple[str, float]
"""Stage and epoch of a rung."""
Row = tuple["Traits", tuple[float, ...]]
"""What the model is told of a trial: its traits, and what its looks have shown."""


class Traits(NamedTuple):
    """What is known of a candidate before training. More of every entry of `capacity` cannot hurt, as far as the model knows."""

    student: str
    capacity: tuple[float, ...]
    width: float = 1.0
    kinds: tuple[str, ...] = ()
    """Names of methods, in a fixed order."""
    settings: tuple[float, ...] = ()
    """What may help or hurt."""


@dataclass(frozen=True, eq=False)
class Finished:
    """A trial that was trained in full: its traits, its rungs, and the accuracy of its engine. Equal to itself alone: compared often."""

    traits: Traits
    rungs: tuple[Rung, ...]
    accuracy: float

    @cached_property
    def shown(self) -> dict[Look, float]:
        """Log-odds of the accuracy at every look."""
        return {(each.stage, each.epoch): _log_odds(each.accuracy) for each in self.rungs}

    @cached_property
    def stops(self) -> tuple[Look, ...]:
        """The looks at which it could have been stopped."""
        return _looks(looked_at(self.rungs))


@dataclass(frozen=True)
class Outlook:
    """`upper` limits of accuracies, with a `confidence` in (0, 1)."""

    finished: tuple[Finished, ...]
    confidence: float
    together: bool = TOGETHER

    def upper(self, traits: Traits, rungs: Sequence[Rung] = ()) -> float:
        """Upper limit of the final accuracy, in [0, 1]; 1 while too few trials, or none like it, tell more.

        `rungs`: all looks so far. The limit holds with the confidence for all questions about a candidate together.
        """
        looks = _looks(rungs)
        known = _stoppable(self.finished[-WINDOW:], looks)
        if len(known) < needed(self.confidence):
            return 1.0
        rows, mine = _rows(known, looks), _rows([Finished(traits, tuple(rungs), 0.0)], looks)
        if not _alike(rows, mine[0]):
            return 1.0
        y = _finals(known)
        expected = float(_predict(_design(rows, rows), y, _design(mine, rows))[0])
        missed = np.sort(_worst_missed(known, looks) if self.together else _missed(_design(rows, rows), y))
        rank = math.ceil(round((len(known) + 1) * self.confidence, 6))
        return _share(expected + float(missed[rank - 1]))


def needed(confidence: float) -> int:
    """Finished trials before a quantile of that confidence exists: 9 for 0.9, 19 for 0.95; and before fewer are called a sample."""
    return max(FEWEST, math.ceil(round(confidence / (1.0 - confidence), 6)))


def traits_of(candidate: Candidate, parameters: int, macs: int) -> Traits:
    """Capacity: size on a logarithmic scale, mean bits, and the bits whose rounding noise (4^-bits) is that of the mean over the positions.

    Settings: log2 of the temperature, the teacher's weight, the share of positions in INT8. Where the quantiser does not do what was
    sampled, what it does counts: 8 bits stand for bits that are no candidate's choice.
    """
    bits = [8 if candidate.quantiser in OWN_BITS else group.weight_bits for group in candidate.groups]
    noise = sum(4.0**-each for each in bits) / len(bits)
    capacity = (math.log2(parameters), math.log2(macs), min(8.0, sum(bits) / len(bits)), min(8.0, -math.log2(noise) / 2))
    plan = candidate.distil
    executed = [candidate.quantiser not in IN_FLOAT and group.execution == "int8" for group in candidate.groups]
    in_int8 = sum(executed) / len(executed)
    kinds = (plan.loss, plan.init, candidate.quantiser, candidate.importance, candidate.order)
    return Traits(candidate.student, capacity, candidate.width, kinds, (math.log2(plan.temperature), plan.weight, in_int8))


def interval(accuracy: float, images: int, confidence: float) -> tuple[float, float]:
    """One-sided lower and upper limits, each of that confidence, of a share that was counted on `images` images (Wilson's score)."""
    from statistics import NormalDist

    z = NormalDist().inv_cdf(confidence)
    centre = (accuracy + z * z / (2 * images)) / (1 + z * z / images)
    half = z / (1 + z * z / images) * math.sqrt(accuracy * (1 - accuracy) / images + z * z / (4 * images**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def _looks(rungs: Sequence[Rung]) -> tuple[Look, ...]:
    return tuple((rung.stage, rung.epoch) for rung in rungs)


def _stoppable(trials: Sequence[Finished], looks: Sequence[Look]) -> tuple[Finished, ...]:
    """Those of the trials that were looked at so, and could have been stopped then."""
    wanted = set(looks)
    return tuple(each for each in trials if wanted.issubset(each.stops))


def _told(looks: Sequence[Look]) -> list[Look]:
    """What the model hears of: the first of the `looks` and the last two."""
    return list(dict.fromkeys([*looks[:1], *looks[-2:]]))


def _rows(known: Sequence[Finished], looks: Sequence[Look]) -> list[Row]:
    """What the model is told of trials that were all looked at so."""
    told = _told(looks)
    return [(each.traits, tuple([each.shown[look] for look in told])) for each in known]


def _finals(known: Sequence[Finished]) -> np.ndarray:
    """(N,) log-odds of the final accuracies."""
    return np.array([_log_odds(each.accuracy) for each in known])


def _design(rows: Sequence[Row], known: Sequence[Row]) -> np.ndarray:
    """(N, features), all coefficients to be at least 0: capacity and looks; with both signs settings, and a constant for every kind.

    What ranges over [0, 1] ranges so over the `known` rows. Less capacity than any of them has counts as the least that they have.
    """
    rising = np.maximum(0.0, _ranged(_rising(rows), _rising(known)))
    settings = SMALL * _ranged(_settings(rows), _settings(known))
    names = dict.fromkeys(chain.from_iterable(_names(traits) for traits, _ in known))
    places = {name: place for place, name in enumerate(names, start=1)}
    free = np.zeros((len(rows), 1 + len(places)))
    free[:, 0] = 1.0
    for own, (traits, _) in zip(free, rows, strict=True):
        own[[places[name] for name in _names(traits) if name in places]] = SMALL
    return np.hstack([rising, settings, free, -settings, -free])


def _alike(known: Sequence[Row], row: Row) -> bool:
    """Whether the known rows tell of `row`: they have its student and its methods, and it is hardly beyond them (MARGIN)."""
    traits, _ = row
    methods = {("student", traits.student), *enumerate(traits.kinds)}
    if not methods.issubset(chain.from_iterable(_names(traits) for traits, _ in known)):
        return False
    rising, settings = _rising(known), _settings(known)
    mine = _settings([row])
    within = (_beyond(settings, -1) <= mine) & (mine <= _beyond(settings, 1))
    return bool(within.all() and (_rising([row]) <= _beyond(rising, 1)).all())


def _beyond(known: np.ndarray, side: int) -> np.ndarray:
    """(features,) the limit above (side 1) or below (-1) what `known` (M, features) ranges over."""
    low, high = known.min(0), known.max(0)
    return np.asarray((high if side > 0 else low) + side * (MARGIN * (high - low) + 1e-9))


def _rising(rows: Sequence[Row]) -> np.ndarray:
    return np.array([(*traits.capacity, *values) for traits, values in rows])


def _settings(rows: Sequence[Row]) -> np.ndarray:
    return np.array([traits.settings for traits, _ in rows])


@lru_cache(maxsize=4096)
def _names(traits: Traits) -> tuple[tuple[Any, ...], ...]:
    """Those with a constant of their own, in a fixed order."""
    return ("student", traits.student), ("student", traits.student, traits.width), *enumerate(traits.kinds)


def _ranged(columns: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(N, features) -> the same shape, as shares of what `known` (M, features) ranges over; what does not range there has a width of 1."""
    low, high = known.min(0), known.max(0)
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
    """(N,) each trial's largest miss by its traits and over all its looks, in units of each one's spread; as it would be after `looks`.

    Trials have other looks where a training was interrupted, and where a quantiser trains or does not.
    """
    later = [tuple(look for look in each.stops if look not in looks) for each in known]
    worst = np.empty(len(known))
    for own in set(later):
        misses = _misses(known, (*looks, *own))
        spreads = [max(float(np.nanstd(missed)), 1e-9) if np.isfinite(missed).any() else 1.0 for missed in misses]
        alike = np.array([each == own for each in later])
        scaled = [missed[alike] / spread for missed, spread in zip(misses, spreads, strict=True)]
        worst[alike] = np.nanmax(scaled, axis=0) * spreads[len(looks)]
    return worst


@lru_cache(maxsize=32)
def _misses(known: tuple[Finished, ...], looks: tuple[Look, ...]) -> list[np.ndarray]:
    """(N,) misses by traits alone, then at every look, which knows those before it. Kept: they change with the next finished trial.

    NaN for a trial without a look, and for all at one that fewer than FEWEST have.
    """
    return [_missed_at(known, looks[:count]) for count in range(len(looks) + 1)]


def _missed_at(known: tuple[Finished, ...], looks: tuple[Look, ...]) -> np.ndarray:
    wanted = set(looks)
    there = [index for index, each in enumerate(known) if each.shown.keys() >= wanted]
    missed = np.full(len(known), np.nan)
    if len(there) >= FEWEST:
        rows = _rows([known[index] for index in there], looks)
        missed[there] = _missed(_design(rows, rows), _finals(known)[there])
    return missed


def looked_at(rungs: Sequence[Rung]) -> Sequence[Rung]:
    """Those of a whole training's rungs at which it may be stopped: before it, and after the epochs of its first half.

    Later there is less to save than to lose, and each further answer about a candidate raises the limits of all.
    """
    before, epochs = [each for each in rungs if each.stage == START], [each for each in rungs if each.stage != START]
    return [*before, *epochs[: len(epochs) // 2]]


def _log_odds(share: float) -> float:
    share = min(max(share, EDGE), 1.0 - EDGE)
    return math.log(share / (1.0 - share))


def _share(log_odds: float) -> float:
    # what is clamped on the way in is open on the way out
    return 1.0 if log_odds >= _log_odds(1.0) else 1.0 / (1.0 + math.exp(-log_odds))
