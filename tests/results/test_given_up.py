"""Trials that were given up, as the report draws them and tells of them."""

from typing import get_args

import pytest

from core.candidate import BuildReport, Candidate, GroupPlan, Rung
from results.given_up import KINDS, why
from results.record import Ending, TrialRecord
from results.report import sections
from results.report_front import cube, planes
from tests.results.views import view_of

RUNG = Rung(stage="distil", epoch=2.0, accuracy=0.4)
SKIPPED = TrialRecord(number=91, state="PRUNED", ending="skipped", size_bytes=6000, latency_ms=0.6, reason="<b>hopeless</b>")
STOPPED = TrialRecord(number=92, state="PRUNED", ending="stopped", size_bytes=5000, latency_ms=0.5, rungs=(RUNG,))
TOO_LARGE = TrialRecord(number=93, state="PRUNED", ending="limit", size_bytes=9000)
"""Refused by its size, so it was never timed."""
REUSED = STOPPED.model_copy(update={"number": 94, "ending": "reused"})
UNKNOWN = TrialRecord(number=95, state="PRUNED", size_bytes=7000, latency_ms=0.7)
BARE = TrialRecord(number=96, state="PRUNED", ending="limit")
GIVEN_UP = (SKIPPED, STOPPED, TOO_LARGE, REUSED, UNKNOWN, BARE)
NAMES = {kind.name for kind in KINDS.values()}


@pytest.fixture
def view(records, teacher, tmp_path):
    """A study with every kind; of the made-up records trial 3 is pruned, of which nothing is known."""
    return view_of([*records, *GIVEN_UP], teacher, tmp_path)


@pytest.fixture
def built_only(records, tmp_path):
    """A study that measured no latencies."""
    report = BuildReport(
        runtime="tensorrt_rtx", compute_capability=("86",), batch=1, threads=1, precision="int8", fingerprint="0" * 12,
        engine_bytes=1000, int8_layers=None, layers=None, scored_in="onnxruntime",
    )  # fmt: skip
    built = [
        record.model_copy(update={"measurement": record.measurement.model_copy(update={"latency": report})})
        for record in records
        if record.measurement is not None
    ]
    return view_of([*built, SKIPPED.model_copy(update={"latency_ms": None}), TOO_LARGE], None, tmp_path)


def kinds_of(figure) -> list:
    return [trace for trace in figure.data if trace.name in NAMES]


def at(figure, plane: int) -> dict[str, list[tuple[float, float]]]:
    """Kind -> places, in one of the planes."""
    axis = "x" if plane == 0 else f"x{plane + 1}"
    found = [trace for trace in kinds_of(figure) if trace.xaxis == axis]
    return {trace.name: list(zip(trace.x, trace.y, strict=True)) for trace in found}


def test_every_ending_has_a_name_and_signs_of_its_own():
    assert set(KINDS) == {*get_args(Ending), None}
    for signs in zip(*KINDS.values(), strict=True):
        assert len(set(signs)) == len(KINDS)
    assert "x" not in {kind.solid for kind in KINDS.values()}  # a box in most fonts


def test_every_kind_has_one_legend_entry_and_is_dimmed(view):
    for figure in (planes(view), cube(view)):
        traces = kinds_of(figure)
        assert all(trace.marker.opacity < 0.6 for trace in traces)
        listed = [trace.name for trace in traces if trace.showlegend is not False]
        assert sorted(listed) == sorted({trace.name for trace in traces})
    assert {trace.name for trace in kinds_of(planes(view))} == NAMES


def test_a_given_up_trial_stands_where_its_numbers_say(view):
    figure = planes(view)
    base = figure.layout.yaxis.range[0]
    assert at(figure, 0) == {
        "skipped": [(6.0, base)],
        "stopped": [(5.0, 40.0)],
        "beyond a limit": [(9.0, base)],
        "same as one given up": [(5.0, 40.0)],
        "pruned": [(7.0, base)],
    }
    assert at(figure, 1)["skipped"] == [(0.6, base)]
    assert at(figure, 2)["stopped"] == [(5.0, 0.5)]
    for plane in (1, 2):
        assert "beyond a limit" not in at(figure, plane)  # it has no latency


def test_the_base_line_is_the_axis_itself_and_lies_below_every_accuracy(view):
    for axis in (planes(view).layout.yaxis, planes(view).layout.yaxis2, cube(view).layout.scene.zaxis):
        assert axis.range[0] < 40.0
        assert axis.range[1] > 99.0
    known = [y for trace in planes(view).data if trace.xaxis == "x" and trace.name not in NAMES for y in trace.y]
    assert min(known) > planes(view).layout.yaxis.range[0]


def test_the_cube_holds_the_trials_whose_size_and_latency_are_known(view):
    figure = cube(view)
    base = figure.layout.scene.zaxis.range[0]
    found = {trace.name: list(zip(trace.x, trace.y, trace.z, strict=True)) for trace in kinds_of(figure)}
    assert found == {
        "skipped": [(6.0, 0.6, base)],
        "stopped": [(5.0, 0.5, 40.0)],
        "same as one given up": [(5.0, 0.5, 40.0)],
        "pruned": [(7.0, 0.7, base)],
    }


def test_where_nothing_is_timed_a_trial_of_known_size_is_still_drawn(built_only):
    section = next(section for section in sections(built_only) if section.title == "The front")
    (figure,) = section.figures
    base = figure.layout.yaxis.range[0]
    assert at(figure, 0) == {"skipped": [(6.0, base)], "beyond a limit": [(9.0, base)]}
    assert "Those without an accuracy stand on the base line" in section.text
    assert "star" not in section.text  # there is no teacher here


def test_a_study_in_which_nothing_was_given_up_does_not_speak_of_it(make_record, teacher, tmp_path):
    view = view_of([make_record(0, 0.9, 5_000, 0.1)], teacher, tmp_path)
    section = next(section for section in sections(view) if section.title == "The front")
    assert "given up" not in section.text
    assert kinds_of(section.figures[0]) == []


def test_hovering_says_what_ended_a_trial_and_whether_an_accuracy_is_known(view):
    told = {trace.name: trace.hovertext[0] for trace in kinds_of(planes(view))}
    assert told["skipped"].startswith("<b>skipped</b> · trial 91")
    assert "no accuracy: the trial ended before one was measured" in told["skipped"]
    assert "why: &lt;b&gt;hopeless" in told["skipped"]
    assert "accuracy last seen 40.00 %, after epoch 2 of distil" in told["stopped"]
    assert "size 5.0 KB · latency 0.500 ms" in told["stopped"]
    assert "why: no reason given" in told["beyond a limit"]


def test_hovering_tells_the_network_that_was_given_up():
    groups = (GroupPlan(weight_bits=4, prune_ratio=0.25),)
    record = SKIPPED.model_copy(
        update={"candidate": Candidate(student="resnet8", groups=groups), "student": "resnet8", "width": 0.5, "mean_bits": 4.0}
    )
    for fact in ("resnet8 (0.5)", "mean bits 4.00", "bits 4 (f: float)", "pruned 25%"):
        assert fact in why(record)
    assert "no agreement: " in why(record, "agreement")


@pytest.mark.parametrize("kept_in", ["measurement", "missed"])
def test_a_measured_trial_beyond_a_limit_stands_at_its_accuracy(make_record, records, teacher, tmp_path, kept_in):
    made = make_record(97, 0.7, 8_000, 0.9)
    ended = {"state": "PRUNED", "ending": "limit", "size_bytes": 8000, "latency_ms": 0.9, "rungs": (RUNG,)}
    measured = made.model_copy(update=ended | {"measurement": None} | {kept_in: made.measurement})
    view = view_of([*records, measured], teacher, tmp_path)
    assert at(planes(view), 0)["beyond a limit"] == [(8.0, pytest.approx(70.0))]
    assert "accuracy 70.00 % of 144 images" in why(measured)


def test_the_kinds_stand_apart_beside_the_hypervolume_too(view):
    from results.report_search import growth

    figure = growth(view, [0], [1.0])
    listed = {trace.name: len(trace.x) for trace in figure.data if trace.showlegend}
    assert listed == {"hypervolume": 1, "failed": 1, "beyond a limit": 2, "pruned": 2} | dict.fromkeys(
        ("skipped", "stopped", "same as one given up"), 1
    )
