"""A study in a real PostgreSQL: several workers, a worker elsewhere that dies, a server that goes away and comes back."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy
from optuna.storages._heartbeat import BaseHeartbeat

from core.errors import UserError
from search.lock import StudyLock
from search.owner import OWNER_KEY, current_owner
from search.storage import GRACE_S, storage_errors
from search.study import count_finished, sweep
from tests.faults.runs import argv, log_of, start
from tests.postgres import PASSWORD, Server, opened, server
from tests.search.studies import states
from tests.search.test_workers import Worker, together


@pytest.fixture(scope="module")
def postgres() -> Iterator[Server]:
    with server() as running:
        yield running


@pytest.fixture
def worker(postgres: Server, tmp_path: Path) -> Iterator[Worker]:
    one = Worker(postgres.url, tmp_path / "study")
    yield one
    one.close()


@contextmanager
def database(postgres: Server) -> Iterator[sqlalchemy.Connection]:
    engine = sqlalchemy.create_engine(postgres.url)
    with engine.begin() as connection:
        yield connection
    engine.dispose()


def test_workers_end_with_exactly_the_number(postgres: Server, tmp_path: Path) -> None:
    workers = [Worker(postgres.url, tmp_path / "exact", name, seconds=0.02) for name in range(4)]
    together([lambda worker=worker: worker.run(14) for worker in workers])
    found = workers[0].study.trials
    for worker in workers:
        worker.close()
    assert [trial.state.name for trial in found] == ["COMPLETE"] * 14
    assert len({str(trial.params) for trial in found}) == 14


@pytest.mark.slow
def test_two_machines_that_give_one_command_share_a_study_and_make_their_own_teachers(postgres: Server, tmp_path: Path) -> None:
    homes = [tmp_path / name for name in ("one", "other")]
    for home in homes:
        home.mkdir()
    runs = [start(home, *argv("--trials", "4", "--storage", postgres.url)) for home in homes]
    assert [run.wait(120) for run in runs] == [0, 0], "".join(map(log_of, homes))
    with opened(postgres) as study:
        assert states(study) == ["COMPLETE"] * 4
    assert all(len(list(home.glob("runs/.cache/teachers/*.safetensors"))) == 1 for home in homes)
    assert all(json.loads((home / "runs" / "tiny" / "run.json").read_text())["trials"] == {"COMPLETE": 4} for home in homes)


def test_the_lock_is_the_servers_and_free_when_its_holder_is_cut_off(postgres: Server, tmp_path: Path) -> None:
    first, second = (StudyLock(postgres.url, tmp_path / folder / "locked") for folder in ("here", "there"))
    entered: list[str] = []

    def enter() -> None:
        with second:
            entered.append("second")

    first.acquire()
    waiting = threading.Thread(target=enter)
    waiting.start()
    waiting.join(0.5)
    assert entered == []
    with database(postgres) as other:
        other.execute(sqlalchemy.text("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted"))
    waiting.join(10)
    assert entered == ["second"]
    for lock in (first, second):
        lock.close()


def test_a_trial_of_a_machine_that_is_silent_for_long_is_queued_again(postgres: Server, worker: Worker) -> None:
    with pytest.warns(UserWarning, match="Heartbeat"):
        trial = worker.study.ask()
    trial.set_user_attr(OWNER_KEY, current_owner() | {"host": "elsewhere"})
    temperature = trial.suggest_float("temperature", 2, 8, log=True)
    worker.study._storage.record_heartbeat(trial._trial_id)  # type: ignore[attr-defined]
    assert sweep(worker.study) == []
    assert states(worker.study) == ["RUNNING"]
    with database(postgres) as other:
        statement = "UPDATE trial_heartbeats SET heartbeat = heartbeat - :seconds * INTERVAL '1 second' WHERE trial_id = :trial"
        other.execute(sqlalchemy.text(statement), {"seconds": GRACE_S + 1, "trial": trial._trial_id})
    worker.run(1)
    assert states(worker.study) == ["FAIL", "COMPLETE"]
    assert worker.study.trials[1].params["temperature"] == temperature


def test_a_server_that_goes_away_is_named_without_its_password_and_one_that_is_back_goes_on(postgres: Server, worker: Worker) -> None:
    worker.run(2)
    postgres.stop()
    try:
        with pytest.raises(UserError, match="database must be reachable") as error, storage_errors(postgres.url):
            worker.run(4)
        assert PASSWORD not in str(error.value)
    finally:
        postgres.start()
    time.sleep(0.1)
    worker.run(4)
    assert count_finished(worker.study) == 4


def test_a_heart_that_misses_a_beat_while_the_server_is_away_goes_on_beating(postgres: Server, worker: Worker) -> None:
    with pytest.warns(UserWarning, match="Heartbeat"):
        trial, storage = worker.study.ask(), worker.study._storage
    assert isinstance(storage, BaseHeartbeat)
    storage.record_heartbeat(trial._trial_id)
    with database(postgres) as other:
        other.execute(sqlalchemy.text("UPDATE trial_heartbeats SET heartbeat = heartbeat - INTERVAL '1 hour'"))
    assert storage._get_stale_trial_ids(worker.study._study_id) == [trial._trial_id]
    postgres.stop()
    try:
        storage.record_heartbeat(trial._trial_id)
    finally:
        postgres.start()
    storage.record_heartbeat(trial._trial_id)
    assert storage._get_stale_trial_ids(worker.study._study_id) == []
