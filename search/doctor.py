"""Check a study and its folder, and repair what can be: python -m search.doctor --study digits --repair

Exit code 0: nothing is wrong, or all of it was repaired. 1: something is.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from core.cli import Parser, run_main
from core.errors import DiskRefused, UserError
from search.reading import add_study_flags

if TYPE_CHECKING:
    import optuna

    from search.ailments import Finding
    from search.lock import StudyLock

RUNS = Path("runs")
WRONG = 1


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
    from core.engines import living_hosts
    from results.record import read_records
    from search.ailments import CHECKS, Patient
    from search.lock import StudyLock
    from search.storage import sqlite_file
    from search.study import load_study

    if (path := sqlite_file(url)) is not None and path.is_file():
        yield from _database(path)
    folder = RUNS / name
    study, lock = load_study(url, name, folder), StudyLock(url, folder)
    alive = yield from _stale(study, lock)
    patient = Patient(study, read_records(study), folder, at_rest=not alive and not living_hosts(folder))
    for check in CHECKS:
        yield from check(patient)


def _database(path: Path) -> Iterator[Finding]:
    """SQLite's own check. UserError for a file that it cannot read at all."""
    from search.ailments import Finding

    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            lines = [line for (line,) in database.execute("PRAGMA integrity_check").fetchall()]
    except sqlite3.DatabaseError as error:
        raise UserError(f"a study's database must be SQLite's, but {path} is not ({error}); restore it from a copy") from error
    for line in lines:
        if line != "ok":
            yield Finding(f"{path}: {line}")


def _stale(study: optuna.Study, lock: StudyLock) -> Generator[Finding, None, int]:
    """Trials whose worker has died, and those of other machines, of which nothing is known here; returns how many are alive."""
    from optuna.trial import TrialState

    from search.ailments import Finding
    from search.owner import OWNER_KEY
    from search.study import is_orphan, sweep

    def again() -> None:
        with lock:
            sweep(study, lock.one_machine)

    with ExitStack() as stack:
        with suppress(DiskRefused):  # nobody can take a trial there either
            stack.enter_context(lock)  # under it every running trial is signed
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        stale = [trial.number for trial in running if is_orphan(trial, lock.one_machine)]
    for number in stale:
        yield Finding(f"trial {number}: its worker has died, and it is not queued again", again)
    for trial in running:
        owner = trial.user_attrs.get(OWNER_KEY, {})
        if trial.number not in stale:
            print(f"trial {trial.number}: being run by process {owner.get('pid')} of {owner.get('host')}")
    return len(running) - len(stale)


if __name__ == "__main__":
    raise SystemExit(run_main(main))
