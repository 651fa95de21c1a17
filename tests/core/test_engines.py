"""Laws of the engine host, on a real child with real and broken models."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from pydantic import ValidationError

from core.cli import run_main
from core.config import RuntimeConfig
from core.engines import EngineHost, main
from core.errors import DiskRefused, EngineBuildError, MeasurementError, UserError
from core.measuring import LOCK, measuring, open_lock
from tests.tiny_onnx import CHANNELS, CLASSES, IMAGES, SIZE, Classifier, greedy, not_finite, unsupported

QUICK = RuntimeConfig(name="onnxruntime", warmup_s=0.0, max_s=0.05)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[EngineHost]:
    with EngineHost(QUICK, tmp_path / "work") as host:
        yield host


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Classifier(quantised=True).save(tmp_path_factory.mktemp("models") / "model.onnx")


def child_pid(host: EngineHost) -> int:
    assert host._child is not None
    return host._child.pid


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_predictions_are_the_models_for_every_batch(host: EngineHost, model: Path, batch: int) -> None:
    logits, artifact = host.predict(model, IMAGES, batch=batch)
    np.testing.assert_allclose(logits, Classifier(quantised=True).logits(IMAGES), atol=0.05)
    assert (artifact.runtime, artifact.precision, artifact.layers) == ("onnxruntime", "f32", 3)
    assert artifact.model_path == str(model)


def test_a_latency_says_how_it_was_measured(tmp_path: Path, model: Path) -> None:
    with EngineHost(RuntimeConfig(name="openvino", batch=2, warmup_s=0.0, max_s=0.05), tmp_path) as host:
        report = host.latency(model)
    assert 0 < report.ci_ms[0] <= report.p50_ms <= report.ci_ms[1]
    assert report.p50_ms < 1000
    assert report.samples > 0
    assert (report.batch, report.threads, report.runtime, report.precision) == (2, 1, "openvino", "f32")
    assert report.fingerprint == host.fingerprint


def test_the_child_lives_through_many_requests(host: EngineHost, model: Path) -> None:
    host.predict(model, IMAGES)
    pid = child_pid(host)
    host.latency(model)
    assert child_pid(host) == pid


def test_equal_keys_are_measured_once_even_by_the_next_host(tmp_path: Path, model: Path) -> None:
    with EngineHost(QUICK, tmp_path) as host:
        first = host.latency(model, key="structure")
        assert host.latency(model, key="structure") == first
        assert host.latency(model, key="other") != first
    with EngineHost(QUICK, tmp_path) as host:
        assert host.latency(model, key="structure") == first
        assert host._child is None  # nothing was measured
    with EngineHost(QUICK.model_copy(update={"batch": 2}), tmp_path) as host:
        assert host.latency(model, key="structure").batch == 2


def test_a_damaged_cache_is_measured_again(tmp_path: Path, model: Path) -> None:
    (tmp_path / "latency.json").write_text('{"structure')
    with EngineHost(QUICK, tmp_path) as host:
        report = host.latency(model, key="structure")
    assert report.model_dump(mode="json") in json.loads((tmp_path / "latency.json").read_text()).values()


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_model_that_does_not_build_is_one_failed_request(tmp_path: Path, model: Path, runtime: str) -> None:
    corrupt = tmp_path / "corrupt.onnx"
    corrupt.write_bytes(model.read_bytes()[:300])
    with EngineHost(QUICK.model_copy(update={"name": runtime}), tmp_path) as host:
        for broken in (corrupt, unsupported(tmp_path / "unsupported.onnx"), tmp_path / "missing.onnx"):
            with pytest.raises(EngineBuildError, match=broken.name) as raised:
                host.predict(broken, IMAGES)
            assert "\n" not in str(raised.value)
        assert host.predict(model, IMAGES)[0].shape == (len(IMAGES), CLASSES)


def test_images_of_another_size_are_refused_with_both_shapes(host: EngineHost, model: Path) -> None:
    with pytest.raises(EngineBuildError, match=rf"\(1, {CHANNELS}, {SIZE}, {SIZE}\), but got \(1, {CHANNELS}, 4, 4\)"):
        host.predict(model, np.zeros((1, CHANNELS, 4, 4), np.float32))


def test_logits_that_are_not_finite_are_no_measurement(host: EngineHost, tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match="7 of 7 images"):
        host.predict(not_finite(tmp_path / "nan.onnx"), IMAGES)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_model_that_needs_more_memory_than_there_is_is_one_failed_request(runtime: str, tmp_path: Path, model: Path) -> None:
    with EngineHost(QUICK.model_copy(update={"name": runtime}), tmp_path) as host:
        for request in (host.latency, lambda path: host.predict(path, IMAGES)):
            with pytest.raises(EngineBuildError, match=rf"{runtime} (cannot build or run|was killed)") as raised:
                request(greedy(tmp_path / "greedy.onnx"))
            assert "\n" not in str(raised.value)
        assert host.predict(model, IMAGES)[0].shape == (len(IMAGES), CLASSES)


def test_a_request_beyond_its_time_limit_is_stopped(tmp_path: Path, model: Path) -> None:
    with EngineHost(QUICK.model_copy(update={"timeout_s": 0.01}), tmp_path) as host:
        with pytest.raises(EngineBuildError, match=r"did not finish in time.*limit 0\.01 s"):
            host.predict(model, IMAGES)
        assert host._child is None


def test_a_child_killed_between_requests_is_replaced(host: EngineHost, model: Path) -> None:
    host.predict(model, IMAGES)
    pid = child_pid(host)
    os.kill(pid, signal.SIGKILL)
    host._child._process.wait()  # type: ignore[union-attr]
    assert host.predict(model, IMAGES)[0].shape == (len(IMAGES), CLASSES)
    assert child_pid(host) != pid


def test_a_child_killed_within_a_request_fails_it_with_the_signal(tmp_path: Path, model: Path) -> None:
    done = threading.Event()

    def keep_killing(host: EngineHost) -> None:
        while not done.wait(0.3):
            child = host._child
            if child is not None:
                with suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGSEGV)

    with EngineHost(QUICK.model_copy(update={"warmup_s": 30.0}), tmp_path) as host:
        killer = threading.Thread(target=keep_killing, args=(host,))
        killer.start()
        try:
            with pytest.raises(EngineBuildError, match="killed by signal 11"):
                host.latency(model)
        finally:
            done.set()
            killer.join()
        assert host.predict(model, IMAGES)[0].shape == (len(IMAGES), CLASSES)


def test_closing_ends_the_child_and_leaves_only_the_cache(tmp_path: Path, model: Path) -> None:
    with EngineHost(QUICK, tmp_path) as host:
        host.predict(model, IMAGES)
        host.latency(model, key="structure")
        pid = child_pid(host)
    assert not psutil.pid_exists(pid)
    assert [path.name for path in tmp_path.iterdir()] == ["latency.json"]


def test_the_child_ends_with_its_parent(tmp_path: Path, model: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; import numpy as np\n"
        "from core.config import RuntimeConfig; from core.engines import EngineHost\n"
        f"host = EngineHost(RuntimeConfig(name='onnxruntime'), Path({str(tmp_path)!r}))\n"
        f"host.predict(Path({str(model)!r}), np.zeros((1, {CHANNELS}, {SIZE}, {SIZE}), np.float32))\n"
        "print(host._child.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    pid = int(result.stdout)
    deadline = time.monotonic() + 5
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_measurement_waits_for_the_one_that_runs_on_this_machine(host: EngineHost, model: Path) -> None:
    host.predict(model, IMAGES)
    released = []

    def hold(ready: threading.Event) -> None:
        with measuring(60.0):
            ready.set()
            time.sleep(0.3)
            released.append(time.monotonic())

    ready = threading.Event()
    other = threading.Thread(target=hold, args=(ready,))
    other.start()
    ready.wait()
    host.latency(model)
    assert time.monotonic() >= released[0]
    other.join()


def test_who_waits_too_long_is_told_who_measures(host: EngineHost, model: Path) -> None:
    def hold(ready: threading.Event, done: threading.Event) -> None:
        with measuring(5.0):
            ready.set()
            done.wait()

    ready, done = threading.Event(), threading.Event()
    other = threading.Thread(target=hold, args=(ready, done))
    other.start()
    ready.wait()
    try:
        with EngineHost(QUICK.model_copy(update={"wait_s": 0.1}), Path(host._folder.name)) as impatient:
            law = rf"one measurement runs at a time.*that of process {os.getpid()} \(.*not ended within 0\.1 s"
            with pytest.raises(MeasurementError, match=law):
                impatient.latency(model)
    finally:
        done.set()
        other.join()
    assert host.latency(model).p50_ms > 0


def test_another_temporary_folder_is_no_way_round_the_one_who_measures(tmp_path: Path) -> None:
    code = "from core.measuring import measuring\nwith measuring(0.0): pass"
    with measuring(60.0):
        result = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True, check=False
        )
    assert f"that of process {os.getpid()} (" in result.stderr


def test_the_lock_is_for_all_users_and_no_link_is_followed(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        os.close(open_lock(tmp_path / "lock"))
    finally:
        os.umask(before)
    assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o666
    os.close(open_lock(tmp_path / "lock"))
    (tmp_path / "precious").write_text("years of work")
    (tmp_path / "planted").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="planted"):
        open_lock(tmp_path / "planted")
    assert (tmp_path / "precious").read_text() == "years of work"
    assert LOCK.name.endswith(".lock")


def test_more_threads_than_cores_are_refused_since_they_would_not_run(tmp_path: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    with pytest.raises(UserError, match=rf"runtime\.threads may be up to {cores} .* but is {cores + 1}; lower it"):
        EngineHost(QUICK.model_copy(update={"threads": cores + 1}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DiskRefused, match=r"file/work must be writable, but: Not a directory"):
        EngineHost(QUICK, tmp_path / "file" / "work")


def test_whoever_waits_for_a_host_that_is_closed_is_told_so(tmp_path: Path, model: Path) -> None:
    """Wherever the closing thread meets it: the child ends, its pipes close and the folder goes in turn."""
    ended = []

    def ask(host: EngineHost) -> None:
        try:
            while True:
                host.predict(model, IMAGES)
        except BaseException as error:
            ended.append(error)

    for _ in range(8):
        host = EngineHost(QUICK, tmp_path)
        host.predict(model, IMAGES)
        asking = threading.Thread(target=ask, args=(host,))
        asking.start()
        host.close()
        asking.join()
    assert [type(error) for error in ended] == [EngineBuildError] * 8, ended
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("timeout_s", [86400.0 * 30, 1e300])
def test_a_limit_longer_than_poll_can_wait_is_none(timeout_s: float, tmp_path: Path, model: Path) -> None:
    with EngineHost(QUICK.model_copy(update={"timeout_s": timeout_s}), tmp_path) as host:
        assert host.predict(model, IMAGES)[0].shape == (len(IMAGES), CLASSES)


def test_a_limit_that_never_comes_is_refused(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(main, ["build", str(model), "--sm", "89", "--timeout-s", "inf"]) == 2
    assert "--timeout-s a number above 0, but got 1 and inf" in capsys.readouterr().err
    with pytest.raises(ValidationError, match="finite"):
        RuntimeConfig(timeout_s=float("inf"))


def test_a_measurement_has_its_own_seconds_beside_the_time_limit(tmp_path: Path, model: Path) -> None:
    limits = {"timeout_s": 0.01, "warmup_s": 0.0, "max_s": 0.02}  # a child takes longer to start
    with EngineHost(QUICK.model_copy(update=limits), tmp_path) as host, pytest.raises(EngineBuildError, match=r"limit 0\.08 s"):
        host.latency(model)


def test_stable_measurements_alone_leave_the_quiet_time_of_the_reference_to_the_next(tmp_path: Path, model: Path) -> None:
    with EngineHost(QUICK.model_copy(update={"max_s": 4.0}), tmp_path) as host:
        report = host.latency(model)
    file = tmp_path / "latency.json"
    kept = json.loads(file.read_text()).get("quiet_ms", {}) if file.exists() else {}
    # whether it is stable, and how many blocks nothing disturbed, is up to the machine
    assert kept == ({f"{report.fingerprint} precision=f32": [report.reference_ms]} if report.stable else {})  # nothing was known before
    assert report.blocks + report.redone >= (10 if report.stable else 1)
    assert report.busy_cores is None or report.busy_cores >= 0


def test_a_precision_that_the_runtime_lacks_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"onnxruntime executes float layers in f32 only.*bf16"):
        EngineHost(QUICK.model_copy(update={"precision": "bf16"}), tmp_path)


def test_the_child_answers_in_json_lines_alone() -> None:
    requests = '{"op": "ping"}\nnonsense\n{"op": "dance"}\n'
    result = subprocess.run(
        [sys.executable, "-m", "core.engine_child"], input=requests, capture_output=True, text=True, check=True, timeout=60
    )
    ping, nonsense, dance = (json.loads(line) for line in result.stdout.splitlines())
    assert ping["ok"]["pid"] > 0
    assert nonsense["error"] == dance["error"] == "engine"


def test_what_native_code_prints_does_not_reach_the_answers() -> None:
    code = (
        "import os, core.engine_child as child\n"
        "child.OPS['noise'] = lambda request: {'written': os.write(1, b'native noise')}\n"
        "raise SystemExit(child.main())"
    )
    result = subprocess.run([sys.executable, "-c", code], input='{"op": "noise"}\n', capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == {"ok": {"written": 12}}
    assert "native noise" in result.stderr
