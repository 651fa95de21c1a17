"""The recorded table: its rows are random trials trained in full, it grows by further studies, and a row gives its record back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks import table_search
from core.candidate import LatencyReport
from core.errors import UserError
from core.students import STUDENTS
from results.record import read_records
from search.study import REQUEUED_KEY
from tests.search.studies import DOT, EPOCHS, SPACE, Dot, load

SETTINGS = [
    *EPOCHS,
    *DOT,
    "quantise.execution=[int8, float]",
    "runtime.max_s=0.02",
    "runtime.warmup_s=0",
    "distil.temperature=4",
    "finetune.epochs=2",
]
RUNGS = [["start", 0.0], ["distil", 1.0], ["distil", 2.0], ["quantise", 1.0]]


def record(*more: str, settings: Sequence[str] = SETTINGS) -> dict[str, Any]:
    """The table after one more call."""
    words = [word for each in settings for word in ("--set", each)]
    table_search.main(["--space", SPACE, "--out", "t.json", *words, *more])
    content: dict[str, Any] = json.loads(Path("t.json").read_text())
    return content


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recorded")


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STUDENTS, "dot", Dot)
    monkeypatch.chdir(folder)


@pytest.fixture(scope="module")
def recorded(folder: Path) -> dict[str, Any]:
    """A table of one row, then of three, then with two of a further study: as it was after each call."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(STUDENTS, "dot", Dot)
        patch.chdir(folder)
        first = record("--study", "a", "--rows", "1")
        second = record("--study", "a", "--rows", "3")
        (given,) = Path("runs/.cache/given").glob("*.safetensors")
        save_file({name: value * 1.01 for name, value in load_file(given).items()}, "other.safetensors")
        normal = {key: json.dumps(first["shared"]["config"]["teacher"][key]) for key in ("mean", "std")}
        other = [*SETTINGS, "teacher.weights=other.safetensors", *(f"teacher.{key}={value}" for key, value in normal.items())]
        return {"first": first, "second": second, "third": record("--study", "b", "--seed", "1", "--rows", "5", settings=other)}


@pytest.mark.slow
def test_a_row_has_seconds_of_every_stage_every_rung_parameters_and_latency(recorded: dict[str, Any]) -> None:
    for row in recorded["third"]["rows"]:
        assert {"shape", "engine", "parent", "prune", "distil", "quantise", "accuracy"} <= row["seconds"].keys()
        assert [rung[:2] for rung in row["rungs"]] == RUNGS
        assert LatencyReport.model_validate(row["measurement"]["latency"]).samples > 0
        assert len(row["params"]) == len(recorded["third"]["asked"])


def test_rows_that_are_there_are_kept_and_a_further_study_adds_to_them(recorded: dict[str, Any]) -> None:
    first, second, third = (recorded[name]["rows"] for name in ("first", "second", "third"))
    assert len(first) >= 1
    assert len(second) >= 3
    assert len(third) >= 5
    assert first == second[: len(first)]
    assert second == third[: len(second)]
    teachers = [each["teacher"] for each in recorded["third"]["studies"].values()]
    assert len({each["digest"] for each in teachers}) == len(teachers) == 2
    assert all(0 < each["accuracy"] <= 1 for each in teachers)
    assert {row["study"] for row in second} == {"a"}
    assert {row["study"] for row in third[len(second) :]} == set(recorded["third"]["studies"]) - {"a"} == {"b"}


def test_no_two_rows_are_the_same_draw_and_none_is_a_baseline(recorded: dict[str, Any]) -> None:
    rows = recorded["third"]["rows"]
    assert len({json.dumps(row["params"]) for row in rows}) == len({row["fingerprint"] for row in rows}) == len(rows)
    queued = [trial.number for trial in load("a").get_trials(deepcopy=False) if "fixed_params" in trial.system_attrs]
    assert queued
    assert not {row["number"] for row in rows if row["study"] == "a"} & set(queued)


def test_the_seconds_of_parents_are_those_of_the_trial_that_trained_them(recorded: dict[str, Any]) -> None:
    for name in ("a", "b"):
        taken = [each.seconds["parent"] for each in read_records(load(name)) if "parent" in each.seconds]
        assert recorded["third"]["studies"][name]["parent_seconds"] == {"dot-1": max(taken)}
        assert max(taken) == taken[0]


def test_a_row_gives_its_record_back(recorded: dict[str, Any]) -> None:
    row = recorded["second"]["rows"][0]
    record = next(each for each in read_records(load("a")) if each.number == row["number"])
    blank: dict[str, Any] = {"reason": None, "path": None, "files": {}, "ending": None, "hypervolume": None, "latency_ms": None}
    assert table_search.record_of(row) == record.model_copy(update=blank)
    assert table_search.record_of(row, 7).number == 7


def test_a_table_has_a_line_per_row(recorded: dict[str, Any]) -> None:
    text = Path("t.json").read_text()
    assert sum(line.startswith('{"study"') for line in text.splitlines()) == len(json.loads(text)["rows"])


def test_collecting_runs_nothing(recorded: dict[str, Any]) -> None:
    trials = len(load("a").trials)
    assert record("--study", "a", "--rows", "99", "--collect")["rows"] == recorded["third"]["rows"]
    assert len(load("a").trials) == trials


def test_rows_of_another_set_up_are_refused_before_anything_runs(recorded: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"t\.json has another config; give another --out"):
        record("--study", "c", "--rows", "9", settings=[*SETTINGS, "quantise.calibration_images=7"])
    assert not Path("runs", "c").exists()


def test_the_teacher_is_trained_on_all_images_whatever_seed_and_limit_the_study_has(recorded: dict[str, Any]) -> None:
    assert len(list(Path("runs", ".cache", "given").iterdir())) == 1
    assert recorded["third"]["facts"]["data"]["train"] == 100
    assert torch.get_num_threads() == recorded["third"]["studies"]["a"]["threads_per_worker"]


def test_an_interrupted_draw_counts_as_drawn_and_an_interrupted_baseline_does_not(recorded: dict[str, Any]) -> None:
    trials = {trial.number: trial for trial in load("a").get_trials(deepcopy=True)}
    drawn = next(number for number, trial in trials.items() if "fixed_params" not in trial.system_attrs)
    queued = next(number for number, trial in trials.items() if "fixed_params" in trial.system_attrs)
    again = trials[queued]
    for former, is_drawn in ((drawn, True), (queued, False)):
        again.user_attrs[REQUEUED_KEY] = former
        assert table_search.is_drawn(again, {**trials, queued: load("a").trials[queued]}) is is_drawn
