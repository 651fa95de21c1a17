import io
import os
import subprocess
import sys

import pytest
from rich.console import Console

from core.candidate import LatencyReport, Measurement
from results.record import TrialRecord
from results.table import duration
from search.progress import Progress, outcome

LATENCY = LatencyReport(
    p50_ms=0.2,
    p95_ms=0.3,
    ci_ms=(0.19, 0.21),
    samples=9,
    batch=1,
    threads=1,
    runtime="openvino",
    precision="f32",
    fingerprint="ab",
    stable=True,
)
MEASUREMENT = Measurement(accuracy=0.9, images=100, size_bytes=5000, latency=LATENCY, agreement=1.0, parameters=1, macs=1, mean_bits=8.0)


def record(number: int, state: str = "COMPLETE") -> TrialRecord:
    if state != "COMPLETE":
        return TrialRecord(number=number, state=state, reason="too large")
    return TrialRecord(number=number, state="COMPLETE", fingerprint=str(number), student="resnet8", width=0.5, measurement=MEASUREMENT)


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def a_run(progress: Progress) -> None:
    progress.stage(None, "teacher")
    progress.stage(0, "distil")
    progress.epoch(0, "distil", 1.0, 2.0, 1500.0, 0.5, 0.0125, 0.615)
    progress.message("the disk is nearly full")
    progress.trial_done(record(0), [record(0)])


def python(code: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": os.getcwd()}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=env, check=False)


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=120, height=40, _environ={})


def test_off_a_terminal_every_event_is_one_plain_line(capsys):
    with Progress(3) as progress:
        a_run(progress)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "teacher"
    assert lines[1] == "trial 0 (1 of 3) distil"
    assert lines[2] == "trial 0 (1 of 3) distil: epoch 1/2, 1,500 images/s, loss 0.500, lr 0.013, accuracy 61.5 %"
    assert lines[3] == "the disk is nearly full"
    assert lines[4].startswith("trial 0 complete: 90.00 %, 5.0 KB, 0.200 ms, resnet8 (0.5), rank 0 of 1 (1 of 3 done, ")
    assert len(lines) == 5
    assert "\x1b" not in "".join(lines)


def test_epoch_lines_come_at_most_every_few_seconds_and_with_the_last_epoch(capsys):
    clock = Clock()
    progress = Progress(1, clock=clock, epoch_line_s=10.0)
    for epoch in range(1, 101):
        clock.now_s += 1.0
        progress.epoch(0, "distil", float(epoch), 100.0, 1.0, 1.0)
    epochs = [line.split("epoch ")[1].split("/")[0] for line in capsys.readouterr().out.splitlines()]
    assert epochs == ["1", "11", "21", "31", "41", "51", "61", "71", "81", "91", "100"]


def test_quiet_prints_the_result_alone(capsys):
    with Progress(3, quiet=True) as progress:
        a_run(progress)
        assert capsys.readouterr().out == ""
        progress.result([record(0)])
    assert "90.00" in capsys.readouterr().out


def test_time_left_is_the_mean_of_the_trials_finished_and_ignores_the_teacher():
    clock = Clock()
    progress = Progress(10, done=5, quiet=True, clock=clock)
    progress.stage(None, "teacher")
    clock.now_s += 1000.0
    progress.stage(5, "distil")
    assert progress.time_left_s is None
    clock.now_s += 20.0
    progress.trial_done(record(5), [])
    progress.stage(6, "distil")
    clock.now_s += 40.0
    progress.trial_done(record(6, "PRUNED"), [])
    assert progress.time_left_s == pytest.approx(30.0 * 3)


def test_a_failed_trial_does_not_count(capsys):
    progress = Progress(2)
    progress.trial_done(record(0, "FAIL"), [])
    progress.trial_done(record(1, "PRUNED"), [])
    assert progress.done == 1
    assert capsys.readouterr().out.splitlines() == [
        "trial 0 failed: too large (0 of 2 done)",
        "trial 1 pruned: too large (1 of 2 done)",
    ]


def test_a_terminal_shows_trial_stage_epoch_rate_time_left_and_the_front():
    console = terminal()
    with Progress(3, console=console) as progress:
        a_run(progress)
        progress.epoch(1, "quantise", 0.5, 2.0, 800.0, 0.25)
        progress._live.refresh()
    shown = console.file.getvalue()
    facts = ["1 of 3 trials", "about", "left", "trial 1 (2 of 3) quantise", "epoch 0.5/2, 800 images/s, loss 0.250", "90.00", "nearly full"]
    assert [fact for fact in facts if fact not in shown] == []
    assert "trial 0 complete: 90.00 %" in shown


def test_the_front_known_at_the_start_is_shown_before_any_trial_ends_and_then_the_new_one():
    console = terminal()
    with Progress(3, done=1, front=[record(7)], console=console) as progress:
        progress.stage(None, "teacher")
        progress._live.refresh()
        begun = console.file.getvalue()
        progress.trial_done(record(8), [record(7), record(8)])
        progress._live.refresh()
    assert begun.count("90.00") == begun.count("resnet8 (0.5)") > 0
    assert "1 of 3 trials" in begun
    last = console.file.getvalue()[len(begun) :].rsplit("2 of 3 trials", 1)[1]
    assert last.count("resnet8 (0.5)") == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_exception_passes_through_and_the_terminal_is_given_back(error):
    console = terminal()
    progress = Progress(3, console=console)

    def interrupted() -> None:
        with progress:
            progress.stage(0, "distil")
            raise error

    with pytest.raises(error):
        interrupted()
    output = console.file.getvalue()
    assert output.rfind("\x1b[?25h") > output.rfind("\x1b[?25l") >= 0
    progress.stage(0, "over")
    assert console.file.getvalue().endswith("trial 0 (1 of 3) over\n")


def test_a_dumb_terminal_gets_lines():
    console = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
    with Progress(3, console=console) as progress:
        progress.stage(0, "distil")
    assert console.file.getvalue() == "trial 0 (1 of 3) distil\n"


def test_events_may_come_from_many_threads():
    from concurrent.futures import ThreadPoolExecutor

    with Progress(40, console=terminal()) as progress, ThreadPoolExecutor(8) as pool:

        def trial(number: int) -> None:
            progress.stage(number, "distil")
            progress.epoch(number, "distil", 1.0, 1.0, 1.0, 1.0)
            progress.trial_done(record(number), [record(number)])

        list(pool.map(trial, range(40)))
    assert progress.done == 40


def test_lines_are_flushed_at_once_into_a_pipe():
    code = "import os; from search.progress import Progress; Progress(1).message('now'); os._exit(0)"
    ran = python(code)
    assert (ran.stdout, ran.returncode) == ("now\n", 0)


def test_importing_it_loads_no_heavy_package():
    code = (
        "import sys; import search.progress, results.plots; "
        "print([name for name in ('torch', 'optuna', 'pandas', 'plotly', 'sklearn') if name in sys.modules])"
    )
    ran = python(code)
    assert ran.stdout == "[]\n", ran.stderr


def test_a_rank_is_said_in_the_line_of_the_moment_and_not_in_what_is_kept(capsys):
    with Progress(2) as progress:
        progress.trial_done(record(0), [record(1), record(0)])
        progress.trial_done(record(1), [record(0)])
    lines = capsys.readouterr().out.splitlines()
    assert ["rank 1 of 2" in lines[0], "off the front" in lines[1]] == [True, True]
    assert outcome(record(0)) == "complete: 90.00 %, 5.0 KB, 0.200 ms, resnet8 (0.5)"


def test_durations_read_as_a_person_says_them():
    assert [duration(value) for value in (0, 42.4, 600, 11_100)] == ["0 s", "42 s", "10 min", "3 h 05 min"]
