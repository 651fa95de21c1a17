"""Several workers of one study: its number is exact, nothing is done twice, the dead are replaced."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from benchmarks.scaling import SPACE, Untrained
from core.config import ViewsConfig
from core.errors import UserError
from results.record import read_records
from search.cluster import Placement
from search.goal import Goal
from search.lock import StudyLock
from search.loop import run_trials
from search.owner import OWNER_KEY, current_owner, is_dead
from search.progress import Progress
from search.space import load_space
from search.storage import check_workers, open_storage
from search.study import METRICS, count_finished, open_study, requeue, requeue_stale, sweep
from search.workers import added
from tests.faults.runs import QUICK, argv, log_of
from tests.faults.runs import start as begin
from tests.search.studies import command, load, refused, search, states

GONE = current_owner() | {"start": 0}


class Worker:
    """One worker of the study in `folder`, with a connection, a lock and an identity of its own."""

    def __init__(self, url: str, folder: Path, name: int = 0, seconds: float = 0.0, settings: Sequence[str] = ()) -> None:
        self.lock = StudyLock(url, folder)
        with self.lock:
            self.study = open_study(url, folder.name, "digest", {}, folder)
        owner = current_owner() | {"worker": name}
        self.runner = Untrained(load_space(SPACE, settings), self.lock.release, Progress(0, quiet=True), seconds=seconds, owner=owner)

    def close(self) -> None:
        self.lock.close()
        self.study._storage.remove_session()
        self.study._storage._backend.engine.dispose()  # type: ignore[attr-defined]

    def run(self, trials: int, sampler: str = "random") -> None:
        try:
            self.end = run_trials(self.study, self.runner, Goal(trials, sampler=sampler), self.lock)
        finally:
            self.study._storage.remove_session()  # this thread's


def together(calls: list[Callable[[], None]]) -> None:
    """All at once, in threads."""
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)


@pytest.fixture
def study_folder(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "many"


def url_in(folder: Path) -> str:
    return f"sqlite:///{folder}/study.db"


def test_three_workers_end_with_exactly_the_number_and_none_draws_what_another_drew(study_folder: Path) -> None:
    workers = [Worker(url_in(study_folder), study_folder, name, seconds=0.02) for name in range(3)]
    together([lambda worker=worker: worker.run(13) for worker in workers])
    study = workers[0].study
    assert states(study) == ["COMPLETE"] * 13
    assert len({str(trial.params) for trial in study.trials}) == 13
    assert sum(worker.runner.count for worker in workers) == 13
    assert len({trial.user_attrs[OWNER_KEY]["worker"] for trial in study.trials}) > 1


FOUR = ["student.name=resnet8", "student.width=[0.5, 1.0]", "distil.temperature=4", "distil.weight=[0.5, 0.9]", "prune.ratio=0"]
FOUR += ["quantise.weight_bits=4", "quantise.execution=int8"]
"""Settings that leave four combinations."""


def test_a_grid_has_every_combination_once_and_ends_the_study_whatever_the_number_asked(study_folder: Path) -> None:
    workers = [Worker(url_in(study_folder), study_folder, name, settings=FOUR) for name in range(2)]
    workers[0].study.enqueue_trial({"width": 1.0, "weight": 0.9})  # a combination that was asked for before counts as tried
    workers[0].run(3, "grid")
    assert workers[0].end is None
    workers[1].run(50, "grid")  # a study that continues
    assert workers[1].end == "every combination of the space has been tried (--sampler grid)"
    workers[0].run(50, "grid")  # the same command again
    assert workers[0].end == workers[1].end
    assert sorted((trial.params["width"], trial.params["weight"]) for trial in workers[0].study.trials) == [
        *((0.5, 0.5), (0.5, 0.9), (1.0, 0.5), (1.0, 0.9))
    ]


def test_a_grid_goes_on_after_a_trial_that_died_while_it_asked(study_folder: Path) -> None:
    worker = Worker(url_in(study_folder), study_folder, settings=FOUR)
    worker.run(1, "grid")
    with worker.lock:
        worker.study.ask().set_user_attr(OWNER_KEY, GONE)  # before its first parameter
        half = worker.study.ask()
        half.set_user_attr(OWNER_KEY, GONE)
    half.suggest_categorical("width", [0.5, 1.0])
    worker.run(50, "grid")
    assert worker.end == "every combination of the space has been tried (--sampler grid)"
    done = [trial for trial in worker.study.trials if trial.state.name == "COMPLETE"]
    assert len({(trial.params["width"], trial.params["weight"]) for trial in done}) == 4


def test_a_worker_takes_up_the_trial_of_a_dead_one_with_its_parameters(study_folder: Path) -> None:
    worker = Worker(url_in(study_folder), study_folder)
    with worker.lock:
        trial = worker.study.ask()
        trial.set_user_attr(OWNER_KEY, GONE)
    trial.suggest_float("temperature", 2, 8, log=True)
    worker.run(1)
    assert states(worker.study) == ["FAIL", "COMPLETE"]
    assert worker.study.trials[1].params["temperature"] == trial.params["temperature"]


def dying(worker: Worker, owner: dict[str, Any]) -> None:
    """A process takes a trial and dies at it."""
    with worker.lock:
        sweep(worker.study, worker.lock.one_machine)
        trial = worker.study.ask()
        trial.set_user_attr(OWNER_KEY, owner)
    trial.suggest_float("temperature", 2, 8, log=True)
    worker.study.user_attrs  # noqa: B018 (any access writes the parameters)


def test_a_candidate_at_which_three_processes_died_is_given_up_and_the_study_goes_on(study_folder: Path) -> None:
    worker, said = Worker(url_in(study_folder), study_folder), []
    worker.runner.progress.message = said.append  # type: ignore[method-assign]
    worker.study.enqueue_trial({"temperature": 3.0})
    for owner in (GONE, GONE, GONE | {"boot": "another"}):  # a machine that was switched off is no fault of the candidate
        dying(worker, owner)
    requeue(worker.study, worker.study.trials[-1])  # nor is Ctrl-C
    worker.study.tell(2, state=optuna.trial.TrialState.FAIL)
    dying(worker, GONE)
    worker.run(1)
    assert states(worker.study) == ["FAIL"] * 4 + ["COMPLETE"]
    assert {trial.params["temperature"] for trial in worker.study.trials[:4]} == {3.0}
    record = next(record for record in read_records(worker.study) if record.state == "FAIL")
    assert (record.number, record.reason) == (3, "its process died 3 times (out of memory, perhaps)")
    assert said == ["given up, their run has died 3 times: trials 3"]


def test_a_worker_elsewhere_that_falls_silent_a_third_time_gives_its_trial_up() -> None:
    study = optuna.create_study()
    study.enqueue_trial({"x": 0.5})
    for number in range(3):
        study.ask().suggest_float("x", 0, 1)
        study.tell(number, state=optuna.trial.TrialState.FAIL)
        requeue_stale(study, study.trials[number])
    assert states(study) == ["FAIL"] * 4
    assert [(record.number, record.reason) for record in read_records(study)] == [(3, "its process died 3 times (out of memory, perhaps)")]


def test_a_trial_that_is_cut_off_before_it_was_signed_is_taken_for_dead(study_folder: Path) -> None:
    worker = Worker(url_in(study_folder), study_folder)
    worker.study.ask()
    worker.run(1)
    assert states(worker.study) == ["FAIL", "COMPLETE"]


def test_a_worker_whose_trial_was_given_away_says_so_and_goes_on(study_folder: Path) -> None:
    worker, said = Worker(url_in(study_folder), study_folder), []
    worker.runner.progress.message = said.append  # type: ignore[method-assign]
    left = [0]

    def given_away() -> None:
        worker.lock.release()
        if left and left.pop() == 0:
            other = Worker(url_in(study_folder), study_folder, name=1)
            requeue(other.study, other.study.trials[0])
            other.study.tell(0, state=optuna.trial.TrialState.FAIL)

    worker.study.enqueue_trial({"temperature": 3.0})
    worker.runner.begun = given_away
    worker.run(1)
    assert states(worker.study) == ["FAIL", "COMPLETE"]
    assert said == ["trial 0: another worker took this one for dead and has queued it again"]


def test_a_sweep_queues_a_dead_trial_once_whoever_sweeps_and_however_often() -> None:
    study = optuna.create_study()
    study.ask().suggest_float("x", 0, 1)
    requeue(study, study.trials[0])  # of a process that died right here
    assert sweep(study) == [0]
    assert states(study) == ["FAIL", "WAITING"]


def test_a_study_in_sqlite_that_comes_from_another_machine_has_no_living_owners() -> None:
    elsewhere = current_owner() | {"host": "elsewhere"}
    assert not is_dead(elsewhere)
    assert is_dead(elsewhere, one_machine=True)


def test_a_rebooted_machine_has_no_living_owners_and_a_changed_clock_kills_none() -> None:
    assert is_dead(current_owner() | {"boot": "another"})
    assert not is_dead(current_owner())


def test_a_clock_that_somebody_sets_ends_no_study(study_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, now = Worker(url_in(study_folder), study_folder), time.time
    goal = Goal(4, sampler="random", hours=1.0, deadline=time.monotonic() + 3600)
    for day in (1, -1):
        monkeypatch.setattr(time, "time", lambda days=day: now() + days * 86_400)
        assert run_trials(worker.study, worker.runner, replace(goal, trials=3 + day), worker.lock) is None
    assert states(worker.study) == ["COMPLETE"] * 4
    past = replace(goal, trials=9, deadline=time.monotonic())
    assert run_trials(worker.study, worker.runner, past, worker.lock) == "ended early: --max-hours 1 are over"


def test_the_lock_is_one_workers_at_a_time(study_folder: Path) -> None:
    first, second = (StudyLock(url_in(study_folder), study_folder) for _ in range(2))
    entered: list[str] = []

    def enter() -> None:
        with second:
            entered.append("second")

    with first:
        waiting = threading.Thread(target=enter)
        waiting.start()
        waiting.join(0.3)
        assert entered == []
    waiting.join(10)
    assert entered == ["second"]


@pytest.mark.parametrize(
    ("flags", "law"),
    [
        (["--workers", "5"], "SQLite takes at most 4 workers, but --workers is 5; give --storage postgresql://"),
        (["--workers", "0"], "--workers must be at least 1"),
        (["--cluster", "rai"], "unknown cluster 'rai', did you mean 'ray'?"),
        (["--cluster", "ray://head:10001", "--workers", "2"], "a cluster elsewhere must reach the study's database, but SQLite is a file"),
        (["--gpus-per-worker", "1"], "--gpus-per-worker is Ray's, but --cluster is not given"),
    ],
)
def test_workers_that_cannot_be_started(flags: list[str], law: str, empty: Path, capfd: Any) -> None:
    assert law in refused(search(capfd, *command(*flags)))
    assert not Path("runs").exists()


def test_another_database_takes_any_number() -> None:
    check_workers("postgresql://host/db", 64)
    check_workers("postgresql://host/db", 64, elsewhere=True)
    check_workers("sqlite:///study.db", 4)
    with pytest.raises(UserError, match="at most 4"):
        check_workers("sqlite:///study.db", 5)


def test_one_worker_here_is_this_process() -> None:
    assert Placement().alone
    assert not Placement(workers=2).alone
    assert not Placement(cluster="dask").alone


@pytest.mark.parametrize(
    ("cluster", "elsewhere"),
    [(None, False), ("ray", False), ("dask://localhost:8786", False), ("ray://127.0.0.1:10001", False), ("ray://head:10001", True)],
)
def test_a_cluster_is_elsewhere_unless_it_is_this_machines(cluster: str | None, elsewhere: bool) -> None:
    assert Placement(cluster=cluster).elsewhere is elsewhere


def test_a_study_has_its_metrics_whoever_opens_it(study_folder: Path) -> None:
    worker = Worker(url_in(study_folder), study_folder)
    assert tuple(worker.study.metric_names or ()) == METRICS
    assert count_finished(worker.study) == 0
    assert open_storage(url_in(study_folder)).get_heartbeat_interval() is None


def told(name: str) -> dict[str, Any]:
    """run.json of a study below the working directory."""
    account: dict[str, Any] = json.loads((Path("runs") / name / "run.json").read_text())
    return account


@pytest.mark.slow
def test_what_every_worker_counted_is_in_the_account_and_a_trial_asks_no_teacher_twice(empty: Path, dot: None, capfd: Any) -> None:
    run = begin(empty, *argv("--trials", "2", "--workers", "2"))
    assert run.wait(300) == 0, log_of(empty)[-2000:]
    cold = told("tiny")
    assert 0 < cold["teacher_forward_images"] <= ViewsConfig().number * cold["data"]["train"]
    assert cold["starts"][0]["teacher_forward_images"] == sum(record.teacher_forward_images for record in read_records(load()))
    assert cold["account"]["seconds"]["sampler"] + cold["account"]["seconds"]["storage"] > 0
    assert search(capfd, *command("--trials", "1", study="warm", settings=QUICK)).code == 0
    assert told("warm")["teacher_forward_images"] == 0
    assert [record.teacher_forward_images for record in read_records(load("warm"))] == [0]


def test_counters_add_up_whoever_counted() -> None:
    assert added([{"images": 0, "seconds": 0.1}, {}, {"images": 96, "seconds": 0.2}]) == {"images": 96, "seconds": 0.3}
