"""Sensible first candidates, so that a study's first ten trials already draw a front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import optuna

from search.sample import EXECUTIONS, genes
from search.space import Range, Space, options


def enqueue_baselines(study: optuna.Study, space: Space, sizes: Mapping[str, int], executions: Sequence[str] = EXECUTIONS) -> int:
    """Queue every student, unpruned, at 4 bits in INT8, the largest also at 8, the smallest also at the narrowest width; how many.

    `sizes` is the parameter count of each student name. Nothing is queued in a study that has trials already.
    """
    if study.get_trials(deepcopy=False):
        return 0
    queued = baselines(space, sizes, executions)
    for parameters in queued:
        study.enqueue_trial(parameters)
    return len(queued)


def baselines(space: Space, sizes: Mapping[str, int], executions: Sequence[str] = EXECUTIONS) -> list[dict[str, Any]]:
    """The parameters of each baseline as the sampler would have chosen them, without repetition."""
    students = sorted(options(space.student.name), key=lambda name: -sizes[name])
    widths = options(space.student.width)
    wanted = [(students[0], max(widths), 8)] + [(name, max(widths), 4) for name in students] + [(students[-1], min(widths), 4)]
    values = genes(space, executions)
    found: list[dict[str, Any]] = []
    for student, width, bits in wanted:
        asked = {name: value for name, value in values.items() if isinstance(value, tuple | Range)}
        parameters = {name: _choice(name, value, student, width, bits) for name, value in asked.items()}
        if parameters not in found:
            found.append(parameters)
    return found


def _choice(name: str, value: Any, student: str, width: float, bits: int) -> Any:
    """The baseline's answer to one question; what it does not care for is in the middle."""
    if name == "student":
        return student
    if name == "width":
        return width
    if name.startswith("bits_"):
        # bits are asked as the index of the sorted choices
        return min(range(len(value)), key=lambda index: abs(value[index] - bits))
    if name.startswith("exec_"):
        return "int8" if "int8" in value else value[0]
    if name.startswith("ratio_"):
        return value.low if isinstance(value, Range) else 0
    return _middle(value)


def _middle(value: Any) -> Any:
    if not isinstance(value, Range):
        return value[len(value) // 2]
    if value.log:
        return float((value.low * value.high) ** 0.5)
    if value.step is None:
        return (value.low + value.high) / 2
    steps = round((value.high - value.low) / value.step)
    return float(f"{value.low + steps // 2 * value.step:.12g}")
