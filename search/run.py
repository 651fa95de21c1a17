"""Search: python -m search.run --space spaces/digits.yaml --trials 20

Reads the space, trains or loads the teacher, and lets Optuna drive trials until the study has its number. The same
command continues an interrupted study.
"""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.cli import run_main
from core.config import Config
from search.digest import space_digest
from search.setup import build_parser, load_plugins, resolve_arguments
from search.space import Space

if TYPE_CHECKING:
    import optuna

    from search.cluster import Placement
    from search.lock import StudyLock

RUNS = Path("runs")
CACHE = RUNS / ".cache"


def main(argv: list[str]) -> int:
    """Parse, check, search, summarise. Ctrl-C leaves everything finished, and KeyboardInterrupt passes to `run_main`."""
    args = build_parser().parse_args(argv)
    load_plugins(args.plugin)
    space, config = resolve_arguments(args)
    from search.cluster import Placement
    from search.storage import check_workers, storage_errors, storage_url  # late: bad input is answered without Optuna
    from search.study import check_name

    name = check_name(args.study or (args.space.stem if args.space else "own"))
    url, place = storage_url(RUNS / name, args.storage), Placement(args.workers, args.cluster, args.gpus_per_worker)
    with storage_errors(url), _quiet_optuna(), _termination_is_ctrl_c():
        check_workers(url, place.workers, place.elsewhere)
        if args.dry_run:
            from search.dry_run import dry_run

            dry_run(space, config, name, url, args.trials, CACHE, fresh=args.fresh)
        else:
            _search(args, space, config, name, url, place, _command(argv, args.storage))
    return 0


def _search(args: argparse.Namespace, space: Space, config: Config, name: str, url: str, place: Placement, command: Sequence[str]) -> None:
    from results.front import front
    from results.record import read_records
    from search.goal import Goal
    from search.lock import StudyLock
    from search.loop import queued_again, run_trials
    from search.progress import Progress
    from search.session import open_session
    from search.study import count_finished, sweep
    from search.workers import Job, added, run_workers

    deadline = args.max_hours and time.monotonic() + 3600 * args.max_hours
    goal = Goal(args.trials, config.seed, args.sampler, args.max_hours, deadline, args.plateau)
    folder, lock = RUNS / name, StudyLock(url, RUNS / name)
    made_from = space_digest(space, config)
    study = _open_study(args.fresh, space, config, made_from, name, url, lock)
    with lock:
        swept = sweep(study, lock.one_machine)  # also before a study is copied: a copy of a running trial would run for ever
        if args.remeasure:
            study = _remeasured(study, space, config, folder)
        done = count_finished(study)
    known, epochs = front(read_records(study)), folder / "epochs.csv"
    with Progress(args.trials, done=done, front=known, quiet=args.quiet, epochs_csv=epochs, live=place.alone) as progress:
        if swept:
            progress.message(queued_again(study, swept))
        started, begun = time.time(), time.monotonic()
        with (
            _interrupts_explained(progress, study),
            open_session(space, config, made_from, folder, CACHE, progress, study, lock) as session,
        ):
            facts = {"study": name, "command": command, "seed": config.seed, "started": started, "workers": args.workers, **session.facts()}
            session.begin(facts)
            counted: Mapping[str, float] = {}
            try:
                if place.alone:
                    reason = run_trials(study, session.runner, goal, lock)
                else:
                    plugins = tuple(path.resolve() for path in args.plugin)
                    job = Job(space, config, made_from, name, url, RUNS, CACHE, goal, args.quiet, plugins, Path.cwd())
                    reason, counted = run_workers(job, place, progress, study, lock)
                if reason is not None:
                    progress.message(reason)
            finally:  # also after Ctrl-C, ten failures or a defect of ours: what is finished is shown
                facts |= {"wall_seconds": round(time.monotonic() - begun, 1)}
                session.summarise(facts | added([session.counters(), counted]))


def _open_study(
    fresh: bool, space: Space, config: Config, made_from: tuple[str, Mapping[str, Any]], name: str, url: str, lock: StudyLock
) -> optuna.Study:
    from search.study import delete_study, open_study, restore_study

    if fresh:
        from search.preflight import load_inputs

        load_inputs(space, config, CACHE)  # a study is not deleted for a run that cannot begin
    with lock:
        if restore_study(url, name):
            print(f"a --remeasure of {name!r} was cut off: the study is again as it was before", flush=True)
        if fresh:
            delete_study(url, name, RUNS / name)
        return open_study(url, name, *made_from, RUNS / name)


def _remeasured(study: optuna.Study, space: Space, config: Config, folder: Path) -> optuna.Study:
    """`--remeasure`: the study with the latencies of this device. Hold the study's lock."""
    from search.remeasure import remeasure

    study, lines = remeasure(study, space.constraints, config, folder)
    print("\n".join(lines), end="\n" if lines else "", flush=True)
    return study


@contextmanager
def _interrupts_explained(progress: Any, study: optuna.Study) -> Iterator[None]:
    from results.front import front
    from results.record import read_records

    begun = progress.teacher
    try:
        yield
    except KeyboardInterrupt:
        if progress.teacher is begun:  # before the session was open, so nothing has shown the front
            progress.result(front(read_records(study)))
        progress.message("interrupted: what is finished is kept, the current trial is queued again; the same command goes on")
        raise


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


@contextmanager
def _termination_is_ctrl_c() -> Iterator[None]:
    """A terminal that closes (unless nohup has it ignored) and `kill` end a run as Ctrl-C does."""

    def interrupt(signum: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _command(argv: Sequence[str], storage: str | None) -> list[str]:
    """The command line for run.json, without a password in the storage URL."""
    from search.storage import safe_url

    return [word if storage is None else word.replace(storage, safe_url(storage)) for word in argv]


if __name__ == "__main__":
    raise SystemExit(run_main(main))
