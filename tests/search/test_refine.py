"""Finalists of a real study: trained again, timed in turn, scored once, ties marked; and a study that moves to another device."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.candidate import LatencyReport
from core.hardware import usable_cores
from core.losses import DISTIL_LOSSES
from results.record import RECORD_KEY, TrialRecord, read_records
from results.refined import accuracy_ties, latency_ties, mcnemar, read_refined
from search import refine
from search.finalists import MEASURED, combined, finished
from search.owner import OWNER_KEY, current_owner
from search.remeasure import _moved
from search.space import Constraints
from search.study import CONTENT_KEY
from tests.search.studies import Answer, _answer, command, export, load, refused, search

Capture = pytest.CaptureFixture[str]


def refined(capfd: Capture, *argv: str) -> Answer:
    """`python -m search.refine ARGV`, in this process."""
    return _answer(capfd, refine.main, argv)


@pytest.mark.slow
def test_a_point_trained_with_two_seeds_is_timed_in_turn_scored_once_and_exported(again: Path, capfd: Capture) -> None:
    answer = refined(capfd, "--top", "1", "--epochs", "1", "--seeds", "2", "--rounds", "2")
    assert answer.code == 0, answer
    found = read_refined(Path("runs/tiny"))
    record, finalist = found.records[0], found.finalists[0]
    assert record.measurement is not None
    assert found.epochs == 1
    assert finalist.seeds.keys() == {0, 1}
    assert record.measurement.accuracy == max(finalist.seeds.values())
    assert len(finalist.rounds_ms) == 2
    low, high = finalist.search_interval
    assert low <= record.measurement.accuracy <= high
    logged = load().user_attrs["test_accuracy"]
    name = Path(str(record.path)).name
    assert name.startswith(f"{record.fingerprint}-openvino-e1-s")
    assert logged == {name: finalist.test}
    assert "rank 0 (trial " in answer.out

    # finished trainings are kept, and a point of the refined front is a bundle like any other
    before = {path: path.stat().st_mtime_ns for path in Path("runs/tiny/refined").glob("*/model.onnx")}
    assert refined(capfd, "--top", "1", "--epochs", "1", "--seeds", "2", "--rounds", "1").code == 0
    assert before == {path: path.stat().st_mtime_ns for path in Path("runs/tiny/refined").glob("*/model.onnx")}
    answer = export(capfd, "--refined", "--rank", "0")
    assert answer.code == 0, answer
    model = Path("runs/tiny", str(record.path), "model.onnx")
    assert Path("exported/tiny-refined-rank0/model.onnx").read_bytes() == model.read_bytes()


@pytest.mark.slow
def test_a_seed_that_diverges_is_left_out_and_so_is_a_point_of_which_all_do(
    again: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, bad = DISTIL_LOSSES["kd"], [True]

    def diverging(student: Any, teacher: Any, labels: Any, plan: Any) -> Any:
        return known(student, teacher, labels, plan) * (float("nan") if bad and bad.pop() else 1.0)

    monkeypatch.setitem(DISTIL_LOSSES, "kd", diverging)
    answer = refined(capfd, "--top", "2", "--epochs", "1", "--seeds", "2", "--rounds", "1")
    assert answer.code == 0, answer
    assert " with seed 0 is left out, TrainingDiverged: the loss must stay finite, but is nan" in answer.out
    found = {finalist.searched_rank: set(finalist.seeds) for finalist in read_refined(Path("runs/tiny")).finalists}
    assert found == {0: {1}, 1: {0, 1}}

    shutil.rmtree("runs/tiny/refined")
    bad.append(True)
    answer = refined(capfd, "--top", "2", "--epochs", "1", "--rounds", "1")
    assert answer.code == 0, answer
    assert "is left out of the refinement: no seed could be trained" in answer.out
    assert [finalist.searched_rank for finalist in read_refined(Path("runs/tiny")).finalists] == [1]

    bad.append(True)
    answer = refined(capfd, "--top", "1", "--epochs", "1", "--rounds", "1")
    assert answer.code == 2
    assert "error: a refinement must train a point with a seed at least, but none could be trained" in answer.err


@pytest.mark.slow
def test_a_point_refined_for_another_runtime_is_exported_for_that_one(again: Path, capfd: Capture) -> None:
    study = load()
    content = study.user_attrs[CONTENT_KEY]
    config = content["config"]
    study.set_user_attr(CONTENT_KEY, {**content, "config": {**config, "runtime": {**config["runtime"], "precision": "bf16"}}})
    answer = refined(capfd, "--top", "1", "--epochs", "1", "--rounds", "1", "--runtime", "onnxruntime")
    assert answer.code == 0, answer
    assert answer.out.startswith("onnxruntime cannot have runtime.precision bf16 here: f32 is taken\n")
    assert export(capfd, "--refined", "--rank", "0").code == 0
    manifest = json.loads(Path("exported/tiny-refined-rank0/bundle.json").read_text())
    assert (manifest["runtime"], manifest["precision"]) == ("onnxruntime", "f32")


def test_a_training_whose_files_are_not_whole_is_not_finished(again: Path) -> None:
    candidate = next(Path("runs/tiny/candidates").glob("[!.]*"))
    place = Path(shutil.copytree(candidate, "refined"))
    assert finished(place) is None
    record = read_records(load())[0]
    assert record.measurement is not None
    (place / MEASURED).write_text(record.measurement.model_dump_json())
    assert finished(place) == record.measurement
    (place / MEASURED).write_text("{")
    assert finished(place) is None
    (place / MEASURED).write_text(record.measurement.model_dump_json())
    (place / "model.onnx").unlink()
    assert finished(place) is None


@pytest.mark.slow
def test_finalists_may_be_rounded_by_a_quantiser_that_takes_longer(again: Path, capfd: Capture) -> None:
    answer = refined(capfd, "--top", "1", "--epochs", "1", "--rounds", "1", "--quantiser", "brecq")
    assert answer.code == 0, answer
    record = read_refined(Path("runs/tiny")).records[0]
    assert record.candidate is not None
    assert record.candidate.quantiser == "brecq"
    assert Path(str(record.path)).name.endswith("-e1-s0-brecq")
    searched = {each.number: each for each in read_records(load())}[record.number]
    assert record.measurement is not None
    assert searched.measurement is not None
    assert record.measurement.size_bytes == searched.measurement.size_bytes


def test_a_front_is_timed_again_without_training_or_images(again: Path, capfd: Capture) -> None:
    answer = refined(capfd, "--remeasure", "--rounds", "2")
    assert answer.code == 0, answer
    found = read_refined(Path("runs/tiny"))
    searched = {record.number: record for record in read_records(load())}
    for record, finalist in zip(found.records, found.finalists, strict=True):
        before, now = searched[record.number].measurement, record.measurement
        assert before is not None
        assert now is not None
        assert (now.accuracy, now.size_bytes) == (before.accuracy, before.size_bytes)
        assert (len(finalist.rounds_ms), finalist.seeds, finalist.test) == (2, {}, None)
    assert not Path("runs/tiny/refined").exists()


@pytest.mark.parametrize(
    ("argv", "law"),
    [
        (["--top", "0"], "--top must be at least 1, but got 0"),
        (["--epochs", "-1"], "--epochs must be a number above 0, but got -1"),
        (["--remeasure", "--seeds", "2"], "--remeasure trains nothing and keeps the runtime, but --seeds is given"),
        (["--remeasure", "--quantiser", "ptq"], "--remeasure trains nothing and keeps the runtime, but --quantiser is given"),
        (["--quantiser", "brecc"], "unknown quantiser 'brecc', did you mean 'brecq'"),
        (["--study", "absent"], "there is no study 'absent'"),
    ],
)
def test_what_cannot_be_refined_is_refused_in_a_line(argv: list[str], law: str, again: Path, capfd: Capture) -> None:
    assert law in refused(refined(capfd, *argv))


def test_a_refined_front_that_was_never_made_is_not_exported(again: Path, capfd: Capture) -> None:
    assert "there is no runs/tiny/refined.json; run search.refine first" in refused(export(capfd, "--refined"))


@pytest.mark.slow
def test_a_study_on_another_device_goes_on_with_remeasure_alone(again: Path, capfd: Capture) -> None:
    study = load()
    study.set_user_attr("inputs", {**study.user_attrs["inputs"], "device or runtime": "0123456789ab"})
    before = {record.number: record for record in read_records(study)}
    message = refused(search(capfd, *command("--trials", "2")))
    assert "began with 0123456789ab" in message
    assert "give --remeasure to time its models on this device and go on" in message

    answer = search(capfd, *command("--trials", "2", "--remeasure"))
    assert answer.code == 0, answer
    assert "the study as it was is kept as 'tiny-on-0123456789ab'" in answer.out
    after = {record.number: record for record in read_records(load())}
    assert after.keys() == before.keys()
    here = json.loads(Path("runs/tiny/run.json").read_text())["fingerprint"]
    for number, record in after.items():
        known = before[number].measurement
        if record.measurement is not None and known is not None:
            assert record.measurement.latency.fingerprint == here
            assert (record.measurement.accuracy, record.measurement.size_bytes) == (known.accuracy, known.size_bytes)
    for trial in load().get_trials():
        if trial.values is not None:
            assert trial.values[2] == after[trial.number].measurement.latency.p50_ms  # type: ignore[union-attr]

    # the same way a second time: the copy of the first time is another study, and somebody may be at work
    study = load()
    study.set_user_attr("inputs", {**study.user_attrs["inputs"], "device or runtime": "0123456789ab"})
    running = study.ask()
    running.set_user_attr(OWNER_KEY, current_owner())
    message = refused(search(capfd, *command("--trials", "2", "--remeasure")))
    assert message.startswith(f"--remeasure needs a study at rest, but another process is running trial {running.number} of 'tiny'")
    running.set_user_attr(OWNER_KEY, {**current_owner(), "start": 0})
    answer = search(capfd, *command("--trials", "2", "--remeasure"))
    assert "the study as it was is kept as 'tiny-on-0123456789ab-2'" in answer.out
    assert [trial.state.name for trial in load().get_trials()][running.number :] == ["FAIL", "WAITING"]


@pytest.mark.skipif(usable_cores() < 2, reason="two threads need two cores")
@pytest.mark.slow
def test_a_study_goes_on_with_other_threads_as_on_another_device(again: Path, capfd: Capture) -> None:
    """The next machine may have fewer cores than `runtime.threads`."""
    two = ("--trials", "2", "--set", "runtime.threads=2")
    assert "give --remeasure to time its models on this device and go on" in refused(search(capfd, *command(*two)))
    answer = search(capfd, *command(*two, "--remeasure"))
    assert answer.code == 0, answer
    timed = [record.measurement.latency for record in read_records(load()) if record.measurement is not None]
    assert timed
    assert {latency.threads for latency in timed if isinstance(latency, LatencyReport)} == {2}


def test_a_trial_that_was_refused_for_its_accuracy_keeps_no_latency_of_the_former_device(again: Path) -> None:
    trial, record = load().trials[0], read_records(load())[0]
    told = {"state": "PRUNED", "ending": "limit", "reason": "accuracy must be at least 0.99, but is 0.9"}
    refused_there = record.model_copy(update={**told, "missed": record.measurement, "measurement": None, "latency_ms": 1.5})
    moved = TrialRecord.model_validate_json(_moved(trial, refused_there, {}, Constraints()).user_attrs[RECORD_KEY])
    assert (moved.state, moved.latency_ms, moved.reached) == ("PRUNED", None, record.measurement)
    twin = refused_there.model_copy(update={"ending": "reused", "reason": f"the same network as trial 0: {refused_there.reason}"})
    moved = TrialRecord.model_validate_json(_moved(trial, twin, {}, Constraints()).user_attrs[RECORD_KEY])
    assert (moved.state, moved.ending, moved.refused) == ("PRUNED", "reused", False)  # of a network that was trained once


@pytest.mark.parametrize("within", ["delete_study", "create_study"])
@pytest.mark.slow
def test_a_remeasure_that_is_killed_while_it_writes_loses_no_trial(
    within: str, again: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = load()
    study.set_user_attr("inputs", {**study.user_attrs["inputs"], "device or runtime": "0123456789ab"})
    before = [(trial.state, trial.values, trial.params) for trial in study.trials]
    real = getattr(optuna, within)

    def cut_off(*arguments: Any, **options: Any) -> None:
        if options["study_name"] == "tiny":
            real(*arguments, **options)
            raise KeyboardInterrupt
        real(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(optuna, within, cut_off)
        assert search(capfd, *command("--trials", "2", "--remeasure")).code == 130
    with pytest.raises(KeyError) if within == "delete_study" else nullcontext():
        assert load().trials == []
    assert "a --remeasure of the study 'tiny' was cut off" in refused(refined(capfd, "--top", "1"))
    answer = search(capfd, *command("--trials", "2"))
    assert "a --remeasure of 'tiny' was cut off: the study is again as it was before" in answer.out
    assert "give --remeasure" in refused(answer)
    assert [(trial.state, trial.values, trial.params) for trial in load().trials] == before
    answer = search(capfd, *command("--trials", "2", "--remeasure"))
    assert answer.code == 0, answer
    assert [record.number for record in read_records(load())] == [0, 1]
    assert "was cut off" not in answer.out


masks = st.lists(st.booleans(), min_size=1, max_size=60)


@given(masks)
def test_the_test_of_mcnemar_is_symmetric_and_sees_no_difference_between_equals(mask: list[bool]) -> None:
    right = np.array(mask)
    other = np.array([not value if index % 3 == 0 else value for index, value in enumerate(mask)])
    assert mcnemar(right, right) == 1.0
    assert mcnemar(right, other) == mcnemar(other, right)
    assert 0.0 < mcnemar(right, other) <= 1.0


def test_six_answers_of_one_side_tell_two_models_apart_and_five_do_not() -> None:
    wrong = np.zeros(100, bool)
    for count, apart in ((5, False), (6, True)):
        better = wrong.copy()
        better[:count] = True
        assert (mcnemar(better, wrong) < 0.05) is apart
        assert accuracy_ties([better, wrong]) == ([(), ()] if apart else [(1,), (0,)])


def test_intervals_that_touch_are_tied() -> None:
    assert latency_ties([(1.0, 2.0), (2.0, 3.0), (2.5, 4.0)]) == [(1,), (0, 2), (1,)]


@given(st.lists(st.floats(0.1, 10.0), min_size=1, max_size=7))
def test_rounds_combine_to_the_middle_one_within_all_their_intervals(medians: list[float]) -> None:
    reports = [
        LatencyReport(
            p50_ms=value,
            p95_ms=2 * value,
            ci_ms=(0.9 * value, 1.1 * value),
            samples=10,
            batch=1,
            threads=1,
            runtime="openvino",
            precision="f32",
            fingerprint="f",
            stable=True,
        )
        for value in medians
    ]
    whole = combined(reports)
    assert whole.p50_ms in medians
    assert sum(value < whole.p50_ms for value in medians) <= len(medians) // 2
    assert whole.ci_ms == (0.9 * min(medians), 1.1 * max(medians))
    assert whole.samples == 10 * len(medians)
