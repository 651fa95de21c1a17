"""What the trials of a study say together: hypervolume as it grew, and which parameters mattered. Computed by Optuna."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning

from core.candidate import IN_FLOAT, OWN_BITS, DistilPlan, milliseconds
from results.front import Point, complete, objectives
from results.record import TeacherReport
from results.view import StudyView

MIN_TRIALS = 10
"""With fewer trials an importance is noise."""
OBJECTIVES = ("accuracy", "size", "latency")
LEARNING = (*DistilPlan.model_fields, "rate_weight", "sparsity")
"""Parameters of the training."""
STORAGE = ("edge_bits", "budget_bits", "budget_kb", "sqnr_db", "sqnr_loss_db")
"""Parameters that choose bits, beside those of the positions."""


def reference_point(view: StudyView) -> Point | None:
    """The one that the study fixed, else by its teacher: (error, log2 bytes, log2 ms); None where that is not known."""
    if view.reference is not None:
        return view.reference
    return None if view.teacher is None or view.classes is None else reference_of(view.teacher, view.classes)


def reference_of(teacher: TeacherReport, classes: int) -> Point:
    """The worst corner of what is worth finding: known before the first trial."""
    return logarithmic((1 / classes, teacher.size_bytes, *milliseconds(teacher.latency)))


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """Volume between `points` and `reference`, all minimised; points beyond it add nothing."""
    from optuna._hypervolume import compute_hypervolume

    inside = [point for point in points if all(value < worst for value, worst in zip(point, reference, strict=True))]
    return float(compute_hypervolume(np.array(inside), np.array(reference))) if inside else 0.0


def logarithmic(point: Point) -> Point:
    """(accuracy, bytes, ms) -> (error, log2 bytes, log2 ms): all to be minimised, and a halving counts the same everywhere."""
    return 1 - point[0], *(math.log2(value) for value in point[1:])


def hypervolume_history(points: Sequence[Point], reference: Point) -> list[float]:
    """Volume between the front so far and `reference`, after each of `points` (all minimised). Points beyond it add nothing."""
    return [hypervolume(points[: number + 1], reference) for number in range(len(points))]


def hypervolume_of(view: StudyView) -> tuple[list[int], list[float]]:
    """(trial numbers, hypervolume after each) over the distinct complete trials; empty without a reference point."""
    reference = reference_point(view)
    if reference is None:
        return [], []
    measured = [record for record in complete(view.records) if all(map(math.isfinite, objectives(record)))]
    return [record.number for record in measured], hypervolume_history([logarithmic(objectives(record)) for record in measured], reference)


def importances(view: StudyView) -> dict[str, dict[str, float]]:
    """Objective -> parameter -> share of the objective's variance that it explains, largest first; the shares add up to 1.

    Size and latency count on a logarithmic scale, without what cannot change them (`decides`). Objectives that did not vary, and studies
    of fewer than MIN_TRIALS distinct complete trials, are left out. References: Hutter, Hoos, Leyton-Brown 2014 (fANOVA).
    """
    trials = view.trials
    if len(trials) < MIN_TRIALS or not trials[0].params:
        return {}
    found = {}
    with _quiet():
        study = optuna.create_study(directions=["minimize"] * len(trials[0].values))
        asked = [name for name in trials[0].params if all(name in trial.params for trial in trials)]
        values = [logarithmic(tuple(trial.values)) for trial in trials]
        study.add_trials([_copy(trial, value) for trial, value in zip(trials, values, strict=True)])
        for axis, name in enumerate(OBJECTIVES[: len(values[0])]):
            parameters = [parameter for parameter in asked if decides(view, parameter, name)]
            if parameters and len({value[axis] for value in values}) > 1:
                found[name] = _importance(study, axis, parameters)
    return found


def decides(view: StudyView, parameter: str, objective: str) -> bool:
    """Whether a parameter can change an objective at all: what others seem to explain of it is noise.

    Structure, and size unless files are entropy-coded, are known before the training; bits change the latency where more than 8 force a
    layer to float.
    """
    chosen = [record.candidate for record in complete(view.records) if record.candidate is not None]
    if objective == "accuracy" or (objective == "size" and view.coded):
        return True
    if parameter == "quantiser":
        return any(each.quantiser in IN_FLOAT | OWN_BITS for each in chosen)
    if objective == "latency" and (parameter in STORAGE or parameter.startswith(("bits_", "action_"))):
        return any(bits > 8 for each in chosen for bits in (each.edge_bits or 0, *(group.weight_bits for group in each.groups)))
    return parameter not in LEARNING


def _importance(study: optuna.Study, axis: int, parameters: list[str]) -> dict[str, float]:
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    shares = optuna.importance.get_param_importances(
        study, evaluator=evaluator, params=parameters, target=lambda trial: float(trial.values[axis])
    )
    return {name: float(share) for name, share in shares.items()}


def _copy(trial: optuna.trial.FrozenTrial, values: Point) -> optuna.trial.FrozenTrial:
    return optuna.trial.create_trial(params=trial.params, distributions=trial.distributions, values=list(values))


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna tells of every study and trial that it makes, also of those in memory."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
