"""Search: python -m search.run --space spaces/digits.yaml --trials 20

Reads the space, trains or loads the teacher, and lets Optuna drive trials until the study has its number. The same
command continues an interrupted study.
"""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.cli import run_main
from core.config import Config
from core.errors import TrialError, UserError
from search.setup import build_parser, load_plugins, resolve_arguments
from search.space import Space, space_digest

if TYPE_CHECKING:
    import optuna

    from search.trial import TrialRunner

RUNS = Path("runs")
CACHE = RUNS / ".cache"
FAILURES_IN_A_ROW = 10


def main(argv: list[str]) -> int:
    """Parse, check, search, summarise. Ctrl-C leaves everything finished, and KeyboardInterrupt passes to `run_main`."""
    args = build_parser().parse_args(argv)
    load_plugins(args.plugin)
    space, config = resolve_arguments(args)
    from search.storage import storage_errors, storage_url  # late: bad input is answered without Optuna
    from search.study import check_name

    name = check_name(args.study or (args.space.stem if args.space else "own"))
    url = storage_url(RUNS / name, args.storage)
    with storage_errors(url), _quiet_optuna(), _termination_is_ctrl_c():
        if args.dry_run:
            from search.dry_run import dry_run

            dry_run(space, config, name, url, args.trials, CACHE)
        else:
            _search(args, space, config, name, url, _command(argv, args.storage))
    return 0


def _search(args: argparse.Namespace, space: Space, config: Config, name: str, url: str, command: Sequence[str]) -> None:
    from search.progress import Progress
    from search.session import open_session
    from search.study import count_finished, sweep

    folder = RUNS / name
    study = _open_study(args.fresh, space, config, name, url)
    swept = sweep(study)
    with Progress(args.trials, done=count_finished(study), quiet=args.quiet) as progress:
        if swept:
            progress.message(f"queued again, their run has died: trials {', '.join(map(str, swept))}")
        started = time.time()
        with _interrupts_explained(progress, study), open_session(space, config, folder, CACHE, progress, study) as session:
            facts = {"study": name, "command": command, "seed": config.seed, "started": started, **session.facts()}
            session.begin(facts)
            try:
                _run_trials(study, session.runner, args.trials)
            finally:  # also after Ctrl-C, ten failures or a defect of ours: what is finished is shown
                session.summarise(facts | {"wall_seconds": round(time.time() - started, 1)} | session.counters())


def _open_study(fresh: bool, space: Space, config: Config, name: str, url: str) -> optuna.Study:
    from search.study import delete_study, open_study

    if fresh:
        from search.preflight import load_inputs

        load_inputs(config, CACHE)  # a study is not deleted for a run that cannot begin
        delete_study(url, name, RUNS / name)
    study = open_study(url, name, *space_digest(space, config))
    study.sampler = _sampler(config.seed, len(study.get_trials(deepcopy=False)))
    return study


def _run_trials(study: optuna.Study, runner: TrialRunner, wanted: int) -> None:
    """Ask and tell until the study holds `wanted` complete or pruned trials. Raises UserError after ten failures in a row."""
    from search.study import count_finished, requeue_interrupted

    failures = 0
    while count_finished(study) < wanted:
        try:
            study.optimize(runner, n_trials=1, catch=(TrialError,))
        except KeyboardInterrupt:
            requeue_interrupted(study, runner.newest)
            raise
        last = runner.records[-1]
        failures = failures + 1 if last.state == "FAIL" else 0
        if failures == FAILURES_IN_A_ROW:
            raise UserError(
                f"{failures} trials in a row failed, the last because: {last.reason}; mend the cause and run the same command again"
            )


def _sampler(seed: int, trials: int) -> optuna.samplers.BaseSampler:
    """TPE. A study that continues draws other numbers than it began with, or it would repeat its first candidates."""
    import warnings

    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(multivariate=True, seed=(seed * 1_000_003 + trials) % 2**32, n_startup_trials=10)


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
