"""The loop of every worker: takes trials until the study has its number, counted over all workers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import optuna
from optuna.exceptions import UpdateFinishedTrialError

from core.errors import Disturbed, TrialError, UserError
from results.record import read_records
from search.baselines import enqueue_allocated, something_waits
from search.goal import Goal, volumes_of
from search.lock import StudyLock
from search.samplers import make_sampler
from search.study import DEATHS, count_begun, is_requeued, requeue_interrupted, sweep, tally

if TYPE_CHECKING:
    from search.trial import TrialRunner

FAILURES_IN_A_ROW = 10
LOOK_S = 0.5
"""How often a worker that has nothing left to take looks whether another one's trial has failed or its owner died."""


def run_trials(study: optuna.Study, runner: TrialRunner, goal: Goal, lock: StudyLock) -> str | None:
    """Ask and tell until the study holds `goal.trials` complete or pruned trials, or there is a reason to end before: the reason.

    Raises UserError after ten failures in a row. `runner` must let go of `lock` once it has signed its trial.
    """
    failures, drawing = 0, False
    while (reason := goal.over(time.monotonic(), volumes_of(runner.records))) is None and take(study, runner, goal.trials, lock):
        start = time.perf_counter()
        try:
            if (reason := goal.over(time.monotonic(), ())) is not None:  # the hours, if it waited for another worker's last trial
                return reason
            start += runner.first(study)
            enqueue_allocated(study)
            if not drawing:  # under the lock: no two workers find the same number begun, so no two draw the same candidates
                sampler, drawing = make_sampler(goal.sampler, goal.seed, count_begun(study), goal.trials), True
                study.sampler = sampler
            if sampler.exhausted(study) and not something_waits(study):
                return "every combination of the space has been tried (--sampler grid)"
            study.optimize(runner, n_trials=1, catch=(TrialError,))
        except (KeyboardInterrupt, Disturbed, OSError):  # none of them the candidate's fault
            requeue_interrupted(study, runner.newest)
            raise
        except (UpdateFinishedTrialError, ValueError):  # ValueError: how Optuna refuses to tell a finished trial
            if runner.newest is None or not is_requeued(study, runner.newest):
                raise
            runner.progress.message(f"trial {runner.newest}: another worker took this one for dead and has queued it again")
            continue
        finally:
            lock.release()
            runner.release()
            runner.loop_seconds += time.perf_counter() - start
            runner.sampler_seconds = sampler.seconds if drawing else 0.0
        last = runner.records[-1]
        failures = failures + 1 if last.state == "FAIL" else 0
        if failures == FAILURES_IN_A_ROW:
            raise UserError(
                f"{failures} trials in a row failed, the last because: {last.reason}; mend the cause and run the same command again"
            )
    return reason


def take(study: optuna.Study, runner: TrialRunner, wanted: int, lock: StudyLock) -> bool:
    """Wait until one more trial is wanted; True with `lock` held, False when the study has its number."""
    waiting = False
    while True:
        lock.acquire()
        start = time.perf_counter()
        swept = sweep(study, lock.one_machine, idle=runner.owner)
        finished, taken = tally(study)
        runner.loop_seconds += time.perf_counter() - start
        if taken < wanted:
            runner.progress.done = finished
            _tell(study, runner, swept)
            return True
        lock.release()
        _tell(study, runner, swept)
        if finished >= wanted:
            return False
        if not waiting:
            runner.progress.message("waiting: other workers run the last trials")
        waiting = True
        time.sleep(LOOK_S)


def _tell(study: optuna.Study, runner: TrialRunner, swept: list[int]) -> None:
    if swept:
        runner.progress.message(queued_again(study, swept))


def queued_again(study: optuna.Study, numbers: list[int]) -> str:
    """The line about trials whose worker has died."""
    given_up = {record.number for record in read_records(study)}.intersection(numbers)
    again = [number for number in numbers if number not in given_up]
    parts = [f"queued again, their run has died: trials {', '.join(map(str, again))}"] if again else []
    parts += [f"given up, their run has died {DEATHS} times: trials {', '.join(map(str, sorted(given_up)))}"] if given_up else []
    return "; ".join(parts)
