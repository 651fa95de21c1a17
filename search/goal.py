"""What a study is after: how many trials, drawn by which sampler, and when it has searched enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from results.record import TrialRecord

GROWTH = 0.001
"""Share of the hypervolume that `plateau` trials must add, or the study has found what it can."""


@dataclass(frozen=True)
class Goal:
    """When a study ends, and how its candidates are drawn; the same for all its workers, and picklable.

    `sampler` is a name of SAMPLERS or `auto`. `hours` end this start at its `deadline`, in seconds of
    this machine's monotonic clock: nobody sets it.
    """

    trials: int
    seed: int = 0
    sampler: str = "tpe"
    hours: float | None = None
    deadline: float | None = None
    plateau: int | None = None

    def over(self, now: float, volumes: Sequence[float]) -> str | None:
        """Why no further trial begins, or None. `volumes`: the hypervolume after each complete or pruned trial, never falling.

        There is no plateau at 0: nothing has come into the reference box yet.
        """
        if self.hours is not None and self.deadline is not None and now >= self.deadline:
            return f"ended early: --max-hours {self.hours:g} are over"
        before = volumes[-1 - self.plateau] if self.plateau is not None and len(volumes) > self.plateau else 0.0
        if before > 0 and volumes[-1] <= (1 + GROWTH) * before:
            return f"ended early: the hypervolume grew by less than {100 * GROWTH:g} % in {self.plateau} trials (--plateau)"
        return None


def volumes_of(records: Sequence[TrialRecord]) -> list[float]:
    """Hypervolume after each complete or pruned trial, by number; those of a version that kept none are left out.

    A worker knows the trials that others had finished when its own began, so its numbers may fall behind: the largest so far counts.
    """
    ordered = sorted(records, key=lambda record: record.number)
    return list(accumulate((each.hypervolume for each in ordered if each.state != "FAIL" and each.hypervolume is not None), max))
