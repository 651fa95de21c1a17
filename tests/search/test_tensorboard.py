"""TensorBoard over the lines of epochs.csv: written, read back, and served by the real server."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from results.epochs import Epoch, append_epoch
from search import tensorboard
from tests.search.studies import ROOT, Answer, _answer, refused

Capture = pytest.CaptureFixture[str]
RUN = Path("runs/made")
EPOCHS = (
    Epoch(None, "teacher", 1.0, 1.5, 500.0, 2.0),
    Epoch(None, "teacher", 1.5, 1.5, 500.0, 1.5),
    Epoch(3, "distil", 1.0, 2.0, 400.0, 1.0, 0.1, 0.5),
    Epoch(3, "distil", 2.0, 2.0, 410.0, 0.9, 0.01, 0.6),
    Epoch(12, "quantise", 1.0, 1.0, 300.0, 0.8, 0.01, 0.55),
)


@pytest.fixture
def recorded(empty: Path) -> Path:
    """runs/made/ with epochs of a teacher and of two trials."""
    for epoch in EPOCHS:
        append_epoch(RUN / "epochs.csv", epoch)
    (RUN / "run.json").write_text("{}")
    return RUN / "tensorboard"


def told(capfd: Capture, *argv: str) -> Answer:
    return _answer(capfd, tensorboard.main, argv)


def scalars(folder: Path) -> dict[tuple[str, str, int], float]:
    """(run, tag, step) -> value, as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    events = EventMultiplexer().AddRunsFromDirectory(str(folder))
    events.Reload()
    tags = [(run, tag) for run, kinds in events.Runs().items() for tag in kinds["scalars"]]
    return {(run, tag, event.step): event.value for run, tag in tags for event in events.Scalars(run, tag)}


def expected(epochs: tuple[Epoch, ...]) -> dict[tuple[str, str, int], float]:
    runs = {None: "teacher", 3: "trial-0003", 12: "trial-0012"}
    each = [(epoch, name, getattr(epoch, name)) for epoch in epochs for name in ("loss", "accuracy", "lr", "images_per_s")]
    return {
        (runs[epoch.trial], f"{epoch.stage}/{name}", -int(-epoch.epoch // 1)): value for epoch, name, value in each if value is not None
    }


def test_every_number_of_the_csv_is_a_scalar_however_often_it_is_written(recorded: Path, capfd: Capture) -> None:
    for _ in range(2):
        assert told(capfd, "--write-only").out == "written: runs/made/tensorboard (5 epochs)\n"
        assert scalars(recorded) == pytest.approx(expected(EPOCHS))


def test_epochs_that_come_later_are_added(recorded: Path, capfd: Capture) -> None:
    assert told(capfd, "--write-only").code == 0
    late = Epoch(12, "quantise", 2.0, 2.0, 300.0, 0.7, 0.001, 0.65)
    tensorboard.write_events(recorded, [late])
    assert scalars(recorded) == pytest.approx(expected((*EPOCHS, late)))


@pytest.mark.slow
def test_the_server_answers_with_the_trials_and_follows_the_run(recorded: Path) -> None:
    argv, environment = [sys.executable, "-m", "search.tensorboard", "--port", "0"], os.environ | {"PYTHONPATH": str(ROOT)}
    with Path("log").open("w") as log, subprocess.Popen(argv, stdout=log, stderr=subprocess.STDOUT, env=environment) as process:
        try:
            address = wait_for(lambda: re.search(r"http://\S+/", Path("log").read_text()), process)[0]
            assert wait_for(lambda: len(get(f"{address}data/runs")) == 3 and get(f"{address}data/runs"), process) == [
                "teacher",
                "trial-0003",
                "trial-0012",
            ]
            append_epoch(RUN / "epochs.csv", EPOCHS[-1]._replace(trial=13))
            assert wait_for(lambda: "trial-0013" in get(f"{address}data/runs"), process)
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=30) == 130


def wait_for(look: Any, process: subprocess.Popen[bytes], limit_s: float = 90.0) -> Any:
    end = time.monotonic() + limit_s
    while time.monotonic() < end and process.poll() is None:
        if found := look():
            return found
        time.sleep(0.3)
    raise AssertionError(f"waited in vain: {Path('log').read_text()[-500:]}")


def get(address: str) -> Any:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(address, timeout=10) as answer:
        return json.load(answer)


@pytest.mark.parametrize(
    ("argv", "law"),
    [
        (["--port", "-1"], "--port must be between 0 and 65535, but got -1"),
        (
            ["--study", "absent"],
            "a run must have trained something to be shown, but there is no runs/absent/epochs.csv; run search.run first",
        ),
        (["--study", "../x"], "a study's name has letters, digits, "),
    ],
)
def test_what_cannot_be_shown_is_refused_in_a_line(argv: list[str], law: str, recorded: Path, capfd: Capture) -> None:
    assert law in refused(told(capfd, *argv))


def test_without_the_package_the_extra_is_named(recorded: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorboard, "installed_version", lambda name: None)
    assert "run: python -m pip install -e '.[tensorboard]'" in refused(told(capfd))
