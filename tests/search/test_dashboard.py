"""optuna-dashboard on a finished study: started as a user starts it, and by our own command."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import optuna
import pytest
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna_dashboard import get_note, save_note, wsgi

from results.note import MARK
from results.record import read_records
from search import dashboard as command_line
from search import report
from search.constraints import pass_on
from search.dashboard import Follower
from search.showcase import STORE, LinkedArtifacts
from search.space import Constraints
from search.study import DIRECTIONS
from tests.search.studies import ONE_NETWORK, ROOT, Answer, _answer, command, load, refused, search

Capture = pytest.CaptureFixture[str]
FOLDER = Path("runs/tiny")


@contextmanager
def serving(argv: Sequence[str | Path], address: str | None) -> Iterator[str]:
    """Address of the server that `argv` starts; None: it says where."""
    with (
        Path("dashboard.log").open("w") as log,
        subprocess.Popen(argv, stdout=log, stderr=log, env=os.environ | {"PYTHONPATH": str(ROOT)}) as process,
    ):
        try:
            yield wait_until_it_answers(address, process)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=30)


@pytest.fixture
def plain_dashboard(again: Path) -> Iterator[str]:
    """The command of the README, with the run's artefacts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = [Path(sys.executable).with_name("optuna-dashboard"), f"sqlite:///{FOLDER}/study.db", "--artifact-dir", str(FOLDER / STORE)]
    with serving([*start, "--port", str(port)], f"http://127.0.0.1:{port}") as address:
        yield address


def wait_until_it_answers(address: str | None, process: subprocess.Popen[bytes], limit_s: float = 120.0) -> str:
    """Its first start on a machine imports for a while."""
    end, reason = time.monotonic() + limit_s, ""
    while time.monotonic() < end and process.poll() is None:
        said = re.search(r"http://127.0.0.1:\d+", Path("dashboard.log").read_text())
        try:
            if address or said:
                get(f"{address or said[0]}/api/studies")
                return address or said[0]
        except urllib.error.URLError as error:
            reason = str(error)
        time.sleep(0.2)
    raise AssertionError(f"no dashboard at {address}: {reason}; exit code {process.poll()}; {Path('dashboard.log').read_text()[-500:]}")


def get(address: str) -> Any:
    """The JSON answer."""
    return json.loads(content(address))


def content(address: str) -> bytes:
    """The answer. Without proxies: urllib's shared opener keeps those that another test had set."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(address, timeout=10) as answer:
        return answer.read()


def detail_of(address: str) -> dict[str, Any]:
    (study,) = get(f"{address}/api/studies")["study_summaries"]
    return get(f"{address}/api/studies/{study['study_id']}?after=0") | {"id": study["study_id"]}


def started(capfd: Capture, *argv: str) -> Answer:
    return _answer(capfd, command_line.main, argv)


def test_the_dashboard_shows_metrics_notes_plots_and_models_of_a_run(plain_dashboard: str) -> None:
    detail = detail_of(plain_dashboard)
    assert (detail["name"], detail["directions"]) == ("tiny", ["maximize", "minimize", "minimize"])
    assert detail["objective_names"] == ["accuracy", "size_bytes", "latency_ms"]
    assert "python -m search.export_best --study tiny --rank R" in detail["note"]["body"]
    planes = {"plane-size-accuracy", "plane-latency-accuracy", "plane-size-latency"}
    assert {plot["id"] for plot in detail["plotly_graph_objects"]} == planes | {"hypervolume", "bits", "time"}
    assert all(json.loads(plot["graph_object"])["data"] for plot in detail["plotly_graph_objects"])
    complete = [trial for trial in detail["trials"] if trial["state"] == "Complete"]
    assert len(complete) == 2
    assert len(json.dumps(complete)) < 20_000 * len(complete)  # the page loads all of them at once
    for record, trial in zip(read_records(load()), complete, strict=True):
        note = trial["note"]["body"]
        assert note.startswith(f"**complete: {100 * trial['values'][0]:.2f} %, ")
        assert all(word in note for word in ("resnet8", "bits, first layer", "seconds: ", "distil", str(record.path)))
        assert sorted(each["filename"] for each in trial["artifacts"]) == ["model.onnx", "weights.pack"]
        for each in trial["artifacts"]:
            sent = content(f"{plain_dashboard}/artifacts/{detail['id']}/{trial['trial_id']}/{each['artifact_id']}")
            assert sent == (FOLDER / str(record.path) / each["filename"]).read_bytes()


def offered_of(study: optuna.Study) -> dict[str, str]:
    return {meta.filename: meta.artifact_id for meta in optuna.artifacts.get_all_artifact_meta(study)}


def test_a_report_is_offered_as_soon_as_it_is_written(again: Path, capfd: Capture) -> None:
    """Also by optuna-dashboard, which brings nothing up to date."""
    assert _answer(capfd, report.main, []).code == 0
    offered = offered_of(load())
    assert sorted(offered) == ["report.csv", "report.html", "report.md"]
    assert _answer(capfd, report.main, []).code == 0
    assert offered_of(load()) == offered
    with LinkedArtifacts(FOLDER / STORE).open_reader(offered["report.html"]) as file:
        assert file.read() == (FOLDER / "report.html").read_bytes()


def test_who_may_only_read_a_study_gets_its_report(again: Path, capfd: Capture) -> None:
    readable = f"sqlite:///file:{FOLDER}/study.db?mode=ro&uri=true"
    answer = _answer(capfd, report.main, ["--study", "tiny", "--storage", readable])
    assert answer.code == 0
    assert answer.out.count("written: ") == 3
    assert "optuna-dashboard does not offer them: the study's database must be reachable and writable" in answer.out


def test_a_report_written_elsewhere_is_not_offered(again: Path, capfd: Capture, tmp_path: Path) -> None:
    before = offered_of(load())
    assert _answer(capfd, report.main, ["--out", str(tmp_path / "elsewhere")]).code == 0
    assert offered_of(load()) == before


def test_our_command_serves_the_newest_run_with_its_report(again: Path, capfd: Capture) -> None:
    assert _answer(capfd, report.main, []).code == 0
    with serving([sys.executable, "-m", "search.dashboard", "--port", "0"], None) as address:
        end = time.monotonic() + 60
        while not (detail := detail_of(address))["artifacts"] and time.monotonic() < end:
            time.sleep(0.2)
        offered = {each["filename"]: each["artifact_id"] for each in detail["artifacts"]}
        assert sorted(offered) == ["report.csv", "report.html", "report.md"]
        assert content(f"{address}/artifacts/{detail['id']}/{offered['report.html']}") == (FOLDER / "report.html").read_bytes()


def test_a_follower_shows_what_finished_meanwhile_and_leaves_a_note_of_yours_alone(again: Path) -> None:
    study = load()
    follow = Follower(study, FOLDER)
    follow()
    assert MARK in get_note(study)
    study.add_trial(study.get_trials()[0])  # without a note, as in a study of an older version
    save_note(study, "mine")
    follow()
    assert get_note(study) == "mine"
    attributes = study._storage.get_study_system_attrs(study._study_id)
    assert attributes[f"dashboard:{study.get_trials()[-1]._trial_id}:note_ver"] == 1


def test_a_report_written_again_keeps_its_one_artefact(again: Path) -> None:
    study, path = load(), FOLDER / "report.md"
    for text in ("first", "second"):
        path.write_text(text)
        Follower(study, FOLDER)()
    (artifact_id,) = [meta.artifact_id for meta in optuna.artifacts.get_all_artifact_meta(study) if meta.filename == path.name]
    with LinkedArtifacts(FOLDER / STORE).open_reader(artifact_id) as file:
        assert file.read() == b"second"


def test_a_study_deleted_in_the_dashboard_ends_the_command_in_a_line(again: Path) -> None:
    study = load()
    optuna.delete_study(study_name="tiny", storage=study._storage)
    with pytest.raises(Exception, match="a study must exist to be shown, but 'tiny' was deleted"):
        Follower(study, FOLDER)()


def test_an_artefact_is_the_file_itself_and_replaced_whole(tmp_path: Path) -> None:
    store, files = LinkedArtifacts(tmp_path / "store"), [tmp_path / "one", tmp_path / "two"]
    for path in files:
        path.write_text(path.name)
        with path.open("rb") as file:
            store.write("id", file)
        assert (tmp_path / "store" / "id").samefile(path)
    assert [path.read_text() for path in files] == ["one", "two"]
    store.remove("id")
    with pytest.raises(ArtifactNotFound):
        store.open_reader("id")
    assert list(store.folder.iterdir()) == []


def test_soft_constraints_are_shown(again: Path) -> None:
    record = read_records(load())[0]
    study = optuna.create_study(storage="sqlite:///soft.db", directions=list(DIRECTIONS))
    trial = study.ask()
    pass_on(Constraints(size_kb=0.001, soft=True), trial, record)
    study.tell(trial, [0.5, 1.0, 1.0])
    request: dict[str, Any] = {"PATH_INFO": "/api/studies/1", "QUERY_STRING": "after=0"}
    setup_testing_defaults(request)
    answer = b"".join(wsgi(study._storage)(request, lambda status, headers, error=None: None))
    (shown,) = json.loads(answer)["trials"]
    assert shown["constraints"] == pytest.approx([record.measurement.size_bytes - 1])


@pytest.mark.usefixtures("dot")
def test_a_candidate_beyond_a_hard_limit_is_shown_with_what_was_known_of_it(empty: Path, capfd: Capture) -> None:
    assert search(capfd, *command("--trials", "1", "--max-latency-ms", "0.000001", settings=ONE_NETWORK)).code == 0
    study = load()
    (record,) = read_records(study)
    assert (record.state, record.ending) == ("PRUNED", "limit")
    assert record.size_bytes is not None
    assert record.latency_ms is not None
    note = get_note(optuna.Trial(study, study.get_trials()[0]._trial_id))
    assert f"known before training: {record.size_bytes:,} bytes, {record.latency_ms:.3f} ms" in note
    assert "latency\\_ms must be at most 1e-06" in note


@pytest.mark.parametrize(
    ("argv", "law"),
    [
        (["--port", "99999"], "--port must be between 0 and 65535, but got 99999"),
        (["--study", "absent"], "there is no study 'absent' in sqlite:///runs/absent/study.db; run search.run first"),
        (["--prot", "1"], "unrecognized arguments: --prot 1, did you mean '--port'"),
    ],
)
def test_what_cannot_be_shown_is_refused_in_a_line(argv: list[str], law: str, again: Path, capfd: Capture) -> None:
    assert law in refused(started(capfd, *argv))


def test_a_port_that_is_taken_is_refused_in_a_line(again: Path, capfd: Capture) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        message = refused(started(capfd, "--port", str(port)))
    assert message.startswith(f"--host and --port must be free to listen on, but 127.0.0.1:{port} is not (")
