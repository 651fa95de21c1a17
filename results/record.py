"""What a study remembers of one trial: a small JSON string in the trial's user attributes (samples and models stay in files)."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from core.candidate import BuildReport, Candidate, Frozen, LatencyReport, Measurement, Rung
from core.errors import UserError

if TYPE_CHECKING:
    import optuna

RECORD_KEY = "record"
TEST_KEY = "test_accuracy"
REFERENCE_KEY = "hypervolume_reference"
"""Study attribute: fingerprint -> accuracy on the test split, of the points that were exported."""
CANDIDATE_FILES = ("weights.pack", "model.onnx")
KEPT_FILES = (*CANDIDATE_FILES, "model.engine")
"""An engine is kept where a study only builds them."""
State = Literal["COMPLETE", "PRUNED", "FAIL"]
Ending = Literal["limit", "skipped", "stopped", "reused"]
"""Why a trial was not trained in full: a hard limit, the front before training, the front during it, or an equal trial."""


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
    missed: Measurement | None = None
    """Of a trial that was trained in full before a hard limit of accuracy refused it, or of its twin."""
    reason: str | None = None
    """Why the trial was pruned or failed, in words."""
    ending: Ending | None = None
    size_bytes: int | None = None
    latency_ms: float | None = None
    """Known before training, so also of a trial that was pruned later."""
    rungs: tuple[Rung, ...] = ()
    """Accuracy at the end of each epoch of distil and quantise; the last one is all that is known of a stopped trial's."""
    hypervolume: float | None = None
    """Of the front, this trial included."""
    seconds: dict[str, float] = {}
    """Stage -> seconds."""
    teacher_forward_images: int = 0
    """Images that teachers saw within this trial, for its parent too; 0 where all answers were kept, and in earlier versions."""
    path: str | None = None
    """Folder of its files."""
    files: dict[str, str] = {}
    """File in that folder -> 16 hex digits of its SHA-256; empty in studies of an earlier version."""

    @property
    def reached(self) -> Measurement | None:
        """What was measured of its engine, also where a limit of accuracy then refused it."""
        return self.measurement or self.missed

    @property
    def refused(self) -> bool:
        """Whether it was trained in full itself before a hard limit of accuracy refused it."""
        return self.state == "PRUNED" and self.missed is not None and self.ending != "reused"

    @model_validator(mode="after")
    def _complete_is_measured(self) -> TrialRecord:
        if self.state == "COMPLETE" and (self.measurement is None or self.fingerprint is None):
            raise ValueError(f"a COMPLETE trial has a measurement and a fingerprint, but trial {self.number} lacks one")
        return self


class TeacherReport(Frozen):
    """The FP32 teacher in the study's runtime: what "smaller" and "faster" compare with. Accuracy in [0, 1], on the search split."""

    accuracy: float
    size_bytes: int
    latency: LatencyReport | BuildReport


def read_records(study: optuna.Study, known: Collection[int] = ()) -> list[TrialRecord]:
    """The records of a study's finished trials, by trial number, without those of the trials `known`.

    A record counts when the trial's own state agrees with it: a trial that was killed between writing its record and being
    told as finished holds a record that never came true. Raises UserError for a record that cannot be read.
    """
    trials = [trial for trial in study.get_trials(deepcopy=False) if RECORD_KEY in trial.user_attrs and trial.number not in known]
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


def file_digests(folder: Path) -> dict[str, str]:
    """Of the files that a candidate leaves: name -> 16 hex digits; those that are missing are left out."""
    there = (folder / name for name in KEPT_FILES)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in there if path.is_file()}


def candidate_file(folder: Path, record: TrialRecord, name: str) -> Path:
    """A file of a record's candidate, the run's folder being `folder`. Raises UserError where it is missing."""
    path = folder / str(record.path) / name
    if not path.is_file():
        raise UserError(
            f"the files of trial {record.number} must be in the run's folder, but {path} is missing; run on the machine that made them"
        )
    return path
