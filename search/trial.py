"""One Optuna trial: sample, evaluate, record. Errors of a trial end the trial; anything else ends the run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna

from core.candidate import Candidate, ShapePlan
from core.errors import InfeasibleCandidate, TrialError
from objectives.bench import Stages, Workbench
from objectives.budget import Limits
from objectives.evaluate import evaluate, fingerprint_of, shape_of
from results.front import front, objectives
from results.record import RECORD_KEY, TrialRecord
from search.owner import OWNER_KEY, current_owner
from search.progress import Progress
from search.sample import sample
from search.space import Space


@dataclass
class TrialRunner:
    """Callable for `study.optimize`: a trial in, (accuracy, size_bytes, latency_ms) out."""

    space: Space
    bench: Workbench
    progress: Progress
    records: list[TrialRecord]
    owner: dict[str, Any] = field(default_factory=current_owner)
    newest: int | None = None
    """Number of the trial begun last."""

    def __call__(self, trial: optuna.Trial) -> tuple[float, float, float]:
        """Raises TrialPruned for an infeasible candidate and TrialError for a failed one; both are recorded first."""
        self.newest = trial.number
        trial.set_user_attr(OWNER_KEY, self.owner)
        stages = Stages(
            lambda name: self.progress.stage(trial.number, name), lambda name, *numbers: self.progress.epoch(trial.number, name, *numbers)
        )
        self.progress.stage(trial.number, "sample")
        known: dict[str, Any] = {"number": trial.number}
        try:
            record = self._evaluate(trial, stages, known)
        except InfeasibleCandidate as error:
            self._finish(trial, TrialRecord(state="PRUNED", reason=str(error), seconds=stages.seconds, **known))
            raise optuna.TrialPruned(str(error)) from error
        except TrialError as error:
            self._finish(trial, TrialRecord(state="FAIL", reason=f"{type(error).__name__}: {error}", seconds=stages.seconds, **known))
            raise
        self._finish(trial, record)
        return objectives(record)

    def _evaluate(self, trial: optuna.Trial, stages: Stages, known: dict[str, Any]) -> TrialRecord:
        """The COMPLETE record. `known` collects what is known of the trial so far, for the record of a failure."""
        candidate = sample(self.space, trial)
        known["candidate"] = candidate
        with stages("shape"):
            pruned, plan = shape_of(candidate, self.bench)
        fingerprint = fingerprint_of(candidate, plan)
        known |= _identity(candidate, plan, fingerprint)
        twin = self._twin(fingerprint)
        if twin is not None:
            if twin.state == "PRUNED":
                raise InfeasibleCandidate(f"the same network as trial {twin.number}: {twin.reason}")
            reason = f"the same network as trial {twin.number}: not trained again"
            return twin.model_copy(update={**known, "reason": reason, "seconds": stages.seconds})
        folder = self.bench.folder / "candidates" / fingerprint
        limits = Limits(**self.space.constraints.model_dump())
        result = evaluate(candidate, pruned, plan, self.bench, limits, stages, folder)
        trial.set_user_attr("engine", result.artifact.model_dump(mode="json", exclude={"model_path"}))
        path = str(Path(folder).relative_to(self.bench.folder))
        return TrialRecord(state="COMPLETE", measurement=result.measurement, seconds=stages.seconds, path=path, **known)

    def _twin(self, fingerprint: str) -> TrialRecord | None:
        """A finished trial that resolved to the same network; it is never trained twice."""
        return next((record for record in self.records if record.fingerprint == fingerprint and record.state != "FAIL"), None)

    def _finish(self, trial: optuna.Trial, record: TrialRecord) -> None:
        trial.set_user_attr(RECORD_KEY, record.model_dump_json())
        self.records.append(record)
        self.progress.trial_done(record, front(self.records))


def _identity(candidate: Candidate, plan: ShapePlan, fingerprint: str) -> dict[str, Any]:
    return {
        "candidate": candidate,
        "fingerprint": fingerprint,
        "student": candidate.student,
        "width": candidate.width,
        "mean_bits": plan.mean_bits,
    }
