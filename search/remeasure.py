"""`--remeasure`: a study that goes on with another device, its stored models timed there anew and nothing trained again.

Optuna's finished trials cannot be changed, so the study is written anew under its own name. The former one stays in the database as
`<name>-on-<former device>`, from which the next start restores it where this one is killed meanwhile.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, TrialState

from core.candidate import BuildReport, LatencyReport, milliseconds
from core.cli import required
from core.config import Config
from core.engines import EngineHost, living_hosts
from core.errors import InfeasibleCandidate, UserError
from core.export import structure_key
from core.onnx_layers import read_model
from objectives.budget import Limits
from results.front import objectives
from results.record import RECORD_KEY, REFERENCE_KEY, TrialRecord, candidate_file, read_records
from search.constraints import KEY, attributes_of
from search.space import Constraints
from search.study import COPY, INPUTS_KEY, METRICS, UNMOVED_KEY, check_at_rest, requeue
from search.trial import VOLUME_KEY

DEVICE = "device or runtime"
"""Its name among a study's inputs."""
ELSEWHERE_TOO = ("size_kb", "accuracy")
"""How the reasons begin that hold on every device."""
SAME = re.compile(r"^(the same network as trial \d+: )+")
"""Before the reason of a trial that took over its twin's end (search/trial.py)."""
FORMER = "pruned on the former device, queued again"


def remeasure(study: optuna.Study, constraints: Constraints, config: Config, folder: Path) -> tuple[optuna.Study, list[str]]:
    """The study on this device, and what was done, in lines; the study itself where it has been here all the time.

    A candidate that this device makes too slow for a hard limit becomes a pruned trial; one that the former device pruned, for its latency
    or because others looked better, is queued again. Raises UserError when a stored model is missing or does not run here, and while
    somebody else works on the study.
    """
    others = living_hosts(folder)
    with EngineHost(config.runtime, folder) as engines:
        former = study.user_attrs.get(INPUTS_KEY, {}).get(DEVICE)
        if former in (None, engines.fingerprint) or not study.get_trials(deepcopy=False):
            return study, []
        check_at_rest(study, folder, others, "--remeasure")
        records = {record.number: record for record in read_records(study)}
        with required("a stored model must run on this device to be timed here"):
            latencies = _latencies(list(records.values()), engines, folder)
        device = engines.fingerprint
    before = study.get_trials()
    trials = [_moved(trial, records.get(trial.number), latencies, constraints) for trial in study.get_trials()]
    again = [old for old, new in zip(before, trials, strict=True) if (old.state, new.state) == (TrialState.PRUNED, TrialState.FAIL)]
    kept = _copied(study, f"{study.study_name}{COPY}{former}")
    copy = optuna.load_study(study_name=kept, storage=study._storage)
    copy.set_user_attr(UNMOVED_KEY, study.study_name)
    moved = _rewritten(study, trials, device)
    for trial in again:
        requeue(moved, trial)
    copy.set_user_attr(UNMOVED_KEY, None)
    lines = [f"{len(latencies)} models timed on this device ({device}); the study as it was is kept as {kept!r}"]
    return moved, lines + ([f"{len(again)} trials that the former device pruned are queued again"] if again else [])


def _latencies(records: list[TrialRecord], engines: EngineHost, folder: Path) -> dict[str, LatencyReport | BuildReport]:
    """Candidate's fingerprint -> latency here, each structure once (what an interrupted start has timed is kept)."""
    found: dict[str, LatencyReport | BuildReport] = {}
    for record in records:
        if record.measurement is None or str(record.fingerprint) in found:
            continue
        known = record.measurement.latency.runtime
        if known != engines.runtime.name:
            raise UserError(
                f"stored models run in {known}, but runtime.name is {engines.runtime.name} here; install {known}, or search anew"
            )
        model = candidate_file(folder, record, "model.onnx")
        found[str(record.fingerprint)] = engines.latency(model, key=structure_key(read_model(model)))
    return found


def _moved(
    trial: FrozenTrial, record: TrialRecord | None, latencies: Mapping[str, LatencyReport | BuildReport], constraints: Constraints
) -> FrozenTrial:
    """The trial as this device would have ended it. `trial` is the caller's own copy."""
    if record is None:
        return trial
    record = record.model_copy(update={"hypervolume": None})
    if record.measurement is not None:
        latency = latencies[str(record.fingerprint)]
        measured = record.measurement.model_copy(update={"latency": latency})
        ending = None if record.ending == "limit" else record.ending
        median = next(iter(milliseconds(latency)), None)
        record = record.model_copy(update={"measurement": measured, "latency_ms": median, "state": "COMPLETE", "ending": ending})
        trial.state, trial.values = TrialState.COMPLETE, list(objectives(record))
        limit = None if constraints.soft else constraints.latency_ms
        try:
            Limits(latency_ms=limit).check_latency(latency, "trained for another device")
        except InfeasibleCandidate as error:
            record = record.model_copy(update={"state": "PRUNED", "reason": str(error), "ending": "limit"})
            trial.state, trial.values = TrialState.PRUNED, None
    elif record.state == "PRUNED" and not SAME.sub("", str(record.reason)).startswith(ELSEWHERE_TOO):
        record = record.model_copy(update={"state": "FAIL", "reason": f"{FORMER}: {record.reason}", "ending": None})
        trial.state = TrialState.FAIL
    if record.measurement is None:
        record = record.model_copy(update={"latency_ms": None})  # the former device's
    others = {key: value for key, value in trial.system_attrs.items() if key.partition(":")[0] != KEY}
    trial.system_attrs = others | attributes_of(constraints, record)
    kept = {key: value for key, value in trial.user_attrs.items() if key != VOLUME_KEY}
    trial.user_attrs = {**kept, RECORD_KEY: record.model_dump_json()}
    return trial


def _copied(study: optuna.Study, wanted: str) -> str:
    """The name of a whole copy of the study: `wanted`, or the next one that is free where another study has that (`-2`, ...)."""
    storage = study._storage
    names, mine, name, number = set(optuna.get_all_study_names(storage)), _states(study), wanted, 1
    while name in names and _states(optuna.load_study(study_name=name, storage=storage)) != mine:
        name, number = f"{wanted}-{number + 1}", number + 1
    if name not in names:  # else a start that was interrupted has made it
        optuna.copy_study(from_study_name=study.study_name, from_storage=storage, to_storage=storage, to_study_name=name)
    return name


def _states(study: optuna.Study) -> list[tuple[TrialState, str | None]]:
    """What tells two states of one study apart."""
    return [(trial.state, trial.user_attrs.get(RECORD_KEY)) for trial in study.get_trials(deepcopy=False)]


def _rewritten(study: optuna.Study, trials: list[FrozenTrial], device: str) -> optuna.Study:
    """A study of the same name with these trials in its place."""
    storage, name = study._storage, study.study_name
    attributes: dict[str, Any] = {key: value for key, value in study.user_attrs.items() if key != REFERENCE_KEY}
    optuna.delete_study(study_name=name, storage=storage)
    moved = optuna.create_study(storage=storage, study_name=name, directions=study.directions)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        moved.set_metric_names(list(METRICS[: len(study.directions)]))
    for key, value in (attributes | {INPUTS_KEY: {**attributes.get(INPUTS_KEY, {}), DEVICE: device}}).items():
        moved.set_user_attr(key, value)
    moved.add_trials(trials)
    return moved
