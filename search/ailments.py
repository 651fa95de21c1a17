"""What search.doctor looks at in a study's folder: candidates, orphans, what killed processes left, kept networks, accounts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core.checkpoint import SUFFIX
from core.engines import ALIVE, HOST_PREFIX
from core.errors import UserError
from core.files import TEMPORARY, is_held, lock_of, target_of
from core.sealed import read_array
from results.record import CANDIDATE_FILES, file_digests
from results.refined import FILE, read_refined
from search.finalists import MEASURED, finished

if TYPE_CHECKING:
    import optuna

    from results.record import TrialRecord

LOST = "so it cannot be exported"


@dataclass(frozen=True)
class Patient:
    """A study, its finished trials, and where its files are."""

    study: optuna.Study
    records: list[TrialRecord]
    folder: Path
    at_rest: bool
    """Whether nobody works on it: neither in a trial nor before the first."""

    @property
    def cache(self) -> Path:
        """What all studies of this folder share."""
        return self.folder.parent / ".cache"


@dataclass(frozen=True)
class Finding:
    """Something wrong, in words, and what mends it; None: nothing here can."""

    text: str
    repair: Callable[[], object] | None = None


def candidates(patient: Patient) -> Iterator[Finding]:
    """Files of complete trials: there, whole, and those that were measured."""
    seen: set[Path] = set()
    for record in patient.records:
        if record.state != "COMPLETE" or record.path is None or record.measurement is None:
            continue
        folder = patient.folder / record.path
        if folder in seen:  # equal trials share it
            continue
        seen.add(folder)
        for fault in _faults(folder, record):
            yield Finding(f"trial {record.number}: {fault}, {LOST}")


def refined(patient: Patient) -> Iterator[Finding]:
    """The same of what search.refine trained, which trains again what is not there; and what it keeps of each training."""
    for path in sorted((patient.folder / "refined").glob(f"*/{MEASURED}")):
        if finished(path.parent) is None:
            yield Finding(f"{path}: damaged, or its model is missing", _remover(path))
    if not (patient.folder / FILE).exists():
        return
    try:
        records = read_refined(patient.folder).records
    except UserError as error:
        yield Finding(str(error))
        return
    for record in records:
        folder = patient.folder / str(record.path)
        if folder.parent.name == "refined":  # those that were only timed again are the search's
            for fault in _faults(folder, record):
                yield Finding(f"refined trial {record.number}: {fault}, {LOST}; remove {folder}, and search.refine trains it again")


def teacher(patient: Patient) -> Iterator[Finding]:
    """The FP32 teacher as ONNX, which judges images without labels; a run of the study writes it again."""
    path = patient.folder / "teacher" / "model.onnx"
    if path.is_file() and not _is_onnx(path):
        yield Finding(f"{path}: damaged", _remover(path))
    elif patient.records and not path.is_file():
        yield Finding(f"{path}: missing; the search's own command writes it again")


def _faults(folder: Path, record: TrialRecord) -> Iterator[str]:
    """What is wrong with the files of a candidate, in words."""
    assert record.measurement is not None
    packed, model = (folder / name for name in CANDIDATE_FILES)
    missing = [str(path) for path in (packed, model) if not path.is_file()]
    if missing:
        yield f"{' and '.join(missing)} missing"
        return
    if record.files:
        now = file_digests(folder)
        for name in (name for name, digest in record.files.items() if now.get(name) != digest):
            yield f"{folder / name} is damaged (its digest is {now.get(name)}, and was {record.files[name]} when it was measured)"
        return
    if not _unpacks(packed):
        yield f"{packed} is damaged"
    if (size := packed.stat().st_size) != record.measurement.size_bytes:
        yield f"{packed} has {size} bytes, but was measured with {record.measurement.size_bytes}"
    if not _is_onnx(model):
        yield f"{model} is damaged"


def _unpacks(path: Path) -> bool:
    from core.pack import PackError, unpack

    try:
        unpack(path.read_bytes())
    except PackError:
        return False
    return True


def _is_onnx(path: Path) -> bool:
    from core.onnx_layers import read_model

    try:
        read_model(path)
    except UserError:
        return False
    return True


def orphans(patient: Patient) -> Iterator[Finding]:
    """Candidates of no trial that may still ask for them: one that was cut off goes on from its checkpoints."""
    if not patient.at_rest or _is_waited_for(patient.study):
        return
    known = {Path(record.path).name for record in patient.records if record.path is not None}
    for entry in sorted((patient.folder / "candidates").glob("[!.]*")):
        if entry.name not in known:
            yield Finding(f"{entry}: of no finished trial", _remover(entry))
    for entry in sorted((patient.folder / "parents").glob(f"*{SUFFIX}")):
        yield Finding(f"{entry}: of a network that nobody trains", _remover(entry))


def _is_waited_for(study: optuna.Study) -> bool:
    """Whether trials wait that were begun before."""
    from optuna.trial import TrialState

    from search.study import REQUEUED_KEY

    return any(REQUEUED_KEY in trial.user_attrs for trial in study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))


def left_behind(patient: Patient) -> Iterator[Finding]:
    """What a killed writer or a killed worker left."""
    for entry in sorted(patient.folder.glob(f"{HOST_PREFIX}*")):
        if not is_held(entry / ALIVE):
            yield Finding(f"{entry}: left behind by a killed process", _remover(entry))
    found = [*patient.folder.rglob(TEMPORARY)] if patient.at_rest else []
    # other studies share the cache: there a lock says whether its writer lives
    found += [entry for entry in patient.cache.rglob(TEMPORARY) if not is_held(lock_of(target_of(entry)))]
    for entry in sorted(found):
        yield Finding(f"{entry}: left behind by a killed process", _remover(entry))


def kept(patient: Patient) -> Iterator[Finding]:
    """Networks and answers that are kept and loaded: a damaged one is made anew."""
    for folder in (patient.folder / "parents", patient.cache / "teachers"):
        for path in sorted(folder.glob("*.safetensors")):
            if not _is_safetensors(path):
                yield Finding(f"{path}: damaged", _remover(path))
    for path in sorted((patient.cache / "logits").rglob("*.npy")):
        if read_array(path) is None:
            yield Finding(f"{path}: damaged, or of an earlier version", _remover(path))


def _is_safetensors(path: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            file.keys()
    except (SafetensorError, OSError):
        return False
    return True


def accounts(patient: Patient) -> Iterator[Finding]:
    """JSON files: whole; the latencies are measured anew, the account is written again by the next run."""
    for name in ("latency.json", "run.json"):
        path = patient.folder / name
        try:
            if path.exists():
                json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            yield Finding(f"{path}: damaged", _remover(path))


def _remover(path: Path) -> Callable[[], object]:
    return lambda: shutil.rmtree(path) if path.is_dir() else path.unlink()


CHECKS: tuple[Callable[[Patient], Iterator[Finding]], ...] = (candidates, refined, teacher, left_behind, kept, accounts, orphans)
