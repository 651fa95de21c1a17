"""Samplers on a model of a recorded table: what candidates that nobody has trained would measure, as far as the rows tell.

One model per objective (accuracy, log2 bytes, log2 ms) is fitted to the rows. Of `MODELS` the one is taken whose predictions of rows
that it had not seen explain most of the variance (R2, cross-validated), and all are stated. What it tells is kept within the range of
the table's rows, since nothing is known beyond. So the claim is about samplers on a smooth landscape like the table's.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import joblib
import numpy as np
import optuna

from benchmarks.recorded import Table
from core.candidate import Candidate
from core.errors import UserError
from results.analysis import hypervolume, logarithmic
from results.front import Point, objectives
from search.sample import sample
from search.samplers import make_sampler
from search.space import Space, options
from search.study import DIRECTIONS, METRICS

FOLDS = 5
FEWEST_ROWS = 20
MARKS = {"quarter": 4, "half": 2, "all": 1}
"""Part of the budget -> its divisor."""


def _ridge() -> Any:
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(-2, 4, 25)))


def _boosting() -> Any:
    from sklearn.ensemble import GradientBoostingRegressor

    return GradientBoostingRegressor(n_estimators=200, learning_rate=0.08, max_depth=3, subsample=0.7, random_state=0)


MODELS: dict[str, Callable[[], Any]] = {"ridge": _ridge, "boosting": _boosting}
"""Linear, or trees: what is nearly additive in these features (log2 bytes) wants the first, what interacts the second."""


@dataclass(frozen=True)
class Surrogate:
    """A fitted model per objective; `low` and `high` (objectives,) are the range of the rows, `told` what the fit says of itself."""

    space: Space
    models: tuple[Any, ...]
    low: np.ndarray
    high: np.ndarray
    reference: Point
    told: Mapping[str, Any]

    def __call__(self, candidate: Candidate) -> Point:
        """(accuracy, bytes, ms)"""
        at = np.array([features(candidate, self.space)])
        values = np.clip([model.predict(at)[0] for model in self.models], self.low, self.high)
        return float(values[0]), *(float(2**value) for value in values[1:])


def features(candidate: Candidate, space: Space) -> list[float]:
    """What the models see: student, width, ratios, bits and executions by position with their means, genes of the training.

    Widths, ratios and bits are on a log2 scale, on which bytes and ms add up.
    """
    groups, students = candidate.groups, [str(name) for name in options(space.student.name)]
    ratios = [groups[math.ceil(i * len(groups) / space.prune.positions)].prune_ratio for i in range(space.prune.positions)]
    bits, in_int8 = [group.weight_bits for group in groups], [float(group.execution == "int8") for group in groups]
    plan = candidate.distil
    return [
        *(float(candidate.student == name) for name in students),
        math.log2(candidate.width),
        *(math.log2(1 - ratio) for ratio in ratios),
        math.log2(sum(1 - ratio for ratio in ratios) / len(ratios)),
        *(math.log2(each) for each in bits),
        math.log2(sum(bits) / len(bits)),
        -math.log2(sum(4.0**-each for each in bits) / len(bits)) / 2,
        *in_int8,
        sum(in_int8) / len(in_int8),
        math.log2(plan.temperature),
        plan.weight,
        plan.ce_weight,
    ]


def fitted(table: Table, space: Space) -> Surrogate:
    """The models of a table. Raises UserError for too few rows."""
    if len(table.rows) < FEWEST_ROWS:
        raise UserError(f"a model of a table needs at least {FEWEST_ROWS} rows, but there are {len(table.rows)}; record more of them")
    x = np.array([features(row.candidate, space) for row in table.rows if row.candidate is not None])
    y = np.array([_scaled(objectives(row)) for row in table.rows])
    scores = {metric: {name: _r2(make(), x, y[:, axis]) for name, make in MODELS.items()} for axis, metric in enumerate(METRICS)}
    chosen = {metric: max(found, key=lambda name: found[name]) for metric, found in scores.items()}
    models = tuple(MODELS[chosen[metric]]().fit(x, y[:, axis]) for axis, metric in enumerate(METRICS))
    told = {"rows": len(x), "features": x.shape[1], "folds": FOLDS, "r2": scores, "chosen": chosen}
    return Surrogate(space, models, y.min(0), y.max(0), table.reference, told)


def _scaled(point: Point) -> Point:
    return point[0], *(math.log2(value) for value in point[1:])


def _r2(model: Any, x: np.ndarray, y: np.ndarray) -> float:
    """Of predictions of rows left out; 1 is all of the variance, 0 that of the mean."""
    from sklearn.metrics import r2_score
    from sklearn.model_selection import KFold, cross_val_predict

    folds = KFold(FOLDS, shuffle=True, random_state=0)
    return round(float(r2_score(y, cross_val_predict(model, x, y, cv=folds))), 4)


# --- samplers --------------------------------------------------------------------------------------------------------


def sampler_claims(surrogate: Surrogate, name: str, seeds: int, budget: int, jobs: int = 1) -> dict[str, Any]:
    """Hypervolume of what the sampler found in a quarter, a half and all of the budget: a value per seed, and the mean."""
    run = joblib.delayed(volumes)
    found: list[dict[str, float]] = joblib.Parallel(n_jobs=jobs)(run(surrogate, name, seed, budget) for seed in range(seeds))
    by_mark = {mark: [each[mark] for each in found] for mark in MARKS}
    return {"mean": {mark: round(statistics.mean(values), 5) for mark, values in by_mark.items()}, "volumes": by_mark}


def volumes(surrogate: Surrogate, name: str, seed: int, budget: int) -> dict[str, float]:
    """Mark -> hypervolume after that part of the budget. Nothing is queued first: the study's own first trials are no sampler's."""
    points = [logarithmic(point) for point in search(surrogate, name, seed, budget)]
    return {mark: round(hypervolume(points[: budget // part], surrogate.reference), 5) for mark, part in MARKS.items()}


def search(surrogate: Surrogate, name: str, seed: int, budget: int) -> list[Point]:
    """What a sampler measures in `budget` trials, in order."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # here, for it runs in other processes too
    study = optuna.create_study(directions=list(DIRECTIONS), sampler=make_sampler(name, seed, 0, budget))
    points = []
    for _ in range(budget):
        trial = study.ask()
        points.append(surrogate(sample(surrogate.space, trial)))
        study.tell(trial, points[-1])
    return points


def paired(found: Sequence[float], base: Sequence[float]) -> dict[str, float]:
    """Mean difference of equal seeds with its 95 % interval (Student's t), and the same as a share of the mean of `base`."""
    from scipy.stats import t

    differences = [a - b for a, b in zip(found, base, strict=True)]
    middle, mean = statistics.mean(differences), statistics.mean(base)
    half = float(t.ppf(0.975, len(differences) - 1)) * statistics.stdev(differences) / math.sqrt(len(differences))
    numbers = {"mean": middle, "low_95": middle - half, "high_95": middle + half}
    shares = {f"{name}_share": value / mean for name, value in numbers.items()}
    return {name: round(value, 5) for name, value in (numbers | shares).items()}
