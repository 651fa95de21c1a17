import json
import re

import pytest

from core.candidate import Candidate, GroupPlan
from results.front import front
from results.plots import front_figure, front_html, hover, log_ticks
from results.web import SCRIPT, STYLE


def luminance(colour: str) -> float:
    """Of "#rrggbb", in [0, 1]; without the correction for the eye."""
    return sum(int(colour[place : place + 2], 16) for place in (1, 3, 5)) / (3 * 255)


def traces(figure, name: str) -> list:
    return [trace for trace in figure.data if trace.name.startswith(name)]


def test_both_panels_hold_every_point_of_the_front_under_its_rank(records, teacher):
    size, latency = traces(front_figure(records, front(records), teacher), "front")
    for trace, values in ((size, (20.0, 10.0, 5.0)), (latency, (0.4, 0.2, 0.1))):
        assert dict(zip(trace.text, trace.x, strict=True)) == dict(zip("012", values, strict=True))
        assert dict(zip(trace.text, trace.y, strict=True)) == pytest.approx({"0": 98.0, "1": 95.0, "2": 90.0})


def test_trials_off_the_front_are_there_once_and_dimmed(records, teacher):
    for trace in traces(front_figure(records, front(records), teacher), "dominated"):
        assert len(trace.x) == 1
        assert trace.marker.opacity < 0.5


def test_the_teacher_is_a_star(records, teacher):
    size, latency = traces(front_figure(records, front(records), teacher), "teacher")
    assert size.marker.symbol == latency.marker.symbol == "star"
    assert (size.x[0], latency.x[0]) == (400.0, 0.4)
    assert not traces(front_figure(records, front(records), None), "teacher")


def test_the_staircase_never_falls(records):
    for trace in traces(front_figure(records, front(records), None), "best"):
        assert list(trace.x) == sorted(trace.x)
        assert list(trace.y) == sorted(trace.y)


def test_size_is_drawn_on_a_logarithmic_axis(records):
    layout = front_figure(records, front(records), None).layout
    assert (layout.xaxis.type, layout.xaxis2.type) == ("log", None)


def test_ticks_enclose_the_values():
    ticks = log_ticks([3.2, 1100.0])
    assert ticks[0] <= 3.2
    assert ticks[-1] >= 1100.0
    assert log_ticks([]) == []


def test_hovering_tells_everything(make_record, teacher):
    groups = (GroupPlan(weight_bits=4, prune_ratio=0.25), GroupPlan(weight_bits=16, execution="float"), GroupPlan())
    record = make_record(7, 0.9, 5_000, 0.1, stable=False).model_copy(update={"candidate": Candidate(student="resnet8", groups=groups)})
    text = hover(record, teacher, 3)
    for fact in ("rank 3", "trial 7", "90.00 %", "144 images", "5.0 KB", "80.0 x smaller", "0.100 ms", "unstable", "4.0 x faster", "n 900"):
        assert fact in text
    assert "resnet8 (0.5)" in text
    assert "mean bits 4.50" in text
    assert "p95 0.110, interval 0.099 to 0.101" in text
    assert "bits 4 16f 8" in text
    assert "pruned 25%, 0% (2 times)" in text
    assert "distil 3" in text


def test_the_page_is_whole_without_a_network(records, teacher, tmp_path):
    front_html(records, front(records), teacher, tmp_path / "front.html", title="made")
    page = (tmp_path / "front.html").read_text(encoding="utf-8")
    assert "plotly.js v" in page
    assert "Plotly.react" in page
    assert len(page) > 1_000_000
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=[\"']?(https?:)?//", page)
    assert "7 trials: 5 complete, 1 pruned, 1 failed" in page
    assert page.count("<tr>") == 1 + 3 + 1  # headings, ranks, teacher
    assert [path.name for path in tmp_path.iterdir()] == ["front.html"]


def test_the_page_follows_the_reader_s_scheme(records, teacher, tmp_path):
    front_html(records, front(records), teacher, tmp_path / "front.html")
    page = (tmp_path / "front.html").read_text(encoding="utf-8")
    assert STYLE in page
    assert SCRIPT in page
    drawn = json.loads(re.search(r'<script type="application/json" data-plot="front">(.*?)</script>', page)[1])
    own = [key for key in drawn["layout"] if key in ("template", "font", "hoverlabel") or key.endswith("bgcolor")]
    assert own == []  # what the figure fixes, no scheme can change
    light, dark = (json.loads(re.search(r'id="templates">(.*?)</script>', page)[1])[name]["layout"] for name in ("light", "dark"))
    for layout, pale in ((light, True), (dark, False)):
        assert (luminance(layout["paper_bgcolor"]) > 0.5, luminance(layout["font"]["color"]) > 0.5) == (pale, not pale)


def test_names_cannot_inject_html(make_record, tmp_path):
    record = make_record(0, 0.9, 5_000, 0.1, student="<script>alert(1)</script>")
    front_html([record], [record], None, tmp_path / "front.html", title="<b>&")
    page = (tmp_path / "front.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "<title>&lt;b&gt;&amp;</title>" in page


def test_a_study_without_a_complete_trial_still_gets_its_page(records, tmp_path):
    front_html([records[3]], [], None, tmp_path / "front.html")
    assert "No complete trial yet" in (tmp_path / "front.html").read_text(encoding="utf-8")
