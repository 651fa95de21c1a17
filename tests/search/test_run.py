"""A search from one command: what it leaves, what it counts, how it goes on and how it gives up."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import optuna
import pandas
import pytest

from results.record import read_records
from search.account import saved
from search.run import _command
from search.samplers import make_sampler
from search.stopping import trained
from search.study import count_finished
from tests.search.studies import DOT, ONE_NETWORK, begun, command, load, refused, search

Capture = pytest.CaptureFixture[str]
TOO_SMALL = ["--max-size-kb", "0.001"]


def test_a_study_ends_with_the_wanted_number_of_measured_trials(finished: Path) -> None:
    study = load(folder=finished / "runs" / "tiny")
    assert begun(study) == ["COMPLETE", "COMPLETE"]
    assert study.metric_names == ["accuracy", "size_bytes", "latency_ms"]
    for trial in study.trials[:2]:
        accuracy, size_bytes, latency_ms = trial.values
        assert 0 <= accuracy <= 1
        assert size_bytes == (finished / "runs" / "tiny" / json.loads(trial.user_attrs["record"])["path"] / "weights.pack").stat().st_size
        assert 0 < latency_ms < 100


def test_the_front_on_disk_is_the_front_of_the_study(finished: Path) -> None:
    table = pandas.read_csv(finished / "runs" / "tiny" / "front.csv")
    best = load(folder=finished / "runs" / "tiny").best_trials
    assert set(table["trial"]) == {trial.number for trial in best}
    assert list(table["accuracy"]) == sorted(table["accuracy"], reverse=True)
    assert "plotly" in (finished / "runs" / "tiny" / "front.html").read_text()


def test_run_json_accounts_for_the_run(finished: Path) -> None:
    account = json.loads((finished / "runs" / "tiny" / "run.json").read_text())
    assert account["command"] == command("--trials", "2")
    assert account["trials"] == {"COMPLETE": 2}
    assert {"engine", "parent", "prune", "distil", "quantise", "accuracy"} <= account["seconds_per_stage"].keys()
    assert account["versions"]["torch"]
    assert account["fingerprint"]
    assert account["seed"] == 0
    assert sum(account["account"]["seconds"].values()) == pytest.approx(account["wall_seconds"], abs=2.0)
    assert account["hypervolume"] > 0


def test_without_a_terminal_progress_is_lines_and_ends_with_the_front(finished: Path) -> None:
    lines = (finished / "stdout.txt").read_text().splitlines()
    assert any(line.startswith("trial 0 (1 of 2) distil") for line in lines)
    assert any(line.startswith("rank  trial  accuracy %") for line in lines[-10:])
    assert any(line.startswith("time: ") and "training" in line for line in lines[-4:])
    assert any(line.startswith("trials: 2 complete") for line in lines[-4:])
    assert lines[-2] == "written: runs/tiny/front.csv, runs/tiny/front.html, runs/tiny/run.json"
    named = re.findall(r"python -m (search\.\w+)((?: --\w+ \w+)*)", lines[-1])
    assert [module for module, _ in named] == ["search.report", "search.explain", "search.dashboard", "search.export_best"]
    for module, words in named:
        assert importlib.import_module(module).build_parser().parse_args(words.split()).study is None


def test_the_same_command_again_shows_the_front_and_trains_nothing(again: Path, capfd: Capture) -> None:
    answer = search(capfd, *command("--trials", "2", "--quiet"))
    assert answer.code == 0
    assert answer.out.startswith("rank  trial  accuracy %")
    assert answer.err == ""
    assert begun(load()) == ["COMPLETE", "COMPLETE"]


@pytest.mark.slow
def test_a_larger_number_continues_the_study_with_new_candidates(again: Path, capfd: Capture) -> None:
    assert search(capfd, *command("--trials", "3")).code == 0
    trials = load().trials
    assert begun(load()) == ["COMPLETE"] * 3
    assert len({json.dumps(trial.params, sort_keys=True) for trial in trials[:3]}) == 3


def test_a_continued_study_draws_other_numbers_and_an_equal_start_the_same() -> None:
    def draw(seed: int, trials: int) -> float:
        return optuna.create_study(sampler=make_sampler("tpe", seed, trials, 50)).ask().suggest_float("x", 0, 1)

    assert draw(0, 0) == draw(0, 0)
    assert len({draw(0, 0), draw(0, 1), draw(1, 0), draw(-1, 0)}) == 4


@pytest.mark.usefixtures("dot")
def test_pruned_trials_count_and_leave_an_empty_front(empty: Path, capfd: Capture) -> None:
    answer = search(capfd, *command("--trials", "2", *TOO_SMALL, study="small", settings=DOT))
    assert answer.code == 0
    assert begun(load("small")) == ["PRUNED", "PRUNED"]
    assert "size_kb must be at most 0.001" in answer.out
    assert "no complete trial yet" in answer.out


@pytest.mark.usefixtures("dot")
@pytest.mark.slow
def test_ten_failures_in_a_row_stop_the_run_with_the_reason_and_count_for_nothing(empty: Path, capfd: Capture) -> None:
    diverging = [*ONE_NETWORK, "finetune.lr=1e30", "distil.init=scratch"]
    message = refused(search(capfd, *command("--trials", "1", study="wild", settings=diverging)))
    assert message.startswith("10 trials in a row failed, the last because: TrainingDiverged: ")
    study = load("wild")
    assert begun(study) == ["FAIL"] * 10
    assert count_finished(study) == 0
    assert json.loads(Path("runs/wild/run.json").read_text())["trials"] == {"FAIL": 10}


@pytest.mark.usefixtures("dot")
@pytest.mark.slow
def test_candidates_that_resolve_to_the_same_network_are_trained_once_and_stand_once_on_the_front(empty: Path, capfd: Capture) -> None:
    answer = search(capfd, *command("--trials", "2", study="twins", settings=[*ONE_NETWORK, "distil.weight=0.9"]))
    assert answer.code == 0, answer
    assert begun(load("twins")) == ["COMPLETE", "COMPLETE"]
    first, second = (json.loads(trial.user_attrs["record"]) for trial in load("twins").trials[:2])
    assert second["reason"] == "the same network as trial 0: not trained again"
    assert second["measurement"] == first["measurement"]
    assert "distil" in first["seconds"]
    assert "distil" not in second["seconds"]
    assert list(pandas.read_csv("runs/twins/front.csv")["trial"]) == [0]


@pytest.mark.usefixtures("dot")
@pytest.mark.slow
def test_a_twin_of_a_trial_that_missed_a_limit_after_its_training_knows_the_accuracy_too(empty: Path, capfd: Capture) -> None:
    settings = [*ONE_NETWORK, "distil.weight=0.9", "constraints.accuracy=1"]
    assert search(capfd, *command("--trials", "2", study="twins", settings=settings)).code == 0
    first, second = read_records(load("twins"))
    assert [first.ending, second.ending] == ["limit", "reused"]
    assert first.missed is not None
    assert second.missed == first.missed
    assert trained([first, second]) == [first]
    assert saved([first, second]).keys() == {"reused"}


@pytest.mark.usefixtures("dot")
@pytest.mark.slow
def test_a_password_of_the_storage_is_written_nowhere(empty: Path, capfd: Capture) -> None:
    storage = "sqlite:///file:other.db?uri=true&password=hunter2"
    answer = search(capfd, *command("--trials", "1", *TOO_SMALL, "--storage", storage, study="secret", settings=DOT))
    assert answer.code == 0
    assert "hunter2" not in answer.out + answer.err
    written = [path for path in empty.rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()]
    assert written == []


@pytest.mark.parametrize("words", [["--storage", "mysql://me:hunter2@host/db"], ["--storage=mysql://me:hunter2@host/db"]])
def test_the_command_is_kept_without_the_password(words: list[str]) -> None:
    kept = " ".join(_command(words, "mysql://me:hunter2@host/db"))
    assert "hunter2" not in kept
    assert "mysql://me:***@host/db" in kept
