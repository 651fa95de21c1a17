"""`python -m core.latency`, what a machine tells of itself meanwhile, and the pinned reference network."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from core.cli import run_main
from core.config import RuntimeConfig
from core.latency import main
from core.machine import _busy_s, _clock_mhz, _throttles, conditions, read_machine
from core.reference import CLASSES, SIZE, write_reference
from core.runtimes import RUNTIMES, EngineOptions
from core.yaml_io import parse
from tests.tiny_onnx import Classifier

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(Classifier(quantised=True).save(tmp_path_factory.mktemp("models") / "model.onnx"))


def test_a_latency_is_told_as_text_and_as_json(model: str, capfd: Capture) -> None:
    quick = ["--runtime", "onnxruntime", "--batch", "2", "--max-s", "0.1"]
    assert run_main(main, [model, *quick]) == 0
    text = capfd.readouterr().out
    for word in ("ms median, ", " wide), p95 ", "onnxruntime, batch 2, 1 thread(s), ", " undisturbed blocks, ", "fingerprint"):
        assert word in text
    assert run_main(main, [model, *quick, "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert (told["latency"]["batch"], told["latency"]["runtime"], told["engine"]["layers"]) == (2, "onnxruntime", 3)
    assert told["latency"]["p50_ms"] > 0
    assert told["device"]["threads"] == 1


@pytest.mark.parametrize(
    ("argv", "law"),
    [
        (["missing.onnx"], "MODEL must be an ONNX file, but there is no missing.onnx"),
        (["{model}", "--batch", "0"], "batch"),
        (["{model}", "--runtime", "openwine"], "unknown runtime 'openwine', did you mean 'openvino'?"),
        (["{model}", "--precision", "bf16", "--runtime", "onnxruntime"], "onnxruntime executes float layers in f32 only"),
        (["{model}", "--agent", "ftp://device"], "agent"),
        (["{model}", "--threads", "100000"], "runtime.threads may be up to "),
        (["{model}", "--timeout-s", "inf"], "timeout_s"),
    ],
)
def test_what_cannot_be_timed_is_refused_in_a_line(argv: list[str], law: str, model: str, capfd: Capture) -> None:
    assert run_main(main, [word.format(model=model) for word in argv]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert law in lines[0]


def test_a_file_that_is_no_model_is_refused_in_a_line(tmp_path: Path, capfd: Capture) -> None:
    (tmp_path / "noise.onnx").write_bytes(b"noise")
    assert run_main(main, [str(tmp_path / "noise.onnx"), "--runtime", "onnxruntime"]) == 2
    assert capfd.readouterr().err.startswith(
        "error: a model must build and run to be timed, but EngineBuildError: onnxruntime cannot build"
    )


@pytest.mark.parametrize("url", ["http://device:8077", "https://device", "http://127.0.0.1:8077/"])
def test_an_agent_is_named_by_its_address_alone(url: str) -> None:
    assert parse(RuntimeConfig, {"agent": url}, "a test").agent == url


def test_the_reference_network_is_the_same_bytes_every_time_and_everywhere(tmp_path: Path) -> None:
    path = write_reference(tmp_path / "reference.onnx")
    # a change of these bytes changes what "quiet" means on every machine: count VERSION up, then state the new digest
    assert hashlib.sha256(path.read_bytes()).hexdigest()[:16] == "f0b432ed2f8b3779"
    onnx.checker.check_model(onnx.load(path), full_check=True)
    logits = RUNTIMES["onnxruntime"]().load(str(path), EngineOptions(2, 1, "f32")).run(np.ones((2, 3, SIZE, SIZE), np.float32))
    assert logits.shape == (2, CLASSES)
    assert np.isfinite(logits).all()
    assert np.abs(logits).max() > 0.01  # nothing has died on the way


def test_conditions_are_those_since_the_reading() -> None:
    before = read_machine()
    sum(range(200_000))
    found = conditions(before)
    assert found["busy_cores"] is None or found["busy_cores"] >= 0
    assert found["clock_mhz"] is None or found["clock_mhz"] > 100


def test_busy_seconds_leave_idling_and_waiting_out(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    for idle, wait in ((0, 0), (5000, 70)):
        stat.write_text(f"cpu  100 20 30 {idle} {wait} 4 5 6 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n")
        assert _busy_s(stat) == pytest.approx(1.65)  # 165 ticks of 10 ms
    stat.write_text("nonsense")
    assert _busy_s(stat) is None
    assert _busy_s(tmp_path / "absent") is None


def test_the_clock_is_that_of_the_fastest_core_and_throttles_are_summed(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("model name\t: A\ncpu MHz\t\t: 1200.5\n\nmodel name\t: A\ncpu MHz\t\t: 3400.25\n")
    assert _clock_mhz(cpuinfo) == 3400.25
    cpuinfo.write_text("Features : asimd\n")
    assert _clock_mhz(cpuinfo) is None
    assert _throttles(tmp_path) is None
    for core, count in enumerate((2, 3)):
        folder = tmp_path / f"cpu{core}" / "thermal_throttle"
        folder.mkdir(parents=True)
        (folder / "core_throttle_count").write_text(f"{count}\n")
    assert _throttles(tmp_path) == 5
