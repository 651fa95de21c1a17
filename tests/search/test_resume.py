"""Nothing finished is lost: interrupts, kills, other spaces, other images, --fresh."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest

from core.agent import AgentServer, Limits, Measurer
from core.agent_client import TOKEN_VARIABLE
from core.errors import Disturbed
from core.losses import DISTIL_LOSSES, kd_loss
from search.owner import OWNER_KEY, current_owner
from search.study import requeue, sweep
from tests.search.studies import DOT, ONE_NETWORK, ROOT, begun, command, load, refused, search, states

Capture = pytest.CaptureFixture[str]
TOO_SMALL = ["--max-size-kb", "0.001"]


def run_until(marker: str, number: signal.Signals, *argv: str) -> tuple[int, str]:
    """Start the command, send the signal to its process group when a line holds `marker`; exit code and stdout."""
    process = subprocess.Popen(
        [sys.executable, "-m", "search.run", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if marker in line:
            os.killpg(process.pid, number)
            break
    rest, _ = process.communicate(timeout=60)
    return process.returncode, "".join(lines) + rest


@pytest.mark.slow
def test_an_interrupted_and_then_a_killed_trial_are_run_again_and_nothing_finished_is_lost(again: Path, capfd: Capture) -> None:
    before = [trial.values for trial in load().trials[:2]]

    code, out = run_until("trial 2 (3 of 3) engine", signal.SIGINT, *command("--trials", "3"))
    assert code == 130
    assert "rank  trial  accuracy %" in out
    assert out.splitlines()[-1].startswith("interrupted: what is finished is kept")
    assert states(load()) == ["COMPLETE", "COMPLETE", "FAIL", "WAITING"]
    wanted = load().trials[2].params
    assert load().trials[3].system_attrs["fixed_params"] == wanted

    code, _ = run_until("trial 3 (3 of 3) engine", signal.SIGKILL, *command("--trials", "3"))
    assert code == -signal.SIGKILL
    assert states(load()) == ["COMPLETE", "COMPLETE", "FAIL", "RUNNING"]

    answer = search(capfd, *command("--trials", "3"))
    assert answer.code == 0
    assert answer.out.startswith("queued again, their run has died: trials 3\n")
    assert states(load()) == ["COMPLETE", "COMPLETE", "FAIL", "FAIL", "COMPLETE"]
    assert load().trials[4].params == wanted
    assert [trial.values for trial in load().trials[:2]] == before


@pytest.fixture
def register_loss(monkeypatch: pytest.MonkeyPatch):
    """Adds an entry to DISTIL_LOSSES for one test."""
    return lambda name, fn: monkeypatch.setitem(DISTIL_LOSSES, name, fn)


@pytest.mark.usefixtures("dot")
@pytest.mark.slow
def test_kill_ends_a_run_as_ctrl_c_does_and_the_next_start_goes_on(empty: Path, capfd: Capture, register_loss: Any) -> None:
    signals = [signal.SIGTERM]

    def loss(student: Any, teacher: Any, labels: Any, plan: Any) -> Any:
        while signals:
            signal.raise_signal(signals.pop())
        return kd_loss(student, teacher, plan.temperature)

    register_loss("killing", loss)
    argv = command("--trials", "1", study="killed", settings=[*ONE_NETWORK, "distil.loss=killing"])
    before = signal.getsignal(signal.SIGTERM)
    answer = search(capfd, *argv)
    assert answer.code == 130
    assert answer.err == ""
    assert states(load("killed")) == ["FAIL", "WAITING"]
    assert signal.getsignal(signal.SIGTERM) is before

    assert search(capfd, *argv).code == 0
    assert states(load("killed")) == ["FAIL", "COMPLETE"]


@pytest.mark.usefixtures("dot")
@pytest.mark.slow
def test_a_trial_around_which_something_fails_is_queued_again(empty: Path, capfd: Capture, register_loss: Any) -> None:
    failures = ["the processes that decode images must live, but one was killed; set data.workers lower, 0 for none"]

    def loss(student: Any, teacher: Any, labels: Any, plan: Any) -> Any:
        if failures:
            raise Disturbed(failures.pop())
        return kd_loss(student, teacher, plan.temperature)

    register_loss("disturbed", loss)
    argv = command("--trials", "1", study="disturbed", settings=[*ONE_NETWORK, "distil.loss=disturbed"])
    assert "set data.workers lower" in refused(search(capfd, *argv))
    assert states(load("disturbed")) == ["FAIL", "WAITING"]
    answer = search(capfd, *command("--trials", "1", study="disturbed", settings=[*ONE_NETWORK, "distil.loss=disturbed", "data.workers=0"]))
    assert answer.code == 0, answer
    assert states(load("disturbed")) == ["FAIL", "COMPLETE"]


@contextmanager
def agent(port: int, folder: Path) -> Iterator[AgentServer]:
    """An agent of this process, here or on the port that it had before."""
    measurer = Measurer(Limits(10_000_000, 60.0), folder)
    served = AgentServer(("127.0.0.1", port), "token", measurer)
    thread = threading.Thread(target=served.serve_forever)
    thread.start()
    try:
        yield served
    finally:
        served.shutdown()
        served.server_close()
        thread.join()
        measurer.close()


@pytest.mark.usefixtures("dot")
@pytest.mark.slow
def test_a_candidate_is_not_to_blame_for_an_agent_that_stays_away(
    empty: Path, capfd: Capture, register_loss: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "token")
    with ExitStack() as running:
        server = running.enter_context(agent(0, empty / "agent"))
        port = server.server_port

        def loss(student: Any, teacher: Any, labels: Any, plan: Any) -> Any:
            running.close()
            return kd_loss(student, teacher, plan.temperature)

        register_loss("lonely", loss)
        settings = [*ONE_NETWORK, "distil.loss=lonely", "runtime.name=onnxruntime", f"runtime.agent=http://127.0.0.1:{port}"]
        answer = search(capfd, *command("--trials", "1", study="away", settings=settings))
    law = f"error: runtime.agent must be the address of a running core.agent, but http://127.0.0.1:{port} is not: "
    assert answer.code == 2
    assert answer.err.splitlines()[-1].startswith(law)  # before it stand the lines of the agent, which is this process too
    assert states(load("away")) == ["FAIL", "WAITING"]
    with agent(port, empty / "agent"):
        answer = search(capfd, *command("--trials", "1", study="away", settings=settings))
    assert answer.code == 0, answer
    assert states(load("away")) == ["FAIL", "COMPLETE"]


def test_an_interrupt_before_the_first_trial_shows_the_front_of_earlier_runs(
    again: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core.data import DATASETS

    def interrupted(*args: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setitem(DATASETS, "digits", interrupted)
    answer = search(capfd, *command("--trials", "3"))
    assert answer.code == 130
    assert "rank  trial  accuracy %" in answer.out
    assert begun(load()) == ["COMPLETE", "COMPLETE"]


def memory_study() -> optuna.Study:
    return optuna.create_study(storage=optuna.storages.InMemoryStorage())


def test_a_sweep_takes_trials_of_dead_owners_alone() -> None:
    study = memory_study()
    for owner in (current_owner() | {"start": 0.0}, current_owner(), current_owner() | {"host": "elsewhere", "start": 0.0}):
        trial = study.ask()
        trial.set_user_attr(OWNER_KEY, owner)
        trial.suggest_float("x", 0, 1)
    assert sweep(study) == [0]
    assert states(study) == ["FAIL", "RUNNING", "RUNNING", "WAITING"]
    assert sweep(study) == []


def test_a_queued_trial_that_was_cut_off_early_keeps_all_its_parameters() -> None:
    study = memory_study()
    study.enqueue_trial({"x": 0.25, "y": 0.75})
    study.ask().suggest_float("x", 0, 1)
    requeue(study, study.trials[0])
    trial = study.ask()
    assert (trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)) == (0.25, 0.75)


def test_a_changed_space_is_refused_with_its_keys_and_both_ways_out(again: Path, capfd: Capture) -> None:
    message = refused(search(capfd, *command("--trials", "3", settings=["distil.loss=dkd", "finetune.lr=0.5"])))
    assert "'tiny' differs in config.finetune.lr, space.distil.loss;" in message
    assert "use another --study NAME, or --fresh to delete this one and begin anew" in message
    assert begun(load()) == ["COMPLETE", "COMPLETE"]


@pytest.mark.usefixtures("dot")
def test_a_study_that_never_began_a_trial_takes_another_space(empty: Path, capfd: Capture) -> None:
    Path("none").mkdir()
    refused(search(capfd, *command("--trials", "1", "--data-dir", "none")))
    answer = search(capfd, *command("--trials", "1", *TOO_SMALL, settings=DOT))
    assert answer.code == 0, answer.err


@pytest.mark.usefixtures("dot")
def test_fresh_deletes_its_own_study_and_what_runs_made_and_nothing_else(again: Path, capfd: Capture) -> None:
    optuna.create_study(study_name="other", storage="sqlite:///runs/tiny/study.db")
    Path("runs/tiny/notes.txt").write_text("mine")
    assert search(capfd, *command("--trials", "1", "--fresh", *TOO_SMALL, settings=DOT)).code == 0
    assert begun(load()) == ["PRUNED"]
    assert optuna.get_all_study_names("sqlite:///runs/tiny/study.db") == ["other", "tiny"]
    assert Path("runs/tiny/notes.txt").read_text() == "mine"
    assert list(Path("runs/tiny").glob("candidates/*/*")) == []


def test_fresh_deletes_nothing_for_a_run_that_cannot_begin(again: Path, capfd: Capture) -> None:
    Path("none").mkdir()
    refused(search(capfd, *command("--trials", "1", "--fresh", "--data-dir", "none")))
    assert begun(load()) == ["COMPLETE", "COMPLETE"]
    assert Path("runs/tiny/front.csv").exists()


def test_fresh_leaves_a_study_that_is_running(again: Path, capfd: Capture) -> None:
    load().ask().set_user_attr(OWNER_KEY, current_owner())
    message = refused(search(capfd, *command("--trials", "1", "--fresh")))
    assert message == "--fresh needs a study at rest, but another process is running trial 2 of 'tiny'; stop that one first"
    assert begun(load()) == ["COMPLETE", "COMPLETE", "RUNNING"]


def test_measurements_of_another_device_are_not_mixed_in(again: Path, capfd: Capture) -> None:
    study = load()
    study.set_user_attr("inputs", study.user_attrs["inputs"] | {"device or runtime": "0123456789ab"})
    message = refused(search(capfd, *command("--trials", "3")))
    assert message.startswith("a study keeps the device or runtime that it began with, but 'tiny' began with 0123456789ab and this is ")
