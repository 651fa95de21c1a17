"""Report and explanation of a real study, as a user asks for them; the page in a real browser."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from core.pack import unpack
from results.front import front
from results.layers import read_layers, rest_bytes
from results.record import TrialRecord, read_records
from results.view import read_view
from results.web import ACCENT, COLOURS, POLICY, STAR
from search import explain, report
from tests.browser import in_a_browser, photographed, rendered
from tests.search.studies import Answer, _answer, load, refused

Capture = pytest.CaptureFixture[str]


def reported(capfd: Capture, *argv: str) -> Answer:
    return _answer(capfd, report.main, argv)


def explained(capfd: Capture, *argv: str) -> Answer:
    return _answer(capfd, explain.main, argv)


def records() -> list[TrialRecord]:
    return read_records(load())


@in_a_browser
@pytest.mark.slow
def test_the_page_draws_every_figure_in_a_browser_without_a_complaint(again: Path, tmp_path: Path, capfd: Capture) -> None:
    assert reported(capfd).code == 0
    document, complaints = rendered(Path("runs/tiny/report.html"), tmp_path / "profile")
    assert complaints == []
    places = re.findall(r'data-plot="([^"]+)"', document)
    assert len(places) >= 6
    for place in places:
        assert re.search(
            rf'<div class="plot[^"]*js-plotly-plot"[^>]* id="{place}"|id="{place}"[^>]*class="plot[^"]*js-plotly-plot', document
        )


@in_a_browser
@pytest.mark.parametrize(("page", "scheme"), [("report.html", "light"), ("report.html", "dark"), ("front.html", "dark")])
@pytest.mark.slow
def test_a_page_is_drawn_in_the_scheme_of_its_reader(page: str, scheme: str, again: Path, tmp_path: Path, capfd: Capture) -> None:
    if page == "report.html":
        assert reported(capfd).code == 0
    pixels, complaints = photographed(Path("runs/tiny") / page, tmp_path / "profile", scheme)
    assert complaints == []
    colours = COLOURS[scheme]
    background, beside = (colour for colour, _ in pixels.most_common(2))
    assert {background, beside} == {colours["page"], colours["card"]}
    assert len(pixels) > 50
    # text, the axes' lines and, of the figures, the front and the teacher
    for colour in (colours["ink"], colours["line"], ACCENT, STAR):
        assert pixels[colour] >= 20, colour
    other = COLOURS["dark" if scheme == "light" else "light"]
    assert pixels[other["card"]] < pixels.total() / 100


@in_a_browser
def test_a_page_that_fails_or_reaches_out_would_be_noticed(tmp_path: Path) -> None:
    page = tmp_path / "wrong.html"
    head = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    page.write_text(head + '<script src="https://example.org/x.js"></script><script>throw new Error("broken")</script>')
    complaints = rendered(page, tmp_path / "profile")[1]
    assert [word for word in ("example.org", "broken") if any(word in line for line in complaints)] == ["example.org", "broken"]


def test_the_report_of_a_study_is_three_files_with_its_numbers(again: Path, capfd: Capture) -> None:
    answer = reported(capfd, "--out", "told")
    assert answer.out.splitlines() == ["written: told/report.html", "written: told/report.md", "written: told/report.csv"]
    frame = pd.read_csv("told/report.csv")
    assert list(frame["size_bytes"]) == [record.measurement.size_bytes for record in records() if record.measurement]
    markdown = Path("told/report.md").read_text()
    for record in front(records()):
        assert record.measurement is not None
        assert f"{100 * record.measurement.accuracy:.2f}" in markdown
    assert "Left out: importances need at least 10" in markdown


def test_a_run_records_its_epochs_and_the_report_draws_them(again: Path, capfd: Capture) -> None:
    lines = pd.read_csv("runs/tiny/epochs.csv")
    trained = lines[lines["trial"].isna()]
    assert list(trained["epoch"]) == [1, 2, 3, 4]  # teacher.train.epochs=4
    assert list(lines[(lines["trial"] == 1) & (lines["stage"] == "distil")]["epoch"]) == [1, 2]
    reported(capfd)
    assert "Mean training loss after each epoch" in Path("runs/tiny/report.md").read_text()


def test_a_study_whose_files_are_gone_is_still_reported(again: Path, capfd: Capture) -> None:
    shutil.move("runs/tiny/study.db", "study.db")
    shutil.rmtree("runs/tiny")
    answer = reported(capfd, "--study", "tiny", "--storage", "sqlite:///study.db", "--out", "told")
    assert answer.code == 0, answer
    markdown = Path("told/report.md").read_text()
    # what the hypervolume is measured from is kept in the study itself
    for sentence in ("run.json of this study is not there", "It stands at", "files of the models of the front are not in"):
        assert sentence in markdown
    answer = explained(capfd, "--study", "tiny", "--storage", "sqlite:///study.db")
    assert "The layers are not shown: the files of trial" in answer.out


def test_one_damaged_file_keeps_nothing_else_from_being_told(again: Path, capfd: Capture) -> None:
    best = front(records())[0]
    (Path("runs/tiny") / str(best.path) / "model.onnx").write_bytes(b"broken")
    Path("runs/tiny/teacher/model.onnx").write_bytes(b"broken")
    assert reported(capfd).code == 0
    assert "Rank 0 is left out: " in Path("runs/tiny/report.md").read_text()
    answer = explained(capfd)
    assert answer.code == 0, answer
    assert re.search(r"The layers are not shown: .*model\.onnx is damaged", answer.out)
    assert "What a change would cost" in answer.out
    view = read_view(load(), Path("runs/tiny"), {})
    assert set(view.damaged) == {0, None}
    assert set(view.layers) == set(range(len(view.front))) - {0}


def test_the_layers_of_a_model_add_up_to_its_file_and_to_its_measurement(again: Path) -> None:
    for record in front(records()):
        assert record.measurement is not None
        assert record.candidate is not None
        folder = Path("runs/tiny") / str(record.path)
        layers = read_layers(folder)
        assert sum(layer.size_bytes for layer in layers) + rest_bytes(folder, layers) == record.measurement.size_bytes
        assert sum(layer.macs or 0 for layer in layers) == record.measurement.macs
        assert sum(layer.bits for layer in layers) / len(layers) == record.mean_bits
        assert {f"{layer.name}.weight" for layer in layers} <= unpack((folder / "weights.pack").read_bytes()).keys()
        assert layers[0].shape[1] == 1  # digits are grey: the first layer is the one that sees the image
        assert layers[-1].shape[0] == 10


def test_the_execution_read_from_the_graph_is_the_one_that_was_sampled(again: Path) -> None:
    for record in records():
        assert record.candidate is not None
        layers, groups = read_layers(Path("runs/tiny") / str(record.path)), record.candidate.groups
        asked = [groups[index * len(groups) // len(layers)].execution for index in range(len(layers))]
        assert [layer.execution for layer in layers] == asked


def test_an_explanation_names_every_layer_and_adds_up(again: Path, capfd: Capture) -> None:
    answer = explained(capfd, "--rank", "0", "--no-time-layers")
    assert answer.code == 0, answer
    best = front(records())[0]
    assert best.measurement is not None
    lines = answer.out.splitlines()
    assert lines[0].startswith(f"rank 0 (trial {best.number}) of tiny: {best.student}")
    layers = read_layers(Path("runs/tiny") / str(best.path))
    table = lines[3 : 3 + len(layers)]
    assert [line.split()[0] for line in table] == [layer.name for layer in layers]
    total = next(line for line in lines if line.startswith("total"))
    assert f"{best.measurement.size_bytes:,}" in total
    assert "Milliseconds per layer are not shown" in answer.out
    assert "no regression: it needs trials that differ" in answer.out


def test_the_layers_of_a_model_are_timed_in_the_study_s_runtime(again: Path, capfd: Capture) -> None:
    answer = explained(capfd)
    assert answer.code == 0, answer
    heading, *rows = answer.out.splitlines()[2:]
    assert heading.split() == ["layer", "shape", "MACs", "bits", "bytes", "share", "ms", "runs", "in", "why"]
    column = heading.index("ms") + 2
    layers = read_layers(Path("runs/tiny") / str(front(records())[0].path))
    times = [row[:column].split()[-1] for row in rows[: len(layers) + 2]]
    assert all(float(each) >= 0 for each in times)
    assert "to about a microsecond" in answer.out
    assert "This is not the device of the study." not in answer.out


@pytest.mark.parametrize(
    ("argv", "law"),
    [
        (
            ["--study", "absent"],
            "there is no study 'absent' in sqlite:///runs/absent/study.db; run search.run first, or name another --study",
        ),
        (["--study", "a/b"], "a study's name has letters, digits, "),
        (["--storage", "nonsense"], "--storage must be a database URL"),
        (["--rnak", "1"], "unrecognized arguments: --rnak 1"),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_line(argv: list[str], law: str, again: Path, capfd: Capture) -> None:
    assert law in refused(reported(capfd, *argv))
    assert law in refused(explained(capfd, *argv))


def test_a_rank_beyond_the_front_is_refused(again: Path, capfd: Capture) -> None:
    assert "--rank must be between 0 and " in refused(explained(capfd, "--rank", "99"))


def test_nothing_run_yet_is_said(empty: Path, capfd: Capture) -> None:
    assert "there is no run in runs/" in refused(reported(capfd))


def test_a_run_whose_folder_was_renamed_is_told_the_studys_name(again: Path, capfd: Capture) -> None:
    Path("runs/tiny").rename("runs/tiny2")
    message = refused(reported(capfd))
    law = "there is no study 'tiny2' in sqlite:///runs/tiny2/study.db, which holds 'tiny'; a run's folder must have its study's name: "
    assert message == f"{law}give it that one again, or name another --study"
