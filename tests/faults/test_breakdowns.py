"""Real runs whose surroundings break: stopped, starved of memory, their database or their clock gone astray."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from core.files import write_atomically
from results.epochs import read_epochs
from search.study import REQUEUED_KEY, count_finished, count_running
from search.workers import DEATHS
from tests.faults.kills import finished
from tests.faults.runs import alive, argv, family, log_of, start, wait_until, workers_of
from tests.postgres import PASSWORD, opened, server
from tests.search.studies import load, states

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]
NEVER, STOP_S, DAY_S = "100000", 10.0, 86_400
KILLER = str(Path(__file__).with_name("killer_plugin.py"))


def begun(folder: Path, times: int = 1) -> bool:
    """Whether that many trials have come to their training."""
    return log_of(folder).count(") distil") >= times


def the_error(folder: Path) -> str:
    """The one line that a run has ended with; Python's own warning about semaphores of killed workers may follow it."""
    assert "Traceback" not in log_of(folder), log_of(folder)[-300:]
    errors = [line.removeprefix("error: ") for line in log_of(folder).splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, errors
    return errors[0]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_kill_stops_a_run_cleanly_within_ten_seconds(workers: str, tmp_path: Path) -> None:
    run = start(tmp_path, *argv("--trials", NEVER, "--workers", workers))
    wait_until(lambda: begun(tmp_path))
    everybody = family(run)
    asked = time.monotonic()
    os.kill(run.pid, signal.SIGTERM)
    assert run.wait(60) == 130, log_of(tmp_path)[-2000:]
    wait_until(lambda: not alive(everybody), 5)
    assert time.monotonic() - asked < STOP_S
    assert "Traceback" not in log_of(tmp_path)
    assert "interrupted: what is finished is kept" in log_of(tmp_path)
    assert count_running(load(folder=tmp_path / "runs" / "tiny")) == 0


def test_two_studies_make_one_teacher_and_a_maker_that_is_killed_is_replaced(tmp_path: Path) -> None:
    long = ["--set", "teacher.train.epochs=300", "--set", "teacher.name=dot"]
    first = start(tmp_path, *argv("--trials", "1", *long, study="first"))
    wait_until(lambda: "teacher: epoch 1/300" in log_of(tmp_path))
    first.send_signal(signal.SIGSTOP)  # or it may be done before the second comes
    second = start(tmp_path, *argv("--trials", "1", *long, study="second"))
    wait_until(lambda: "another process is making" in log_of(tmp_path))
    first.kill()
    first.wait()
    wait_until(lambda: log_of(tmp_path).count("teacher: epoch 1/300") == 2)
    third = start(tmp_path, *argv("--trials", "1", *long, study="third"))
    assert [second.wait(300), third.wait(300)] == [0, 0], log_of(tmp_path)[-2000:]
    trained = {study: max((row.epoch for row in read_epochs(tmp_path / "runs" / study / "epochs.csv") if row.trial is None), default=0)
               for study in ("second", "third")}  # fmt: skip
    assert trained == {"second": 300, "third": 0}
    assert len(list((tmp_path / "runs" / ".cache" / "teachers").glob("*.safetensors"))) == 1


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file with the seconds by which the clock of processes started from here on is wrong."""
    library, offset = tmp_path / "clock.so", tmp_path / "offset"
    source = Path(__file__).with_name("clock.c")
    try:
        subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no C compiler ({error})")
    offset.write_text("0")
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("CLOCK_OFFSET", str(offset))
    return offset


def test_a_clock_that_jumps_ends_no_study_and_repeats_no_trial(clock: Path, tmp_path: Path) -> None:
    run = start(tmp_path, *argv("--trials", "6", "--workers", "2", "--max-hours", "1"))
    for number, jump in enumerate((DAY_S, -DAY_S, 0), 1):
        wait_until(lambda wanted=number: begun(tmp_path, wanted) or run.poll() is not None)
        write_atomically(clock, str(jump))
    assert run.wait(300) == 0, log_of(tmp_path)[-2000:]
    study = load(folder=tmp_path / "runs" / "tiny")
    assert states(study) == ["COMPLETE"] * 6
    days = {trial.datetime_start.date() for trial in study.trials} | {trial.datetime_complete.date() for trial in study.trials}  # type: ignore[union-attr]
    assert len(days) > 1, "the clock did jump"
    assert not any(REQUEUED_KEY in trial.user_attrs for trial in study.trials)


def hungry(tmp_path: Path, deaths: int, monkeypatch: pytest.MonkeyPatch) -> subprocess.Popen[bytes]:
    """A run with two workers of which `deaths` are killed in training."""
    (tmp_path / "deaths").write_text(str(deaths))
    monkeypatch.setenv("DEATHS_LEFT", str(tmp_path / "deaths"))
    more = ["--plugin", KILLER, "--set", "student.name=hungry", "--set", "distil.init=scratch"]
    plain = argv("--trials", "3", "--workers", "2")
    at = plain.index("--plugin")
    return start(tmp_path, *plain[:at], *plain[at + 2 :], *more)


def test_a_worker_that_runs_out_of_memory_is_replaced_and_its_trial_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hungry(tmp_path, 1, monkeypatch).wait(300) == 0, log_of(tmp_path)[-2000:]
    assert "a worker was killed: all of them start again, and nothing that is finished is lost" in log_of(tmp_path)
    study = load(folder=tmp_path / "runs" / "tiny")
    assert count_finished(study) == 3
    assert count_running(study) == 0
    assert any(REQUEUED_KEY in trial.user_attrs for trial in study.trials)


def test_workers_that_always_run_out_of_memory_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hungry(tmp_path, 1000, monkeypatch).wait(300) == 2, log_of(tmp_path)[-2000:]
    assert the_error(tmp_path).startswith(f"workers must live to finish a trial, but {DEATHS} times in a row")
    assert count_running(load(folder=tmp_path / "runs" / "tiny")) == 0


def test_a_database_that_goes_away_under_two_workers_is_one_line_and_the_study_goes_on_when_it_is_back(tmp_path: Path) -> None:
    with server() as postgres:
        plain = ("--workers", "2", "--storage", postgres.url)
        run = start(tmp_path, *argv("--trials", NEVER, *plain))
        wait_until(lambda: " complete: " in log_of(tmp_path) and begun(tmp_path, 2))
        everybody = family(run)
        postgres.stop()
        assert run.wait(120) == 2, log_of(tmp_path)[-2000:]
        wait_until(lambda: not alive(everybody), 30)
        assert the_error(tmp_path).startswith("the study's database must be reachable and writable, but postgresql://")
        postgres.start()
        with opened(postgres) as study:
            before = count_finished(study)
        assert start(tmp_path, *argv("--trials", str(before + 2), *plain)).wait(300) == 0, log_of(tmp_path)[-2000:]
        with opened(postgres) as study:
            assert (count_finished(study), count_running(study)) == (before + 2, 0)
            told = [study.user_attrs, *({**trial.user_attrs, **trial.system_attrs} for trial in study.trials)]
        assert PASSWORD not in str(told), "the dashboard shows these"
    assert PASSWORD not in log_of(tmp_path)
    holding = [path for path in tmp_path.rglob("*") if path.is_file() and PASSWORD.encode() in path.read_bytes()]
    assert holding == []


def test_a_killed_run_goes_on_in_another_place_with_all_that_was_finished(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "elsewhere" / "new"
    old.mkdir()
    run = start(old, *argv("--trials", NEVER, "--workers", "2"))
    wait_until(lambda: log_of(old).count(" complete: ") >= 2 and begun(old, 3))
    everybody = [psutil.Process(run.pid), *workers_of(family(run))]
    for each in everybody:
        each.kill()
    run.wait()
    before = finished(old)
    new.parent.mkdir()
    old.rename(new)
    assert start(new, *argv("--trials", str(len(before) + 2))).wait(300) == 0, log_of(new)[-2000:]
    assert {number: finished(new)[number] for number in before} == before
    assert count_finished(load(folder=new / "runs" / "tiny")) == len(before) + 2
    assert start(new, "--study", "tiny", "--repair", module="search.doctor").wait(60) == 0, log_of(new)[-2000:]
