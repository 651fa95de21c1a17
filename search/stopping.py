"""Which candidates are worth their training (docs/architecture.md, decision 5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.candidate import Measurement, Rung
from core.config import StoppingConfig
from core.errors import HopelessCandidate
from objectives.budget import UNTRAINED, Known, Limits, dominates, surely_dominates
from objectives.outlook import TOGETHER, Finished, Outlook, traits_of
from results.front import complete
from results.record import TrialRecord

NO_LIMITS = Limits()


@dataclass(frozen=True)
class Judge:
    """How good a candidate can get, by the trials that finished before."""

    config: StoppingConfig
    together: bool = TOGETHER
    """Whether the confidence of a stop is that of all looks at a training together."""
    _learned: dict[int, tuple[TrialRecord, Finished]] = field(default_factory=dict, repr=False, compare=False)
    """By the trial's number: what its record teaches, worked out once."""

    def outlook(self, records: Sequence[TrialRecord]) -> Outlook:
        """By the distinct trials that were trained in full."""
        finished = tuple(self._finished(record) for record in trained(records) if record.candidate is not None)
        return Outlook(finished, self.config.confidence, self.together)

    def _finished(self, record: TrialRecord) -> Finished:
        known = self._learned.get(record.number)
        if known is None or known[0] is not record:
            known = self._learned[record.number] = (record, finished_of(record))
        return known[1]


@dataclass(frozen=True)
class Gatekeeper:
    """The gate of one trial (`objectives.budget.Gate`). `front` and `records` are the study's when asked; `notes` goes into the record.

    Of the hard `limits` it looks at that of accuracy; the others are known before it is asked.
    """

    judge: Judge | None
    records: Callable[[], Sequence[TrialRecord]]
    front: Callable[[], Sequence[TrialRecord]]
    notes: dict[str, Any]
    limits: Limits = NO_LIMITS

    def note(self, **facts: float | Measurement | None) -> None:
        """Put `size_bytes`, `latency_ms` or `missed` into the trial's record, however the trial ends."""
        self.notes.update(facts)

    def before_training(self, known: Known) -> None:
        """Raises InfeasibleCandidate where the candidate surely misses the limit, HopelessCandidate where the front surely dominates it."""
        if self.judge is None or not self.judge.config.skip:
            return
        confidence = self.judge.config.confidence
        upper = self.judge.outlook(self.records()).upper(known.traits)
        self.limits.check_reach(upper, confidence, UNTRAINED)
        for record in self.front():
            if surely_dominates(measured(record), known, upper, confidence):
                self.notes["ending"] = "skipped"
                raise HopelessCandidate(f"{_beaten(record, upper, confidence)}; {UNTRAINED}")

    def at_rung(self, known: Known, rung: Rung) -> None:
        """Note the rung. Raises as `before_training`, by the best that may still come: that is known in the first half of a training.

        Later only a point of the front with 100 % ends it, which nothing passes.
        """
        self.notes["rungs"] = (*self.notes.get("rungs", ()), rung)
        if self.judge is None or not self.judge.config.stop:
            return
        confidence = self.judge.config.confidence
        upper = self.judge.outlook(self.records()).upper(known.traits, self.notes["rungs"])
        at = f"stopped {rung.when} with {100 * rung.accuracy:.1f} %"
        self.limits.check_reach(upper, confidence, at)
        for record in self.front():
            if dominates(measured(record), known, upper):
                self.notes["ending"] = "stopped"
                raise HopelessCandidate(f"{_beaten(record, upper, confidence)}; {at}")


def trained(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The distinct records of trials that were trained in full, by number: also those that a limit of accuracy refused in the end."""
    refused = [record for record in records if record.refused]
    return sorted([*complete(records), *refused], key=lambda record: record.number)


def finished_of(record: TrialRecord) -> Finished:
    """What the record of a trial that was trained in full teaches."""
    point = record.reached
    assert record.candidate is not None
    assert point is not None, f"trial {record.number} is not measured"
    return Finished(traits_of(record.candidate, point.parameters, point.macs), record.rungs, point.accuracy)


def measured(record: TrialRecord) -> Measurement:
    """The measurement of a complete record."""
    assert record.measurement is not None, f"trial {record.number} is not measured"
    return record.measurement


def _beaten(record: TrialRecord, upper: float, confidence: float) -> str:
    better = f"trial {record.number} is as small, as fast and has {100 * measured(record).accuracy:.2f} %"
    reach = f"this one reaches at most {100 * upper:.2f} % (confidence {confidence:g})"
    return f"a candidate must be able to join the front, but {better}, and {reach}"
