import io
import json
import math
import re
import shlex
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pandas as pd
import pytest

from core.candidate import BuildReport, Candidate, GroupPlan, Rung
from results.epochs import Epoch
from results.front import front, objectives
from results.layers import LayerFacts
from results.plots import hover, inner_ticks, tick_text
from results.record import TrialRecord
from results.report import as_csv, as_markdown, sections, write_report
from results.report_front import PLANES, planes
from results.report_models import rest_of_wall
from results.report_page import page
from results.report_search import LONGEST_NAME, curves, minutes_spent, parallel
from results.report_text import chosen, device, unfinished, whole_front
from results.table import HEADINGS, teacher_cells
from results.web import PANEL
from tests.results.views import view_of

VOID = {"meta", "link", "br", "img", "hr", "input"}
LAYER = LayerFacts("conv1", (8, 1, 3, 3), 4, 60, "int8", 1, 5000)
EPOCHS = (Epoch(None, "teacher", 1.0, 2.0, 500.0, 2.0), Epoch(0, "distil", 1.0, 1.0, 500.0, 1.0))


class Balance(HTMLParser):
    """Collects tags that are not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.ids += [value for key, value in attrs if key == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def without_plotly(html: str) -> str:
    """The page without plotly's own script, which names its home page and others."""
    parts = re.split(r"(?s)<script>(.*?)</script>", html)
    library = max(parts, key=len)
    assert "plotly.js v" in library[:500]
    return html.replace(library, "")


@pytest.fixture
def full(records, teacher, tmp_path):
    """A view in which nothing is missing."""
    layers = {0: (LAYER,), 1: (LAYER, LAYER._replace(name="conv2", bits=16, execution="float"))}
    run = {"device": {"cpu": "a CPU", "cores": 2, "isa": ["avx2"], "threads": 1, "runtime": "openvino"}, "seed": 0, "wall_seconds": 60.0}
    return view_of(records, teacher, tmp_path, layers=layers, epochs=EPOCHS, run=run | {"teacher_seconds": 20.0, "started": 0.0})


def test_every_section_has_a_figure_or_a_table_when_nothing_is_missing(full):
    bare = [section.title for section in sections(full) if not section.figures and section.table is None]
    assert bare == ["What mattered"]  # which needs ten trials


@pytest.mark.parametrize("count", range(8))
def test_small_studies_say_what_is_left_out(count, records, tmp_path):
    view = view_of(records[:count], None, tmp_path)
    for path in write_report(view, tmp_path / "out"):
        assert path.stat().st_size > 100
    for section in sections(view):
        assert section.figures or section.table is not None or section.text.endswith("."), section.title
    lacking = "no teacher or no exported teacher model to measure from" if view.front else "no complete trial"
    assert f"The hypervolume is left out: there is {lacking}." in [section.text for section in sections(view)]


def test_a_study_of_failures_is_reported(records, teacher, tmp_path):
    view = view_of([records[3], records[5]], teacher, tmp_path)
    html = page(view, sections(view))
    assert "the loss is NaN" in html
    assert "its size is dominated" in html
    assert "0 models are on the front" in html


def test_the_page_loads_nothing_from_a_network(full):
    ours = without_plotly(page(full, sections(full)))
    assert not re.search(r"https?://|//cdn|@import|url\(", ours)
    assert "sendDataToCloud" not in ours


def test_the_page_is_well_formed(full):
    parser = Balance()
    parser.feed(page(full, sections(full)))
    parser.close()
    assert (parser.open, parser.wrong) == ([], [])
    assert len(parser.ids) == len(set(parser.ids))


def test_names_cannot_inject_html_or_other_parts_of_the_page(make_record, teacher, tmp_path):
    name = "</script><script>alert(1)</script>{{STYLE}}"
    record = make_record(0, 0.9, 5_000, 0.1, student=name)
    view = view_of([record], teacher, tmp_path, layers={0: (LAYER._replace(name=name),)}, name="<b>&{{STYLE}}")
    html = page(view, sections(view))
    assert "<script>alert" not in html
    assert "<title>Study &lt;b&gt;&amp;{{STYLE}}</title>" in html
    assert html.count("prefers-color-scheme:dark") == 1


def test_the_planes_hold_the_values_of_the_records(full):
    figure = planes(full)
    traces = [trace for trace in figure.data if trace.name.startswith("front")]
    for trace, (x, y) in zip(traces, PLANES, strict=True):
        by_rank = {int(rank): (a, b) for rank, a, b in zip(trace.text, trace.x, trace.y, strict=True)}
        for rank, record in enumerate(full.front):
            point = objectives(record)
            assert by_rank[rank] == pytest.approx((point[x.place] * x.factor, point[y.place] * y.factor))
    latency = next(trace for trace in traces if trace.error_x.array is not None)
    assert latency.error_x.array == pytest.approx([0.01 * value for value in latency.x])


def test_the_minutes_of_the_hypervolume_are_those_that_trials_took_whichever_worker_ran_them(full):
    minutes = minutes_spent(full.records)
    assert minutes[full.records[-1].number] * 60 == pytest.approx(sum(sum(record.seconds.values()) for record in full.records))
    growth = next(section for section in sections(full) if section.title == "How the search went on")
    assert "added up" in growth.figures[0].layout.xaxis2.title.text
    assert "where several workers searched at once, the clock showed less" in growth.text


def test_dominated_trials_are_dimmed_and_unfinished_ones_stand_beside_the_hypervolume(full):
    plots = [json.loads(figure.to_json()) for section in sections(full) for figure in section.figures]
    names = {trace.get("name"): trace for plot in plots for trace in plot["data"]}
    assert names["dominated"]["marker"]["opacity"] < 0.6
    assert [len(names[name]["x"]) for name in ("pruned", "failed")] == [1, 1]
    assert "the loss is NaN" in names["failed"]["hovertext"][0]


def test_the_csv_has_no_latency_of_a_device_that_the_study_has_left(make_record, teacher, tmp_path):
    done = make_record(0, 0.9, 5_000, 0.1)
    told = {"state": "PRUNED", "ending": "limit", "reason": "accuracy must be at least 0.95", "measurement": None}
    here = done.model_copy(update={**told, "number": 1, "missed": done.measurement, "latency_ms": 0.1})
    left = here.model_copy(update={"number": 2, "latency_ms": None})
    frame = pd.read_csv(io.StringIO(as_csv(view_of([done, here, left], teacher, tmp_path)))).set_index("trial")
    assert frame["accuracy"].tolist() == [0.9] * 3
    assert frame["latency_p50_ms"].isna().tolist() == frame["times_faster"].isna().tolist() == [False, False, True]


def test_the_csv_holds_every_trial_with_its_own_numbers(full):
    beyond = TrialRecord(number=7, state="PRUNED", ending="limit", reason="too slow", size_bytes=5400, latency_ms=0.5)
    missed = full.records[0].model_copy(update={"number": 8, "state": "PRUNED", "measurement": None, "missed": full.records[0].measurement})
    full = replace(full, records=(*full.records, beyond, missed))
    frame = pd.read_csv(io.StringIO(as_csv(full))).set_index("trial")
    assert list(frame.index) == [record.number for record in full.records]
    for record in full.records:
        row = frame.loc[record.number]
        assert row["state"] == record.state
        assert record.ending == (None if pd.isna(row["ending"]) else row["ending"])
        if record.measurement is not None:
            assert (row["accuracy"], row["size_bytes"], row["latency_p50_ms"]) == objectives(record)
            assert row["seconds"] == pytest.approx(sum(record.seconds.values()))
    assert tuple(frame.loc[7, ["size_bytes", "size_kb", "latency_p50_ms"]]) == (5400, 5.4, 0.5)
    assert frame.loc[8, "accuracy"] == missed.missed.accuracy
    ranks = {record.number: rank for rank, record in enumerate(full.front)}
    assert frame["rank"].dropna().to_dict() == ranks
    assert frame.loc[5, "reason"] == "the loss is NaN"


def test_the_chosen_models_are_those_that_stand_out(full):
    table = chosen(full, (0.9, 20.0, 0.0))
    named = {name: row for row in table.rows for name in row[0].split(", ")}
    assert named["most accurate"][1] == "0"
    assert named["smallest"][1] == named["fastest"][1] == "2"
    assert "balanced" in named
    assert named["teacher"][5] == "400.0"
    assert all(len(row) == len(table.headings) for row in table.rows)


def test_the_balanced_model_is_spoken_of_where_there_is_one(full):
    without = replace(full, teacher=None)
    for view, there in ((full, True), (without, False)):
        section = sections(view)[0]
        assert any("balanced" in row[0] for row in section.table.rows) == there
        assert ("The balanced one" in section.text) == there


def test_a_teacher_that_was_not_timed_is_no_times_faster(records, teacher, tmp_path):
    report = BuildReport(
        runtime="tensorrt_rtx", compute_capability=("86",), batch=1, threads=1, precision="int8", fingerprint="0" * 12,
        engine_bytes=1000, scored_in="onnxruntime",
    )  # fmt: skip
    built = teacher.model_copy(update={"latency": report})
    place = HEADINGS.index("x faster")
    assert [teacher_cells(each)[place] for each in (built, teacher)] == ["-", "1.0"]
    for each, faster in ((built, "-"), (teacher, "1.0")):
        table = chosen(view_of(records, each, tmp_path), None)
        assert table.rows[0][table.headings.index("x faster")] == faster


def test_every_command_of_the_report_names_the_study_and_can_be_run(full):
    text = as_markdown(full, sections(full))
    commands = re.findall(r"python -m search\.(?:report|explain|export_best)[^`.(]*", text)
    assert len(commands) >= 3
    assert all("--study made" in command for command in commands)
    odd = replace(full, run=full.run | {"command": ["--data-dir", "my images", "--set", "student.name=[a, b]"]})
    told = dict(device(odd).rows)["command"]
    assert told.startswith("python -m search.run ")
    assert shlex.split(told)[3:] == odd.run["command"]


def test_a_study_began_with_its_first_start_and_took_what_all_took(full):
    started = full.run | {"starts": [{"started": 0.0}, {"started": 86_400.0}], "started": 86_400.0, "wall_seconds": 25.0}
    told = dict(device(replace(full, run=started)).rows)
    assert (told["begun"], told["took"]) == ("1970-01-01 00:00 UTC", "25 s")


def test_what_several_workers_took_is_not_taken_from_a_clock(full):
    stages = {"distil": 10.0}
    alone, several = (replace(full, run=full.run | {"starts": [{"workers": 1}, {"workers": number}]}) for number in (1, 2))
    assert rest_of_wall(alone, stages) == {"teacher (once)": 20.0, "all else": 30.0}
    assert rest_of_wall(several, stages) == {"teacher (once)": 20.0}


def test_sizes_are_called_what_they_are(full):
    for view, words, others in (
        (full, "of the packed weight file", "entropy-coded"),
        (replace(full, space={"objectives": {"size": "coded"}}), "of the entropy-coded weight file", "of the packed weight file"),
    ):
        text = as_markdown(view, sections(view))
        assert words in text
        assert others not in text
        assert ("The teacher is counted bit-packed" in text) == view.coded


def test_damaged_files_are_named_where_they_are_missed(full):
    damaged = replace(full, damaged={2: "model.onnx is damaged"})
    section = next(section for section in sections(damaged) if section.title == "Bits in every layer")
    assert "Rank 2 is left out: model.onnx is damaged." in section.text
    assert section.figures


def test_a_scored_test_accuracy_is_shown_and_another_is_not(records, teacher, tmp_path):
    best = front(records)[0]
    view = view_of(records, teacher, tmp_path, tests={best.fingerprint: {"accuracy": 0.8125, "images": 16, "interval": [0.5, 0.9]}})
    tests = {row[1]: row[4] for row in chosen(view, None).rows}
    assert tests == {"-": "-", "0": "81.25", "2": "-"}


def test_markdown_and_page_show_the_same_table(full, tmp_path):
    html, markdown, _ = (path.read_text(encoding="utf-8") for path in write_report(full, tmp_path))
    for row in whole_front(full).rows:
        assert "| " + " | ".join(row) + " |" in markdown
        assert re.search("".join(f"<td[^>]*>{re.escape(cell)}</td>" for cell in row), html)


def test_a_study_without_labels_calls_its_accuracy_an_agreement(records, teacher, tmp_path):
    taught = [
        record.model_copy(update={"measurement": record.measurement.model_copy(update={"judged_by": "teacher"})})
        if record.measurement
        else record
        for record in records
    ]
    view, plain = view_of(taught, teacher, tmp_path), view_of(records, teacher, tmp_path)
    for judged, here, absent in ((view, "agreement", "accuracy"), (plain, "accuracy", "agreement")):
        for table in (whole_front(judged), chosen(judged, None)):
            assert f"{here} %" in table.headings
            assert f"{absent} %" not in table.headings
    page_text, plain_text = (as_markdown(each, sections(each)) for each in (view, plain))
    assert "Nobody labelled the images" in page_text
    assert "names the class that the teacher names" in page_text
    assert "Nobody labelled" not in plain_text
    assert "| agreement | share of images on which a model and the teacher name the same class |" in page_text
    assert "| agreement | share of images on which the engine and PyTorch give the same answer |" in plain_text
    assert planes(view).layout.yaxis.title.text == "agreement with the teacher, %"
    assert hover(taught[0], teacher).split("<br>")[1].startswith("agreement 90.00 %")
    assert set(pd.read_csv(io.StringIO(as_csv(view)))["judged_by"].dropna()) == {"teacher"}


def test_learning_curves_show_the_accuracy_where_it_was_watched(records, teacher, tmp_path):
    watched = (*EPOCHS, Epoch(1, "distil", 1.0, 2.0, 500.0, 1.0, 0.1, 0.25), Epoch(1, "distil", 2.0, 2.0, 500.0, 0.9, 0.1, 0.5))
    figure = curves(view_of(records, teacher, tmp_path, epochs=watched))
    drawn = {(trace.name.split(",")[0], trace.yaxis): list(trace.y) for trace in figure.data if trace.y}
    titles = {axis: figure.layout[f"yaxis{axis[1:]}"].title.text for _, axis in drawn}
    accuracy = next(axis for axis, title in titles.items() if title == "accuracy, %")
    assert drawn["trial 1", accuracy] == [25.0, 50.0]
    assert [values for (who, _), values in drawn.items() if who == "trial 1"] == [[1.0, 0.9], [25.0, 50.0]]
    assert [values for (who, _), values in drawn.items() if who == "teacher"] == [[2.0]]
    without = curves(view_of(records, teacher, tmp_path, epochs=EPOCHS))
    assert {trace.name.split(",")[0] for trace in without.data} == {"teacher", "trial 0"}


def test_what_was_known_of_a_trial_that_was_given_up_is_told(make_record):
    rung = Rung(stage="distil", epoch=1.0, accuracy=0.4)
    beyond = TrialRecord(number=0, state="PRUNED", ending="limit", size_bytes=5400, latency_ms=0.5, reason="too slow")
    stopped = TrialRecord(number=1, state="PRUNED", ending="stopped", rungs=(rung,), reason="hopeless")
    failed = TrialRecord(number=2, state="FAIL", reason="broken")
    missed = make_record(3, 0.75, 5_000, 0.1).model_copy(
        update={"state": "PRUNED", "ending": "limit", "rungs": (rung,), "measurement": None}
    )
    missed = missed.model_copy(update={"missed": make_record(3, 0.75, 5_000, 0.1).measurement, "reason": "accuracy"})
    assert unfinished([beyond, stopped, failed, missed]).rows == (
        ("0", "limit", "5.4", "0.500", "-", "too slow"),
        ("1", "stopped", "-", "-", "40.0", "hopeless"),
        ("2", "failed", "-", "-", "-", "broken"),
        ("3", "limit", "-", "-", "75.0", "accuracy"),
    )


def test_bits_are_drawn_as_they_are_stored(full):
    figure = next(section for section in sections(full) if section.title == "Bits in every layer").figures[0]
    assert [list(row) for row in figure.data[0].text] == [["4", ""], ["4", "16f"]]


def test_a_space_in_which_nothing_varies_is_drawn(make_record, teacher, tmp_path):
    candidate = Candidate(student="resnet8", groups=(GroupPlan(weight_bits=4),))
    record = make_record(0, 0.9, 5_000, 0.1).model_copy(update={"candidate": candidate})
    view = view_of([record], teacher, tmp_path)
    lines = next(section for section in sections(view) if section.title == "From choices to results").figures[0].data[0]
    assert all(dimension.range[0] < dimension.range[1] for dimension in lines.dimensions)


def test_a_figure_is_pushed_sideways_before_its_panels_become_too_narrow(full):
    html = page(full, sections(full))
    widths = {
        name: int(width)
        for name, width in re.findall(r'<div class="scroll"><div class="plot" id="([^"]+)" style="[^"]*min-width:(\d+)px', html)
    }
    assert widths.keys() == set(re.findall(r'data-plot="([^"]+)"', html))
    assert widths["the-front-0"] >= len(PLANES) * PANEL
    assert min(widths.values()) >= PANEL


def test_long_names_leave_room_for_the_other_axes_and_stay_apart(make_record, teacher, tmp_path):
    names = [f"timm:{'very_' * 12}{number}{'_long_network' * 4}" for number in range(2)]
    figure = parallel(
        view_of([make_record(0, 0.9, 5_000, 0.1, student=names[0]), make_record(1, 0.8, 4_000, 0.1, student=names[1])], teacher, tmp_path)
    )
    first = figure.data[0].dimensions[0]
    assert len(set(first["values"])) == len(set(first.ticktext)) == 2
    assert max(map(len, first.ticktext)) <= LONGEST_NAME
    assert figure.layout.margin.l <= 30 + 7 * LONGEST_NAME


RANGES = [[2.1, 1100.0], [0.058, 0.123], [0.061, 0.151], [0.09, 0.16], [4.2, 10.3], [9.6, 10.4], [0.4, 0.41], [5.0], [], [1e-4, 1e7]]


@pytest.mark.parametrize("values", RANGES)
def test_ticks_are_inside_the_values_and_readable(values):
    ticks = inner_ticks(values)
    assert all(min(values) <= tick <= max(values) for tick in ticks)
    assert 2 <= len(ticks) <= 11 or len(values) < 2
    assert all(math.log(b / a) > math.log(max(values) / min(values)) / 11 for a, b in pairwise(ticks))
    reached = [(values[0], ticks[0]), (ticks[-1], values[-1])] if values else []
    assert all(math.log(b / a) <= 0.4 * math.log(values[-1] / values[0]) for a, b in reached)  # no end of the axis is bare
    assert [tick_text(value) for value in (0.0583, 1000.0, 2.0, 1097.8)] == ["0.0583", "1000", "2", "1100"]
