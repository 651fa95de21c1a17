"""Sensible first candidates, so that a study's first ten trials already draw a front."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import optuna

from search.sample import EXECUTIONS, genes
from search.space import Range, Space, options


def enqueue_baselines(
    study: optuna.Study,
    space: Space,
    sizes: Mapping[str, int],
    executions: Sequence[str] = EXECUTIONS,
    float_first: Collection[str] = (),
) -> int:
    """Queue every student, unpruned, at 4 bits in INT8, the largest also at 8, the smallest also at the narrowest width; how many.

    `sizes` is the parameter count of each student name; those of `float_first` execute in float (search/prior.py). Nothing is queued
    in a study that has trials already.
    """
    if study.get_trials(deepcopy=False):
        return 0
    queued = baselines(space, sizes, executions, float_first)
    for parameters in queued:
        study.enqueue_trial(parameters)
    return len(queued)


def baselines(
    space: Space, sizes: Mapping[str, int], executions: Sequence[str] = EXECUTIONS, float_first: Collection[str] = ()
) -> list[dict[str, Any]]:
    """The parameters of each baseline as the sampler would have chosen them, without repetition."""
    students = sorted(options(space.student.name), key=lambda name: -sizes[name])
    widths = options(space.student.width)
    wanted = [(students[0], max(widths), 8)] + [(name, max(widths), 4) for name in students] + [(students[-1], min(widths), 4)]
    values = genes(space, executions)
    found: list[dict[str, Any]] = []
    for student, width, bits in wanted:
        asked = {name: value for name, value in values.items() if isinstance(value, tuple | Range)}
        execution = "float" if student in float_first else "int8"
        parameters = {name: _choice(name, value, student, width, bits, execution) for name, value in asked.items()}
        if parameters not in found:
            found.append(parameters)
    return found


def _choice(name: str, value: Any, student: str, width: float, bits: int, execution: str) -> Any:
    """The baseline's answer to one question; what it does not care for is in the middle."""
    if name == "student":
        return student
    if name == "width":
        return width
    if name.startswith("bits_"):
        # bits are asked as the index of the sorted choices
        return min(range(len(value)), key=lambda index: abs(value[index] - bits))
    if name.startswith("action_"):
        return bits / 8
    if name == "budget_bits":
        return nearest_to(bits, value)
    if name == "budget_ms":  # the loosest: a first trial is to be trained
        return max(options(value))
    if name.startswith("exec_"):
        return execution if execution in value else value[0]
    if name.startswith("ratio_"):
        return value.low if isinstance(value, Range) else 0
    return _middle(value)


def nearest_to(wanted: float, value: Any) -> Any:
    """What of the choices or the range is nearest to `wanted`."""
    if not isinstance(value, Range):
        return min(value, key=lambda choice: abs(choice - wanted))
    if value.step is None:
        return min(max(wanted, value.low), value.high)
    steps = round((min(max(wanted, value.low), value.high) - value.low) / value.step)
    return float(f"{value.low + steps * value.step:.12g}")


def _middle(value: Any) -> Any:
    if not isinstance(value, Range):
        return value[len(value) // 2]
    if value.log:
        return float((value.low * value.high) ** 0.5)
    if value.step is None:
        return (value.low + value.high) / 2
    steps = round((value.high - value.low) / value.step)
    return float(f"{value.low + steps // 2 * value.step:.12g}")
