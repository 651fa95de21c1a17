"""What a study remembers of one trial: a small JSON string in the trial's user attributes (samples and models stay in files)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from core.candidate import Candidate, Frozen, LatencyReport, Measurement
from core.errors import UserError

if TYPE_CHECKING:
    import optuna

RECORD_KEY = "record"
State = Literal["COMPLETE", "PRUNED", "FAIL"]


class TrialRecord(Frozen):
    """One finished trial. `fingerprint`, `student`, `width` and `mean_bits` are those of the shape plan it resolved to."""

    number: Annotated[int, Field(ge=0)]
    state: State
    candidate: Candidate | None = None
    fingerprint: str | None = None
    student: str | None = None
    width: float | None = None
    mean_bits: float | None = None
    measurement: Measurement | None = None
    reason: str | None = None
    """Why the trial was pruned or failed, in words."""
    seconds: dict[str, float] = {}
    """Stage -> seconds."""
    path: str | None = None
    """Folder of its files."""

    @model_validator(mode="after")
    def _complete_is_measured(self) -> TrialRecord:
        if self.state == "COMPLETE" and (self.measurement is None or self.fingerprint is None):
            raise ValueError(f"a COMPLETE trial has a measurement and a fingerprint, but trial {self.number} lacks one")
        return self


class TeacherReport(Frozen):
    """The FP32 teacher in the study's runtime: what "smaller" and "faster" compare with. Accuracy in [0, 1], on the search split."""

    accuracy: float
    size_bytes: int
    latency: LatencyReport


def read_records(study: optuna.Study) -> list[TrialRecord]:
    """The records of a study's finished trials, by trial number.

    A record counts when the trial's own state agrees with it: a trial that was killed between writing its record and being
    told as finished holds a record that never came true. Raises UserError for a record that cannot be read.
    """
    trials = [trial for trial in study.get_trials(deepcopy=False) if RECORD_KEY in trial.user_attrs]
    records = [(trial.state.name, _parse(trial.user_attrs[RECORD_KEY], trial.number, study.study_name)) for trial in trials]
    return sorted((record for state, record in records if state == record.state), key=lambda record: record.number)


def _parse(text: str, number: int, study_name: str) -> TrialRecord:
    try:
        record = TrialRecord.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the record"
        raise UserError(
            f"every trial of a study must hold a record of this version, but trial {number} of {study_name!r} does not "
            f"({where}: {first['msg']}); use another --study, or start this one anew with --fresh"
        ) from error
    # A re-queued trial inherits the attributes of the one it repeats: the number that counts is its own.
    return record if record.number == number else record.model_copy(update={"number": number})
