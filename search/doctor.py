"""Check a study and its folder, and repair what can be: python -m search.doctor --study digits --repair

Exit code 0: nothing is wrong, or all of it was repaired. 1: something is.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core.cli import Parser, run_main
from core.files import TEMPORARY
from search.reading import add_study_flags

if TYPE_CHECKING:
    import optuna

    from results.record import TrialRecord
    from search.lock import StudyLock

RUNS = Path("runs")
WRONG = 1


@dataclass(frozen=True)
class Patient:
    """A study, its finished trials, and where its files are."""

    study: optuna.Study
    records: list[TrialRecord]
    folder: Path
    lock: StudyLock
    at_rest: bool
    """Whether nobody runs a trial of it."""


@dataclass(frozen=True)
class Finding:
    """Something wrong, in words, and what mends it; None: nothing here can."""

    text: str
    repair: Callable[[], object] | None = None


def main(argv: list[str]) -> int:
    """Check a study and its folder: its database, stale trials, missing and damaged files, and what nobody needs."""
    parser = Parser(prog="python -m search.doctor", description=main.__doc__)
    add_study_flags(parser)
    parser.add_argument("--repair", action="store_true", help="mend what can be")
    args = parser.parse_args(argv)
    from search.export_best import newest_run
    from search.storage import storage_errors, storage_url  # late: bad flags are answered without Optuna
    from search.study import check_name

    name = check_name(newest_run(RUNS) if args.study is None else args.study)
    url = storage_url(RUNS / name, args.storage)
    with storage_errors(url):
        left = sum(not _told(finding, args.repair) for finding in _examine(url, name))
    print(
        f"{name}: {'nothing is wrong' if not left else f'{left} left'}{'' if args.repair or not left else '; --repair mends what can be'}"
    )
    return WRONG if left else 0


def _told(finding: Finding, repair: bool) -> bool:
    """Print it; whether it is mended."""
    mended = repair and finding.repair is not None
    if mended and finding.repair is not None:
        finding.repair()
    print(f"{finding.text}: {'repaired' if mended else 'can be repaired' if finding.repair else 'cannot be repaired here'}")
    return mended


def _examine(url: str, name: str) -> Iterator[Finding]:
    from results.record import read_records
    from search.lock import StudyLock
    from search.storage import sqlite_file
    from search.study import count_running, load_study

    if (path := sqlite_file(url)) is not None and path.is_file():
        yield from _database(path)
    study, lock = load_study(url, name), StudyLock(url, RUNS / name)
    yield from _stale(study, lock)
    patient = Patient(study, read_records(study), RUNS / name, lock, at_rest=count_running(study) == 0)
    for check in CHECKS:
        yield from check(patient)


def _database(path: Path) -> Iterator[Finding]:
    """SQLite's own check."""
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
        for (line,) in database.execute("PRAGMA integrity_check").fetchall():
            if line != "ok":
                yield Finding(f"{path}: {line}")


def _stale(study: optuna.Study, lock: StudyLock) -> Iterator[Finding]:
    """Trials whose worker has died, and those of other machines, of which nothing is known here."""
    from optuna.trial import TrialState

    from search.owner import OWNER_KEY
    from search.study import is_orphan, sweep

    def again() -> None:
        with lock:
            sweep(study, lock.one_machine)

    with lock:  # under it every running trial is signed
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        stale = [trial.number for trial in running if is_orphan(trial, lock.one_machine)]
    for number in stale:
        yield Finding(f"trial {number}: its worker has died, and it is not queued again", again)
    for trial in running:
        owner = trial.user_attrs.get(OWNER_KEY, {})
        if trial.number not in stale:
            print(f"trial {trial.number}: being run by process {owner.get('pid')} of {owner.get('host')}")


def _candidates(patient: Patient) -> Iterator[Finding]:
    """Files of complete trials: there, whole, and of the size that was measured."""
    from core.pack import PackError, unpack

    for record in patient.records:
        if record.state != "COMPLETE" or record.path is None or record.measurement is None:
            continue
        packed, model = (patient.folder / record.path / file for file in ("weights.pack", "model.onnx"))
        missing = [str(path) for path in (packed, model) if not path.is_file()]
        if missing:
            yield Finding(f"trial {record.number}: {' and '.join(missing)} missing, so it cannot be exported")
            continue
        size = packed.stat().st_size
        try:
            unpack(packed.read_bytes())
        except PackError as error:
            yield Finding(f"trial {record.number}: {packed} is damaged ({error}), so it cannot be exported")
        if size != record.measurement.size_bytes:
            yield Finding(f"trial {record.number}: {packed} has {size} bytes, but was measured with {record.measurement.size_bytes}")
        if not _is_onnx(model):
            yield Finding(f"trial {record.number}: {model} is damaged, so it cannot be exported")


def _is_onnx(path: Path) -> bool:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return bool(onnx.load(path).graph.node)
    except DecodeError:
        return False


def _orphans(patient: Patient) -> Iterator[Finding]:
    """Candidates of no finished trial: of one that was cut off. It makes them anew."""
    known = {Path(record.path).name for record in patient.records if record.path is not None}
    for entry in sorted((patient.folder / "candidates").glob("[!.]*")):
        if entry.name not in known and patient.at_rest:
            yield Finding(f"{entry}: of no finished trial", _remover(entry))


def _left_behind(patient: Patient) -> Iterator[Finding]:
    """What a killed writer or a killed worker left."""
    if not patient.at_rest:
        return
    for pattern in (TEMPORARY, "engines-*"):
        for entry in sorted(patient.folder.rglob(pattern)):
            yield Finding(f"{entry}: left behind by a killed process", _remover(entry))


def _kept(patient: Patient) -> Iterator[Finding]:
    """Networks that are kept and loaded: a damaged one is made anew."""
    from safetensors import SafetensorError, safe_open

    for folder in (patient.folder / "parents", patient.folder.parent / ".cache" / "teachers"):
        for path in sorted(folder.glob("*.safetensors")):
            try:
                with safe_open(path, "pt") as file:
                    file.keys()
            except (SafetensorError, OSError):
                yield Finding(f"{path}: damaged", _remover(path))


def _accounts(patient: Patient) -> Iterator[Finding]:
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


CHECKS: tuple[Callable[[Patient], Iterator[Finding]], ...] = (_candidates, _orphans, _left_behind, _kept, _accounts)


if __name__ == "__main__":
    raise SystemExit(run_main(main))
