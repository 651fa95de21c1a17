"""Search: python -m search.run --space spaces/digits.yaml --trials 20

Reads the space, trains or loads the teacher, and lets Optuna drive trials until the study has its number. The same
command continues an interrupted study.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.cli import INTERRUPTED, run_main
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
    """Parse, check, search, summarise. Exit code 0; 130 after Ctrl-C, with everything finished kept."""
    args = build_parser().parse_args(argv)
    load_plugins(args.plugin)
    space, config = resolve_arguments(args)
    _quiet_libraries()
    from search.study import check_name, storage_errors, storage_url

    name = check_name(args.study or (args.space.stem if args.space else "own"))
    url = storage_url(RUNS / name, args.storage)
    with storage_errors(url):
        if args.dry_run:
            from search.dry_run import dry_run

            return dry_run(space, config, name, args.trials, CACHE)
        return _search(args, space, config, name, url)


def _search(args: argparse.Namespace, space: Space, config: Config, name: str, url: str) -> int:
    from search.progress import Progress
    from search.session import open_session
    from search.study import delete_study, open_study, sweep

    folder = RUNS / name
    if args.fresh:
        delete_study(url, name, folder)
    digest, content = space_digest(space, config)
    study = open_study(url, name, _sampler(config), digest, content)
    swept = sweep(study)
    with Progress(args.trials, done=_finished(study), quiet=args.quiet) as progress:
        if swept:
            progress.message(f"re-queued trials of a run that died: {', '.join(map(str, swept))}")
        started = time.time()
        with open_session(space, config, folder, CACHE, progress, study) as session:
            facts = {"study": name, "command": _command(), "seed": config.seed, "started": started, **session.facts()}
            session.begin(facts)
            try:
                _run_trials(study, session.runner, args.trials)
                code = 0
            except KeyboardInterrupt:
                progress.message("interrupted: the current trial is queued again; the same command goes on")
                code = INTERRUPTED
            session.summarise(facts | {"wall_seconds": round(time.time() - started, 1)} | session.counters())
    return code


def _run_trials(study: optuna.Study, runner: TrialRunner, wanted: int) -> None:
    """Ask and tell until the study holds `wanted` complete or pruned trials."""
    failures = 0
    signal.signal(signal.SIGTERM, _interrupt)
    while _finished(study) < wanted:
        before = len(runner.records)
        try:
            study.optimize(runner, n_trials=1, catch=(TrialError,))
        except KeyboardInterrupt:
            _requeue_last(study)
            raise
        failures = failures + 1 if runner.records[before:] and runner.records[-1].state == "FAIL" else 0
        if failures == FAILURES_IN_A_ROW:
            raise UserError(f"{FAILURES_IN_A_ROW} trials in a row failed, the last because: {runner.records[-1].reason}; mend the cause and run again")


def _requeue_last(study: optuna.Study) -> None:
    """Optuna has marked the interrupted trial FAIL; its parameters wait for the next start."""
    from search.study import requeue

    requeue(study, study.get_trials(deepcopy=False)[-1])


def _interrupt(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _finished(study: optuna.Study) -> int:
    from search.study import count_finished

    return count_finished(study)


def _sampler(config: Config) -> optuna.samplers.BaseSampler:
    import warnings

    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(multivariate=True, seed=config.seed, n_startup_trials=10)


def _quiet_libraries() -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)


def _command() -> list[str]:
    """The command line for run.json, without a storage URL that may hold a password."""
    hidden, words = False, []
    for word in sys.argv[1:]:
        words.append("..." if hidden or word.startswith("--storage=") else word)
        hidden = word == "--storage"
    return words


if __name__ == "__main__":
    raise SystemExit(run_main(main))
