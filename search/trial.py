"""One Optuna trial: sample, evaluate, record. Errors of a trial end the trial; anything else ends the run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna

from core.candidate import Candidate, ShapePlan
from core.checkpoint import forget
from core.errors import InfeasibleCandidate, TrialError
from core.files import made_once
from objectives.allocation import settle
from objectives.bench import Stages, Workbench, await_maker
from objectives.budget import Limits
from objectives.evaluate import Evaluation, evaluate, fingerprint_of, shape_of
from results.analysis import hypervolume, logarithmic
from results.front import Point, front, objectives
from results.record import RECORD_KEY, TrialRecord, file_digests, read_records
from results.stages import append_stages
from search.allocated import allocated
from search.baselines import ALLOCATED_KEY
from search.constraints import pass_on
from search.owner import OWNER_KEY, current_owner
from search.progress import Progress
from search.sample import sample
from search.showcase import show_trial
from search.space import Space
from search.stopping import Gatekeeper, Judge
from search.storage import write_parameters

VOLUME_KEY = "hypervolume"
"""Trial attribute, for the dashboard."""


@dataclass
class TrialRunner:
    """Callable for `study.optimize`: a trial in, (accuracy, size_bytes, latency_ms) out; the first two where engines are only built."""

    space: Space
    bench: Workbench
    progress: Progress
    records: list[TrialRecord]
    owner: dict[str, Any] = field(default_factory=current_owner)
    first: Callable[[optuna.Study], float] = lambda study: 0.0
    """Called before a trial is taken, under the study's lock: queues what a study begins with. Returns the seconds that engines took."""
    begun: Callable[[], None] = lambda: None
    """Called when a trial is signed: from then on others know that it is taken."""
    shape: Callable[..., tuple[Any, ShapePlan]] = shape_of
    measure: Callable[..., Evaluation] = evaluate
    """The two halves of a trial's work; benchmarks/simulated_search.py has some that train nothing."""
    asked: Callable[[], int] = lambda: 0
    """How many images teachers have seen in this process."""
    judge: Judge | None = None
    """Who keeps hopeless candidates from being trained; None: nobody."""
    reference: Point | None = None
    """Of the hypervolume; None: none is kept, or not yet."""
    stage_seconds: float = 0.0
    """Of all stages of the trials that this process has begun."""
    loop_seconds: float = 0.0
    """From looking whether a trial is wanted to having told how it ended, without waiting for other workers."""
    sampler_seconds: float = 0.0
    newest: int | None = None
    """Number of the trial begun last."""
    held: ExitStack = field(default_factory=ExitStack)
    """The network that is being made, so that no other worker here makes it too."""

    def __post_init__(self) -> None:
        self.best = front(self.records)
        self.asked_before = 0

    def __call__(self, trial: optuna.Trial) -> Point:
        """Raises TrialPruned for an infeasible candidate and TrialError for a failed one; both are recorded first."""
        self.newest, self.asked_before = trial.number, self.asked()
        trial.set_user_attr(OWNER_KEY, self.owner)
        self.begun()
        stages = Stages(
            lambda name: self.progress.stage(trial.number, name), lambda name, *numbers: self.progress.epoch(trial.number, name, *numbers)
        )
        try:
            return self._ended(trial, stages)
        finally:  # also of a trial that is interrupted
            self.stage_seconds += sum(stages.seconds.values())

    def _ended(self, trial: optuna.Trial, stages: Stages) -> Point:
        """Evaluate and record, however it ends."""
        self.progress.stage(trial.number, "sample")
        known: dict[str, Any] = {"number": trial.number}
        try:
            record = self._evaluate(trial, stages, known)
        except InfeasibleCandidate as error:
            self._allocate(trial, known["candidate"], stages)
            self._finish(trial, TrialRecord(state="PRUNED", reason=str(error), **{"ending": "limit", **known}), stages)
            raise optuna.TrialPruned(str(error)) from error
        except TrialError as error:
            self._finish(trial, TrialRecord(state="FAIL", reason=f"{type(error).__name__}: {error}", **known), stages)
            raise
        self._allocate(trial, known["candidate"], stages)
        self._finish(trial, record, stages)
        return objectives(record)

    def _evaluate(self, trial: optuna.Trial, stages: Stages, known: dict[str, Any]) -> TrialRecord:
        """The COMPLETE record. `known` collects what is known of the trial so far, for the record of a failure."""
        known["candidate"] = sample(self.space, trial)
        write_parameters(trial.study)
        candidate = settle(known["candidate"], self.bench, stages)
        with stages("shape"):
            pruned, plan = self.shape(candidate, self.bench)
        fingerprint = fingerprint_of(candidate, plan)
        known |= _identity(candidate, plan, fingerprint)
        folder = self.bench.folder / "candidates" / fingerprint
        await_maker(folder, stages, self.progress.message)
        self.held.enter_context(made_once(folder, self.progress.message))
        self._learn(trial.study)
        twin = self._twin(fingerprint)
        if twin is not None:
            known["ending"] = "reused"
            if twin.state == "PRUNED":
                known |= {key: getattr(twin, key) for key in ("size_bytes", "latency_ms", "rungs", "missed")}
                raise InfeasibleCandidate(f"the same network as trial {twin.number}: {twin.reason}")
            reason = f"the same network as trial {twin.number}: not trained again"
            return twin.model_copy(update={**known, "reason": reason})
        limits = self._limits()
        gate = Gatekeeper(self.judge, lambda: self.records, lambda: self.best, known, limits)
        result = self.measure(candidate, pruned, plan, self.bench, limits, stages, folder, gate)
        trial.set_user_attr("engine", result.artifact.model_dump(mode="json", exclude={"model_path"}))
        path = str(Path(folder).relative_to(self.bench.folder))
        done: dict[str, Any] = {"measurement": result.measurement, "path": path, "files": file_digests(folder)}
        known |= {"candidate": result.candidate or candidate, "mean_bits": result.measurement.mean_bits}
        return TrialRecord(state="COMPLETE", **done, **known)

    def _allocate(self, trial: optuna.Trial, candidate: Candidate, stages: Stages) -> None:
        """If this trial's parent is to say the bits of one more baseline, leave that one's parameters for a worker to queue.

        Also where it was refused or is a twin; but no parent is trained for it alone.
        """
        if trial.study.user_attrs.get(ALLOCATED_KEY, {}).get("of") != trial.params:
            return
        found = None
        if self.bench.has_parent(candidate.student, candidate.width):
            found = allocated(self.space, trial.params, self.bench, stages)
        trial.study.set_user_attr(ALLOCATED_KEY, {} if found is None else {"queue": found})

    def release(self) -> None:
        """Let others make the network; after the trial was told, so that they find it finished."""
        self.held.close()

    def _learn(self, study: optuna.Study) -> None:
        """Add what other workers have finished meanwhile."""
        others = read_records(study, known={record.number for record in self.records})
        self.records += others
        self.best = front([*self.best, *others])

    def _limits(self) -> Limits:
        """Soft constraints limit nothing."""
        constraints = self.space.constraints
        return Limits() if constraints.soft else Limits(**constraints.model_dump(exclude={"soft"}))

    def _twin(self, fingerprint: str) -> TrialRecord | None:
        """A finished trial that resolved to the same network; it is never trained twice."""
        return next((record for record in self.records if record.fingerprint == fingerprint and record.state != "FAIL"), None)

    def _finish(self, trial: optuna.Trial, record: TrialRecord, stages: Stages) -> None:
        if record.fingerprint is not None:
            forget(self.bench.folder / "candidates" / record.fingerprint)
        append_stages(self.bench.folder / "stages.csv", trial.number, stages.records)
        asked = self.asked() - self.asked_before
        record = record.model_copy(update={"seconds": stages.seconds, "teacher_forward_images": asked})
        self.best = front([*self.best, record])
        if self.reference is not None:
            volume = round(hypervolume([logarithmic(objectives(each)) for each in self.best], self.reference), 6)
            record = record.model_copy(update={"hypervolume": volume})
            trial.set_user_attr(VOLUME_KEY, volume)
        pass_on(self.space.constraints, trial, record)
        show_trial(trial, record, self.bench.folder)
        trial.set_user_attr(RECORD_KEY, record.model_dump_json())
        self.records.append(record)
        self.progress.trial_done(record, self.best)


def _identity(candidate: Candidate, plan: ShapePlan, fingerprint: str) -> dict[str, Any]:
    return {
        "candidate": candidate,
        "fingerprint": fingerprint,
        "student": candidate.student,
        "width": candidate.width,
        "mean_bits": plan.mean_bits,
    }
