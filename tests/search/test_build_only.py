"""Studies without a GPU for GPUs: engines are built by the real TensorRT-RTX and not timed, so there are two objectives."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from core.candidate import BuildReport
from core.runtimes import RUNTIMES
from results.record import TrialRecord, read_records
from search import refine, report
from search.study import METRICS
from tests.search.studies import DOT, _answer, command, export, load, refused, search, states

Capture = pytest.CaptureFixture[str]
SETTINGS = [*DOT, "quantise.execution=[int8, float]", "quantise.weight_bits=[4, 8]"]
BUILT = command("--runtime", "tensorrt_rtx", "--build-only", "80", "8.9", "--trials", "3", settings=SETTINGS)
TARGETS = ("SM80", "SM89")
pytestmark = pytest.mark.skipif(
    RUNTIMES["tensorrt_rtx"]().version is None, reason="tensorrt_rtx is not installed: pip install -e '.[tensorrt-rtx]'"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/tiny, whose engines were built only."""
    import contextlib
    import io

    from core.students import STUDENTS
    from search.run import main
    from tests.search.studies import Dot

    folder, before = tmp_path_factory.mktemp("built"), Path.cwd()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(STUDENTS, "dot", Dot)
        os.chdir(folder)
        try:
            with contextlib.redirect_stdout(io.StringIO()) as out:
                assert main(BUILT) == 0
        finally:
            os.chdir(before)
    (folder / "stdout.txt").write_text(out.getvalue())
    return folder


@pytest.fixture
def built(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dot: None) -> Path:
    """The working directory: a copy of it."""
    shutil.copytree(made, tmp_path / "again")
    monkeypatch.chdir(tmp_path / "again")
    return tmp_path / "again"


def verify(bundle: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "verify.py", "--seconds", "0.1"]
    return subprocess.run(command, cwd=bundle, capture_output=True, text=True, check=False)


def records() -> list[TrialRecord]:
    return read_records(load())


@pytest.mark.slow
def test_a_trial_builds_a_real_engine_and_has_two_objectives(built: Path) -> None:
    study = load()
    assert states(study).count("COMPLETE") == 3
    assert tuple(study.metric_names or ()) == METRICS[:2]
    for trial, record in zip(study.trials, records(), strict=True):
        assert record.measurement is not None
        latency = record.measurement.latency
        assert isinstance(latency, BuildReport)
        assert (latency.runtime, latency.compute_capability, latency.scored_in) == ("tensorrt_rtx", TARGETS, "onnxruntime")
        engine = Path("runs/tiny") / str(record.path) / "model.engine"
        assert engine.stat().st_size == latency.engine_bytes
        assert latency.layers == 2
        if record.ending != "reused":
            assert trial.user_attrs["engine"]["runtime"] == "tensorrt_rtx"
        assert trial.values == [record.measurement.accuracy, record.measurement.size_bytes]


def test_what_is_not_measurable_is_said_and_not_shown_as_a_number(built: Path, capfd: Capture) -> None:
    reason = "latency: not measurable here, tensorrt_rtx only built engines for SM80, SM89 (answers by onnxruntime)"
    out = Path("stdout.txt").read_text()
    assert out.count(reason) >= 2  # the teacher's line and the front's caption
    rows = [line.split() for line in Path("runs/tiny/front.csv").read_text().splitlines()]
    assert rows
    assert ",,,,," in Path("runs/tiny/front.csv").read_text().splitlines()[1]
    assert "not measurable here" in Path("runs/tiny/front.html").read_text()
    assert _answer(capfd, report.main, ["--study", "tiny"]).code == 0
    text = Path("runs/tiny/report.md").read_text()
    assert "only built engines for SM80, SM89" in text
    assert "The study has two objectives, accuracy and size." in text
    assert "fastest" not in text


def test_a_study_without_latencies_continues_and_is_explained(built: Path, capfd: Capture) -> None:
    from search import explain

    assert search(capfd, *[word if word != "3" else "4" for word in BUILT]).code == 0
    assert len(load().trials) == 4
    answer = _answer(capfd, explain.main, ["--study", "tiny", "--rank", "0"])
    assert answer.code == 0, answer
    assert "compute layers in INT8" in answer.out
    assert " ms" not in answer.out.split("MACs say")[0].replace("ms per layer", "")


def test_an_exported_point_holds_the_engine_and_its_digest(built: Path, capfd: Capture) -> None:
    answer = export(capfd, "--rank", "0")
    assert answer.code == 0, answer
    assert "not timed (SM80, SM89)" in answer.out
    bundle = Path("exported/tiny-rank0")
    manifest = json.loads((bundle / "bundle.json").read_text())
    facts = manifest["engine"]
    assert (facts["files"], facts["device"]) == (["model.engine"], "SM80, SM89")
    assert facts["version"] == RUNTIMES["tensorrt_rtx"]().version
    assert "model.engine" in manifest["files"]
    assert "`model.engine`" in (bundle / "README.md").read_text()
    assert "Latency was not measured" in (bundle / "MODEL_CARD.md").read_text()
    assert "p50_ms" not in json.loads((bundle / "measurement.json").read_text())["search"]["latency"]
    verified = subprocess.run(
        [sys.executable, "-I", "verify.py", "--seconds", "0.1"], cwd=bundle, capture_output=True, text=True, check=False
    )
    assert verified.returncode == 0, verified
    assert "stated tensorrt_rtx" in verified.stdout
    (bundle / "model.engine").write_bytes(b"stale")
    verified = subprocess.run(
        [sys.executable, "-I", "verify.py", "--seconds", "0.1"], cwd=bundle, capture_output=True, text=True, check=False
    )
    assert (verified.returncode, verified.stdout.splitlines()[-1]) == (1, "differs: model.engine")


def test_another_runtime_scores_and_times_a_point_whose_engine_was_only_built(built: Path, capfd: Capture) -> None:
    answer = export(capfd, "--rank", "0", "--runtime", "onnxruntime")
    assert answer.code == 0, answer
    assert "from tensorrt_rtx to onnxruntime" in answer.out
    measured = json.loads(Path("exported/tiny-rank0-onnxruntime/measurement.json").read_text())
    assert measured["search"]["latency"]["p50_ms"] > 0
    assert "engine" not in json.loads(Path("exported/tiny-rank0-onnxruntime/bundle.json").read_text())


@pytest.mark.usefixtures("built")
def test_a_front_that_was_only_built_is_timed_where_it_runs_or_refused(capfd: Capture) -> None:
    if RUNTIMES["tensorrt_rtx"]().device == "cuda" and shutil.which("nvidia-smi"):
        pytest.skip("here is a GPU")
    assert "tensorrt_rtx needs an NVIDIA GPU" in refused(_answer(capfd, refine.main, ["--remeasure"]))


@pytest.mark.usefixtures("built")
def test_a_limit_of_latency_is_refused_where_there_is_none(capfd: Capture) -> None:
    assert "--max-latency-ms needs latencies" in refused(export(capfd, "--max-latency-ms", "1"))


@pytest.mark.usefixtures("dot", "empty")
@pytest.mark.parametrize(
    ("more", "settings", "law"),
    [
        (["--build-only", "90"], [], "builds for one or more of SM75, SM80, SM86, SM89, SM120, SM121, but got SM90"),
        (["--build-only", "89", "--runtime", "openvino"], [], "only tensorrt_rtx builds engines"),
        (["--build-only", "--max-latency-ms", "1"], [], "constraints.latency_ms limits a latency, but runtime.build_for"),
        (["--build-only"], ["runtime.agent=http://device:8080"], "must be empty where runtime.agent is given"),
        (["--build-only", "eighty"], [], "runtime.build_for"),
    ],
)
def test_what_cannot_be_built_only_is_refused_in_a_line(more: list[str], settings: list[str], law: str, capfd: Capture) -> None:
    assert law in refused(search(capfd, *command(*more, settings=[*SETTINGS, *settings])))


@pytest.mark.usefixtures("dot", "empty")
def test_a_dry_run_builds_engines_and_says_that_none_is_timed(capfd: Capture) -> None:
    answer = search(capfd, *command("--build-only", "--dry-run", settings=SETTINGS))
    assert answer.code == 0, answer
    assert "latency not measurable: engines are only built" in answer.out
    assert not Path("runs/tiny/study.db").exists()
    assert "build_for: [SM80, SM86, SM89, SM120]" in answer.out
