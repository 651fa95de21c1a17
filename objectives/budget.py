"""What a candidate must keep: hard limits of its space, and a place on the front; checked as soon as a number is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from core.candidate import KB, BuildReport, LatencyReport, Measurement, Rung, bytes_of, milliseconds
from core.errors import InfeasibleCandidate
from objectives.outlook import Traits, interval

UNTRAINED = "not trained"
"""How a message ends that refuses a candidate before its training."""


@dataclass(frozen=True)
class Limits:
    """None: no limit. 1 KB is 1000 bytes; accuracy in (0, 1]."""

    latency_ms: float | None = None
    size_kb: float | None = None
    accuracy: float | None = None

    def check_size(self, size_bytes: int, so_far: str) -> None:
        """Raises InfeasibleCandidate above the limit; the message ends with what was done by then."""
        if self.size_kb is not None and size_bytes > bytes_of(self.size_kb):
            raise InfeasibleCandidate(f"size_kb must be at most {self.size_kb:g}, but is {size_bytes / KB:.2f}; {so_far}")

    def check_latency(self, report: LatencyReport | BuildReport, so_far: str) -> None:
        """Raises InfeasibleCandidate above the limit; the message ends with what was done by then."""
        for median_ms in milliseconds(report):
            if self.latency_ms is not None and median_ms > self.latency_ms:
                raise InfeasibleCandidate(f"latency_ms must be at most {self.latency_ms:g}, but is {median_ms:.4f}; {so_far}")

    def check_accuracy(self, accuracy: float) -> None:
        """Raises InfeasibleCandidate below the limit."""
        if self.accuracy is not None and accuracy < self.accuracy:
            raise InfeasibleCandidate(f"accuracy must be at least {self.accuracy:g}, but is {accuracy:.4f}")

    def check_reach(self, upper: float, confidence: float, so_far: str) -> None:
        """Raises InfeasibleCandidate where the accuracy stays below the limit, as it does not exceed `upper` with that confidence."""
        if self.accuracy is not None and upper < self.accuracy:
            reach = f"this one reaches at most {upper:.4f} (confidence {confidence:g})"
            raise InfeasibleCandidate(f"accuracy must be at least {self.accuracy:g}, but {reach}; {so_far}")


@dataclass(frozen=True)
class Known:
    """What the draft of a candidate tells before training: exact bytes, measured latency, and traits."""

    traits: Traits
    size_bytes: int
    latency: LatencyReport | BuildReport


class Gate(Protocol):
    """Whoever decides whether a candidate is worth its training. May raise InfeasibleCandidate.

    `note` gets size_bytes and latency_ms as soon as each is known, also of a candidate that a hard limit then refuses; and `missed`, the
    measurement of one that was trained in full before the limit of accuracy refused it.
    """

    def note(self, **facts: float | Measurement | None) -> None: ...

    def before_training(self, known: Known) -> None: ...

    def at_rung(self, known: Known, rung: Rung) -> None: ...


def surely_dominates(point: Measurement, known: Known, upper: float, confidence: float) -> bool:
    """Whether the candidate cannot escape `point`, whose worse limits are no worse than the candidate's better ones.

    Compared are the point's lower limit of accuracy with the candidate's `upper` one, exact bytes, and the upper end of the point's
    latency with the lower end of the candidate's; a structure that was measured once is not noise against itself.
    """
    return (
        _not_slower(point, known)
        and point.size_bytes <= known.size_bytes
        and interval(point.accuracy, point.images, confidence)[0] >= upper
    )


def dominates(point: Measurement, known: Known, upper: float) -> bool:
    """Whether `point`, as measured, is no worse than the candidate with accuracy `upper`. Both are judged on the same images."""
    not_slower = milliseconds(point.latency) <= milliseconds(known.latency)
    return point.accuracy >= upper and point.size_bytes <= known.size_bytes and not_slower


def _not_slower(point: Measurement, known: Known) -> bool:
    """By the intervals; where latencies are not measurable, nothing is slower."""
    mine, other = point.latency, known.latency
    if isinstance(mine, BuildReport) or isinstance(other, BuildReport):
        return True
    return mine == other or mine.bounds_ms[1] <= other.bounds_ms[0]
