"""Several workers of one study: processes of this machine, or of a cluster, placed by joblib's back-ends."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import joblib
import optuna

from core.config import Config
from core.errors import UserError
from search.cluster import Placement
from search.lock import StudyLock
from search.loop import Goal, queued_again, run_trials
from search.owner import current_owner, is_dead
from search.progress import Progress
from search.space import Space
from search.study import count_finished, sweep

DEATHS = 3
"""In a row and without a trial finished in between: then it is no accident."""
LOOK_S = 1.0


@dataclass(frozen=True)
class Job:
    """What a worker needs to know; picklable."""

    space: Space
    config: Config
    made_from: tuple[str, Mapping[str, Any]]
    """`space_digest` of the whole run."""
    name: str
    url: str
    runs: Path
    cache: Path
    goal: Goal
    quiet: bool
    plugins: tuple[Path, ...]
    working_dir: Path
    left_s: float | None = None
    """Until the goal's deadline, for machines whose clocks count from elsewhere."""
    parent: dict[str, Any] | None = None
    """Whom the worker must not outlive; None on a cluster, which ends its own."""


def run_workers(
    job: Job, place: Placement, progress: Progress, study: optuna.Study, lock: StudyLock
) -> tuple[str | None, Mapping[str, float]]:
    """Run them until the study has its number, or there is a reason to end before: the reason, and the sums of `Session.counters`.

    When one is killed, all start again, and the trials that they ran are queued again; what they had counted is lost. Raises what a
    worker raised, and UserError when they keep dying. However it ends, no worker of this machine is left.
    """
    deaths = 0
    if place.here:
        job = replace(job, config=divided(job.config, place.workers), parent=current_owner())
    while True:
        finished = count_finished(study)
        job = replace(job, left_s=None if job.goal.deadline is None else job.goal.deadline - time.monotonic())
        try:
            with place.backend():
                run = joblib.Parallel(n_jobs=place.workers, batch_size=1, pre_dispatch="all")
                ended = run(joblib.delayed(_work)(job, number) for number in range(place.workers))
            return next((reason for reason, _ in ended if reason), None), added(counters for _, counters in ended)
        except BrokenExecutor as error:
            deaths = deaths + 1 if count_finished(study) == finished else 1
            if deaths == DEATHS:
                raise UserError(
                    f"workers must live to finish a trial, but {DEATHS} times in a row one was killed before any did"
                    " (out of memory, perhaps); give fewer --workers"
                ) from error
            progress.message("a worker was killed: all of them start again, and nothing that is finished is lost")
        finally:
            with lock:
                swept = sweep(study, lock.one_machine, innocent=True)  # all died with one of them, or of Ctrl-C
            if swept:
                progress.message(queued_again(study, swept))


def _work(job: Job, index: int) -> tuple[str | None, dict[str, float]]:
    """One worker, from its own teacher in memory to the study's last trial; why it ended before, and what it counted."""
    if job.working_dir.is_dir():  # a machine without the shared folder makes everything below its own
        os.chdir(job.working_dir)
    if job.parent is not None:
        _live_as_long_as(job.parent)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent ends its workers
    # only now what takes seconds to import: a parent that dies meanwhile is noticed
    from search.session import open_session
    from search.setup import load_plugins
    from search.storage import storage_errors
    from search.study import load_study

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    load_plugins(job.plugins)
    folder = job.runs / job.name
    goal = job.goal if job.left_s is None else replace(job.goal, deadline=time.monotonic() + job.left_s)
    with storage_errors(job.url):
        study, lock = load_study(job.url, job.name), StudyLock(job.url, folder)
        progress = Progress(job.goal.trials, quiet=job.quiet, epochs_csv=folder / "epochs.csv", prefix=f"[worker {index}] ")
        with progress, open_session(job.space, job.config, job.made_from, folder, job.cache, progress, study, lock) as session:
            return run_trials(study, session.runner, goal, lock), session.counters()


def _live_as_long_as(parent: dict[str, Any]) -> None:
    """End this process at once when `parent` has died: nobody would print its front or end it."""

    def watch() -> None:
        while not is_dead(parent):
            time.sleep(LOOK_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def added(counters: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Name -> sum."""
    total: dict[str, float] = {}
    for name, value in (item for each in counters for item in each.items()):
        total[name] = round(total.get(name, 0) + value, 2)
    return total


def divided(config: Config, workers: int) -> Config:
    """The configuration of one of several workers on this machine: its share of the cores, unless `hardware.threads` says otherwise."""
    threads = config.hardware.threads or max(1, joblib.cpu_count() // workers)
    return config.model_copy(update={"hardware": config.hardware.model_copy(update={"threads": threads})})
