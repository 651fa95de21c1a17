"""What is measured of this device before a student's first trials: whether it computes that one more slowly in INT8 than in float.

INT8 is not always faster: requantisation between small or depthwise layers can cost more than their arithmetic saves. So both twins of
every student are timed once (their structures are those of the first trials, which need not measure again).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from core.candidate import BuildReport, Candidate, GroupPlan, LatencyReport
from core.compress import draft
from core.errors import TrialError
from objectives.bench import Workbench
from objectives.evaluate import shape_of
from search.sample import EXECUTIONS
from search.space import Space, options


class Twins(NamedTuple):
    """One student at its widest, unpruned: all layers in INT8 where that is legal, and all in float at the study's precision."""

    int8: LatencyReport
    float: LatencyReport

    @property
    def prefers_float(self) -> bool:
        """INT8 is slower beyond both intervals."""
        return self.float.bounds_ms[1] < self.int8.bounds_ms[0]


def float_first(space: Space, bench: Workbench, tell: Callable[[str], None], students: Sequence[str]) -> frozenset[str]:
    """Which of `students` should begin in float; none where the space leaves no choice, or engines are only built."""
    if set(options(space.quantise.execution)) != set(EXECUTIONS) or bench.engines.config.build_for:
        return frozenset()
    width, found = max(options(space.student.width)), set[str]()
    for student in students:
        twins = timed_twins(student, width, bench)
        if twins is not None and twins.prefers_float:
            found.add(student)
            tell(
                f"INT8 is slower than float ({twins.float.precision}) for {student} on this device ({twins.int8.p50_ms:.3f} against "
                f"{twins.float.p50_ms:.3f} ms): its first trials execute in float"
            )
    return frozenset(found)


def timed_twins(student: str, width: float, bench: Workbench) -> Twins | None:
    """Both latencies; None where one of the engines cannot be built or timed: the trial itself will say why."""
    reports = []
    try:
        for group in (GroupPlan(weight_bits=8, execution="int8"), GroupPlan(weight_bits=8, execution="float")):
            reports.append(_latency(Candidate(student=student, width=width, groups=(group,)), bench))
    except TrialError:
        return None
    int8, plain = reports
    return None if isinstance(int8, BuildReport) or isinstance(plain, BuildReport) else Twins(int8, plain)


def _latency(candidate: Candidate, bench: Workbench) -> LatencyReport | BuildReport:
    pruned, plan = shape_of(candidate, bench)
    drafted = draft(pruned, plan, bench.input_shape, bench.engines.runtime, candidate.quantiser)
    return bench.engines.latency(drafted.save(bench.engines.scratch / "prior"), key=drafted.structure)
