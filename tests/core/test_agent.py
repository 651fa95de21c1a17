"""Laws of the agent and its client: real requests over a real socket, real models, real faults."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from core.agent import AgentServer, Limits, Measurer, _options
from core.agent_client import LENGTH_HEADER, OPTIONS_HEADER, TOKEN_VARIABLE, _there
from core.config import RuntimeConfig
from core.engines import EngineHost
from core.errors import Disturbed, EngineBuildError, MeasurementError, UserError
from core.latency import longest_s
from core.measuring import measuring
from core.runtimes import RUNTIMES
from core.upload import check_upload
from tests.tiny_onnx import IMAGES, Classifier, not_finite, save_model, unsupported

TOKEN = "a-token-of-the-tests"
MAX_BYTES = 200_000
QUICK = RuntimeConfig(name="onnxruntime", warmup_s=0.0, max_s=0.05, timeout_s=60.0)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentServer]:
    measurer = Measurer(Limits(MAX_BYTES, 60.0), tmp_path_factory.mktemp("agent"))
    server = AgentServer(("127.0.0.1", 0), TOKEN, measurer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()
    measurer.close()


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Classifier(quantised=True).save(tmp_path_factory.mktemp("models") / "model.onnx")


def through(server: AgentServer, **more: object) -> RuntimeConfig:
    return QUICK.model_copy(update={"agent": f"http://127.0.0.1:{server.server_port}", **more})


def test_a_model_is_timed_and_run_there_as_it_would_be_here(server: AgentServer, model: Path, tmp_path: Path) -> None:
    with EngineHost(through(server), tmp_path / "there") as there, EngineHost(QUICK, tmp_path / "here") as here:
        assert (there.runtime, there.device, there.fingerprint) == (here.runtime, here.device, here.fingerprint)
        report = there.latency(model, key="structure")
        assert (report.fingerprint, report.runtime, report.batch) == (here.fingerprint, "onnxruntime", 1)
        assert report.samples > 0
        assert there.latency(model, key="structure") == report  # kept here
        np.testing.assert_array_equal(there.predict(model, IMAGES)[0], here.predict(model, IMAGES)[0])
        artifact = there.predict(model, IMAGES)[1]
        assert artifact == here.predict(model, IMAGES)[1]
        assert there._child is None


def test_many_images_go_in_parts(server: AgentServer, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.agent_client.CHUNK_BYTES", 2 * IMAGES[0].nbytes + 1)
    with EngineHost(through(server), tmp_path) as there:
        logits, _ = there.predict(model, IMAGES, batch=2)
    np.testing.assert_allclose(logits, Classifier(quantised=True).logits(IMAGES), atol=0.05)


def test_a_wrong_token_or_none_is_one_clear_line(server: AgentServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "guessed")
    with pytest.raises(UserError, match=r"the token must be the one that core\.agent printed"):
        EngineHost(through(server), tmp_path)
    monkeypatch.delenv(TOKEN_VARIABLE)
    with pytest.raises(UserError, match=f"{TOKEN_VARIABLE} is not set"):
        EngineHost(through(server), tmp_path)


def test_no_agent_at_that_address_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must be the address of a running core\.agent, but http://127\.0\.0\.1:9 is not"):
        EngineHost(QUICK.model_copy(update={"agent": "http://127.0.0.1:9"}), tmp_path)


def test_a_model_beyond_the_limit_is_refused_before_it_is_sent_and_by_the_agent(server: AgentServer, model: Path, tmp_path: Path) -> None:
    large = tmp_path / "large.onnx"
    large.write_bytes(model.read_bytes() + bytes(MAX_BYTES))
    with EngineHost(through(server), tmp_path / "work") as there:
        with pytest.raises(EngineBuildError, match=r"takes requests up to 0\.2 MB, but .* start it with more --max-mb"):
            there.latency(large)
        assert there.latency(model).p50_ms > 0
    status, body = raw(server, {"Content-Length": str(10**9)}, b"")
    assert (status, b"at most 0.2 MB" in body) == (413, True)


def test_what_a_client_may_not_ask_is_refused(server: AgentServer) -> None:
    assert raw(server, {"Authorization": "Bearer x"}, b"")[0] == 401
    assert raw(server, {}, b"", path="/../etc/passwd")[0] == 404
    assert raw(server, {LENGTH_HEADER: "-1"}, b"")[0] == 411
    assert raw(server, {OPTIONS_HEADER: "[]"}, b"")[0] == 400
    assert raw(server, {OPTIONS_HEADER: '{"name": "onnxruntime", "agent": "http://elsewhere:1"}'}, b"")[0] == 400
    for options, law in (('{"threads": 100000}', b"runtime.threads"), ('{"name": "nonsense"}', b"unknown runtime")):
        status, body = raw(server, {OPTIONS_HEADER: options}, b"")
        assert (status, law in body) == (400, True), body


@pytest.mark.parametrize("seconds", [2.0, 300.0, 10_000.0])
def test_a_measurement_fits_into_the_seconds_of_a_request_and_leaves_most_of_them_to_the_build(seconds: float) -> None:
    asked = '{"max_s": 1000.0, "warmup_s": 500.0, "timeout_s": 4000.0}'
    config = _options(asked, Limits(MAX_BYTES, seconds))
    timed_s = longest_s(config.warmup_s, config.max_s)
    assert config.timeout_s + timed_s <= seconds
    assert config.timeout_s >= min(4000.0, seconds / 2)
    assert _options("{}", Limits(MAX_BYTES, 300.0)) == RuntimeConfig()


@pytest.mark.parametrize("answer", [b"[]", b'"no"', b"null", b"7"])
def test_another_server_at_that_address_is_one_clear_line(answer: bytes, tmp_path: Path) -> None:
    class Foreign(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Foreign) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with pytest.raises(UserError, match=r"must be the address of a running core\.agent, but .* did not answer as an agent does"):
                EngineHost(QUICK.model_copy(update={"agent": f"http://127.0.0.1:{server.server_port}"}), tmp_path)
        finally:
            server.shutdown()
            thread.join()


def test_an_agent_of_another_version_is_no_fault_of_the_model(server: AgentServer, model: Path, tmp_path: Path) -> None:
    facts = raw(server, {}, b"")[1]

    class Other(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            answer = facts if self.path == "/device" else b'{"latency": {"median_ms": 1.0}, "logits": "AAAA", "engine": {}}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            """Silent."""

    with HTTPServer(("127.0.0.1", 0), Other) as other:
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        try:
            with EngineHost(QUICK.model_copy(update={"agent": f"http://127.0.0.1:{other.server_port}"}), tmp_path) as host:
                for ask in (lambda: host.latency(model, key="s"), lambda: host.predict(model, IMAGES)):
                    with pytest.raises(Disturbed, match=r"must answer as this version .*; install the same version"):
                        ask()
        finally:
            other.shutdown()
            thread.join()


def raw(server: AgentServer, headers: dict[str, str], body: bytes, path: str = "/device") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    plain = {"Authorization": f"Bearer {TOKEN}", OPTIONS_HEADER: '{"name": "onnxruntime"}', LENGTH_HEADER: "0"}
    connection.request("POST", path, body, plain | headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content


def external(path: Path, secret: Path) -> Path:
    """A model whose weights are the bytes of a file on the agent's machine."""
    Classifier().save(path)
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=str(secret))
    path.write_bytes(model.SerializeToString())
    return path


def endless(path: Path) -> Path:
    """A model with a loop."""
    body = helper.make_graph([], "body", [], [])
    return save_model(path, [helper.make_node("Loop", ["images", "", ""], ["logits"], body=body)], [])


def test_hostile_models_are_refused_in_a_line_and_the_agent_goes_on(server: AgentServer, model: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(os.urandom(4096))
    noise = tmp_path / "noise.onnx"
    noise.write_bytes(b"\xff" * 999)
    hostile = {
        "names files on the machine": external(tmp_path / "external.onnx", secret),
        "must be ONNX": noise,
        "must use standard operators, but this one has nowhere": unsupported(tmp_path / "unsupported.onnx"),
        "no graphs inside its operators, but Loop has": endless(tmp_path / "endless.onnx"),
    }
    with EngineHost(through(server), tmp_path / "work") as there:
        for law, path in hostile.items():
            with pytest.raises(EngineBuildError, match=law) as raised:
                there.latency(path)
            assert "\n" not in str(raised.value)
        with pytest.raises(MeasurementError, match="must be finite"):
            there.predict(not_finite(tmp_path / "nan.onnx"), IMAGES)
        assert there.latency(model).p50_ms > 0


def test_a_tensor_outside_the_file_is_found_wherever_it_hides(tmp_path: Path) -> None:
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    node = helper.make_node("Constant", [], ["c"], value=tensor)
    with pytest.raises(EngineBuildError, match="names files on the machine"):
        check_upload(save_model(tmp_path / "hidden.onnx", [node], []).read_bytes())


def test_another_model_waits_for_its_turn_and_is_told_when_it_does_not_come(server: AgentServer, model: Path, tmp_path: Path) -> None:
    refused = pytest.raises(MeasurementError, match="one model at a time, and another one is here")
    with EngineHost(through(server, wait_s=0.1), tmp_path) as there, server.measurer.busy, refused:
        there.latency(model)
    with EngineHost(through(server), tmp_path) as there:
        assert there.latency(model).p50_ms > 0


@pytest.fixture
def process() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`python -m core.agent`, and its URL."""
    command = [sys.executable, "-m", "core.agent", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as agent:
        assert agent.stdout is not None
        yield agent, agent.stdout.readline().split()[-1]
        agent.kill()


def test_an_agent_whose_token_is_set_to_nothing_shows_the_one_that_it_made() -> None:
    command = [sys.executable, "-m", "core.agent", "--port", "0"]
    with subprocess.Popen(command, env={**os.environ, TOKEN_VARIABLE: ""}, stdout=subprocess.PIPE, text=True) as agent:
        assert agent.stdout is not None
        lines = [agent.stdout.readline() for _ in range(2)]
        agent.kill()
    assert lines[0].startswith("listening on http://127.0.0.1:")
    assert len(lines[1].partition(f"export {TOKEN_VARIABLE}=")[2].strip()) > 20


def test_an_agent_that_goes_away_within_a_measurement_fails_it(
    process: tuple[subprocess.Popen[str], str], model: Path, tmp_path: Path
) -> None:
    agent, url = process
    with EngineHost(QUICK.model_copy(update={"agent": url, "warmup_s": 30.0}), tmp_path) as there:
        killer = threading.Timer(1.0, agent.kill)
        killer.start()
        began = time.monotonic()
        with pytest.raises(EngineBuildError, match=rf"the agent {url} did not answer .*see that core\.agent runs there"):
            there.latency(model)
        agent.wait(timeout=10)
        with pytest.raises(Disturbed, match=rf"must be the address of a running core\.agent, but {url} is not: .*refused; start it there"):
            there.latency(model)  # a model cannot be the reason
        assert time.monotonic() - began < 15
        killer.join()


@pytest.mark.parametrize("elsewhere", [False, True], ids=["while it measures", "while it waits for the machine"])
def test_ctrl_c_ends_the_agent(elsewhere: bool, process: tuple[subprocess.Popen[str], str], model: Path, tmp_path: Path) -> None:
    agent, url = process
    config = QUICK.model_copy(update={"agent": url, "warmup_s": 30.0})
    with EngineHost(config, tmp_path) as there, measuring(60.0) if elsewhere else nullcontext():
        killer = threading.Timer(1.0, agent.send_signal, [signal.SIGINT])
        killer.start()
        with pytest.raises((EngineBuildError, MeasurementError)):
            there.latency(model)
        killer.join()
        assert agent.wait(timeout=15) == 130


@pytest.mark.parametrize(("isa", "precisions"), [(["avx2"], ("f32",)), (["avx2", "avx512f"], ("f32", "bf16"))])
def test_float_precisions_are_those_of_the_device_whatever_the_host_has(isa: list[str], precisions: tuple[str, ...]) -> None:
    device = {"cpu": "some", "isa": isa, "machine": "x86_64", "cores": 4}
    assert _there(RUNTIMES["openvino"](), "1.0", device).precisions == precisions
