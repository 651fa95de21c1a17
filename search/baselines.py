"""Sensible first candidates, so that a study's first ten trials already draw a front."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import TrialState

from core.candidate import SELF
from search.sample import EXECUTIONS, genes, sample
from search.space import Range, Space, StudentSpace, options

ALLOCATED_KEY = "sqnr_baseline"
"""Study attribute: {"of": parameters of a trial} whose parent is to say the bits of one more; then {"queue": its parameters}; then {}."""


def enqueue_allocated(study: optuna.Study) -> None:
    """Queue what a finished baseline has left to be tried, once, when nothing else waits. Hold the study's lock, and take it at once."""
    parameters = study.user_attrs.get(ALLOCATED_KEY, {}).get("queue")
    if parameters is None:
        return
    if something_waits(study):
        return
    enqueue_once(study, parameters)
    study.set_user_attr(ALLOCATED_KEY, {})


def something_waits(study: optuna.Study) -> bool:
    """Whether a trial is queued."""
    return bool(study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))


def enqueue_once(study: optuna.Study, parameters: dict[str, Any]) -> None:
    """Queue a trial unless it is there: a process may have died before it wrote that it had queued it."""
    known = ((trial.params, trial.system_attrs.get("fixed_params")) for trial in study.get_trials(deepcopy=False))
    if all(parameters not in each for each in known):
        study.enqueue_trial(parameters)


def baselines(
    space: Space,
    sizes: Mapping[str, int],
    student: str,
    executions: Sequence[str] = EXECUTIONS,
    float_first: Collection[str] = (),
    teacher: str | None = None,
) -> list[dict[str, Any]]:
    """The parameters of each baseline of `student` as the sampler would have chosen them, without repetition.

    All are unpruned: the smallest student at its narrowest, every one at its widest at 4 bits, one also at 8. That is the teacher's own
    network, if it is a student (`self`, or the name `teacher`), else the largest. Those of `float_first` execute in float.
    """
    students, widths = by_size(space, sizes), options(space.student.width)
    likest = next((name for name in (SELF, teacher) if name in students), students[-1])
    wanted = [(min(widths), 4)] * (student == students[0]) + [(max(widths), 4)] + [(max(widths), 8)] * (student == likest)
    found: list[dict[str, Any]] = []
    for width, bits in wanted:
        parameters = _parameters(space, executions, float_first, student, width, bits)
        if parameters not in found:
            found.append(parameters)
    return found


def all_baselines(space: Space, sizes: Mapping[str, int], **more: Any) -> list[dict[str, Any]]:
    """Those of every student, the smallest first."""
    return [parameters for student in by_size(space, sizes) for parameters in baselines(space, sizes, student, **more)]


def allocated_from(space: Space, sizes: Mapping[str, int], float_first: Collection[str] = ()) -> dict[str, Any] | None:
    """The baseline whose trained parent is to say the bits of one more (search/allocated.py): the largest student at 4 bits.

    None where it has no such parent, or no bits for each position.
    """
    uniform = _parameters(space, EXECUTIONS, float_first, by_size(space, sizes)[-1], max(options(space.student.width)), 4)
    return uniform if _has_parent(space, uniform) else None


def by_size(space: Space, sizes: Mapping[str, int]) -> list[str]:
    """The students, the smallest first."""
    return sorted(options(space.student.name), key=lambda name: sizes[name])


def _has_parent(space: Space, parameters: Mapping[str, Any]) -> bool:
    """Whether these parameters make a trial that has a trained parent and bits for each position."""
    plan = sample(space, optuna.trial.FixedTrial(dict(parameters)))
    return plan.distil.init == "inherit" and plan.allocation.strategy == "per_position" and "bits_0" in parameters


def _parameters(
    space: Space, executions: Sequence[str], float_first: Collection[str], student: str, width: float, bits: int
) -> dict[str, Any]:
    asked = {name: value for name, value in genes(space, executions).items() if isinstance(value, tuple | Range)}
    usual = genes(Space(student=StudentSpace(name=student))) | {"student": student, "width": width}
    execution, choices = "float" if student in float_first else "int8", options(space.quantise.weight_bits)
    return {name: _choice(name, value, bits, execution, choices, usual.get(name)) for name, value in asked.items()}


def _choice(name: str, value: Any, bits: int, execution: str, choices: Sequence[int], usual: Any) -> Any:
    """The baseline's answer to one question; what it does not care for is as `usual` where that is offered, else in the middle."""
    if name.startswith("bits_"):
        # bits are asked as the index of the sorted choices
        return value.index(nearest_to(bits, value))
    if name.startswith("action_"):
        from core.allocate.haq import action_of  # late: it imports torch

        return action_of(nearest_to(bits, choices), choices)
    if name == "budget_bits":
        return nearest_to(bits, value)
    if name == "budget_ms":  # the loosest: a first trial is to be trained
        return max(options(value))
    if name.startswith("exec_"):
        return execution if execution in value else value[0]
    if name.startswith("ratio_"):
        return value.low if isinstance(value, Range) else 0
    if isinstance(value, Range):
        return _middle(value) if usual is None else nearest_to(usual, value)
    return usual if usual in value else value[len(value) // 2]


def nearest_to(wanted: float, value: Any) -> Any:
    """What of the choices or the range is nearest to `wanted`."""
    if not isinstance(value, Range):
        return min(value, key=lambda choice: abs(choice - wanted))
    if value.step is None:
        return min(max(wanted, value.low), value.high)
    steps = round((min(max(wanted, value.low), value.high) - value.low) / value.step)
    return float(f"{value.low + steps * value.step:.12g}")


def _middle(value: Range) -> float:
    if value.log:
        return float((value.low * value.high) ** 0.5)
    if value.step is None:
        return (value.low + value.high) / 2
    steps = round((value.high - value.low) / value.step)
    return float(f"{value.low + steps // 2 * value.step:.12g}")
