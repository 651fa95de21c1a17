"""Notes are Markdown that says what a record says."""

import re

import pytest

from core.candidate import Candidate, DistilPlan, GroupPlan, Rung
from results.note import MARK, plain, study_note, trial_note
from results.record import TrialRecord
from results.report_text import whole_front
from tests.results.views import view_of


@pytest.mark.parametrize("text", ["a*b_c", "<b>x</b>", "[x](y) `z` #1 | \\", "plain words, 12 % (0.5)"])
def test_plain_text_comes_back_when_markdown_takes_its_escapes_away(text):
    assert re.sub(r"\\(.)", r"\1", plain(text)) == text
    assert not re.search(r"(?<!\\)[*_<>`\[\]#|]", plain(text).replace("\\\\", ""))


@pytest.mark.parametrize(("quantiser", "told"), [("float", "float, not quantised"), ("nncf", "8 bits where NNCF quantises, else float")])
def test_bits_that_a_quantiser_does_not_take_are_not_told(make_record, quantiser, told):
    candidate = Candidate(student="resnet8", groups=(GroupPlan(weight_bits=3),), quantiser=quantiser)
    note = trial_note(make_record(3, 0.9, 5_000, 0.1).model_copy(update={"candidate": candidate}), "complete")
    assert f"- weights: {told}" in note
    assert "bits, first layer" not in note


def test_a_complete_trial_s_note_holds_plan_numbers_and_seconds(make_record):
    groups = (GroupPlan(weight_bits=8), *(GroupPlan(weight_bits=4, execution="float", prune_ratio=0.3),) * 3)
    candidate = Candidate(student="resnet8", width=0.5, groups=groups, distil=DistilPlan(loss="dkd", init="scratch"))
    record = make_record(3, 0.9, 5_000, 0.1, stable=False).model_copy(
        update={
            "candidate": candidate,
            "rungs": (Rung(stage="distil", epoch=1.0, accuracy=0.25), Rung(stage="quantise", epoch=1.0, accuracy=0.5)),
        }
    )
    note = trial_note(record, "complete: rank 0 of 1")
    assert note.startswith("**complete: rank 0 of 1**\n")
    for part in (
        "network: resnet8, width 0.5",
        "channels removed, first layer to last: 0 %, 30 % (3 times)",
        "bits, first layer to last: 8, 4 (3 times); 8 in the first and the last layer, by lsq",
        "execution, first layer to last: int8, float (3 times)",
        "training: dkd at temperature",
        "from its own initial weights",
        "agree on 100.00 %",
        "interval 0.099 to 0.101 ms, p95 0.110 ms, batch 1, 1 thread, openvino; unstable: interval 2.0 % wide",
        "distil 25.0; quantise 50.0",
        "distil 3.0, export 0.5; 3.5 in all",
        "files: `runs/made/3`",
    ):
        assert part in note, part


def test_a_note_of_a_trial_that_was_given_up_says_what_was_known():
    record = TrialRecord(number=1, state="PRUNED", size_bytes=5400, latency_ms=0.5, seconds={"engine": 2.0})
    note = trial_note(record, "pruned: size_kb must be at most 5, but is 5.40; not trained")
    assert note.startswith("**pruned: size\\_kb must be at most 5")
    assert "known before training: 5,400 bytes, 0.500 ms" in note
    assert "bits" not in note


def test_a_trial_that_failed_at_once_has_a_note_of_one_line():
    assert trial_note(TrialRecord(number=0, state="FAIL", reason="broken"), "failed: broken").strip() == "**failed: broken**"


def test_the_study_s_note_holds_the_front_and_its_mark(records, teacher, tmp_path):
    view = view_of(records, teacher, tmp_path)
    note = study_note(view)
    for row in whole_front(view).rows:
        assert "| " + " | ".join(row) + " |" in note
    assert note.endswith(MARK)
    assert "python -m search.export_best --study made --rank R" in note


def test_what_optuna_s_numbers_of_a_list_mean_is_said(records, teacher, tmp_path):
    space = {"quantise": {"weight_bits": [2, 3, 4]}, "prune": {"ratio": {"low": 0.0, "high": 0.5}}}
    note = study_note(view_of(records, teacher, tmp_path, space=space)).replace("\\", "")
    assert "Among Optuna's parameters bits_i is the place in the list [2, 3, 4], counted from 0." in note
    assert "counted from 0" not in study_note(view_of(records, teacher, tmp_path, space={"quantise": {"weight_bits": 4}}))


def test_a_study_without_a_front_has_a_note_too(records, tmp_path):
    assert MARK in study_note(view_of([records[3]], None, tmp_path))
