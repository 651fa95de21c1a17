"""The first trials of a study, student by student, the smallest first: a front is there after the first minute, and grows."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import optuna

from objectives.bench import Workbench
from search.baselines import ALLOCATED_KEY, allocated_from, baselines, by_size, enqueue_once, something_waits
from search.prior import float_first
from search.space import Space

LEFT_KEY = "students_to_begin_with"
"""Study attribute: students whose baselines are still to be queued, in that order."""


@dataclass
class FirstTrials:
    """`sizes` is the parameter count of each student name, `teacher` the name of the teacher's network, `tell` takes messages."""

    space: Space
    bench: Workbench
    sizes: Mapping[str, int]
    teacher: str | None
    tell: Callable[[str], None]
    over: bool = False
    """Whether nothing is left to queue, so that the study need not be asked before every trial."""

    def queue(self, study: optuna.Study) -> float:
        """Queue the baselines of the next student when nothing else waits; none in a study that began without. Hold the study's lock.

        Both twins of the student are timed first: its baselines execute as is faster (search/prior.py). Returns the seconds of that.
        """
        if self.over:
            return 0.0
        left = study.user_attrs.get(LEFT_KEY) if study.get_trials(deepcopy=False) else by_size(self.space, self.sizes)
        if not left:
            self.over = True  # for good: nobody adds to it
            return 0.0
        if something_waits(study):
            return 0.0
        student, *rest = left
        start = time.perf_counter()
        slow = float_first(self.space, self.bench, self.tell, [student])
        timed = time.perf_counter() - start
        study.set_user_attr(LEFT_KEY, left)  # a process that dies within what follows leaves this student to be finished
        for parameters in baselines(self.space, self.sizes, student, float_first=slow, teacher=self.teacher):
            enqueue_once(study, parameters)
        if not rest and (uniform := allocated_from(self.space, self.sizes, slow)) is not None:
            study.set_user_attr(ALLOCATED_KEY, {"of": uniform})
        study.set_user_attr(LEFT_KEY, rest)
        return timed
