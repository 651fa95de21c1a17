"""Engines from the outside: a host that has a child process build, time and run them, under a time limit.

A crash or a hang of a native library costs one request: the child is replaced and EngineBuildError says why.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from filelock import FileLock

from core.candidate import EngineArtifact, LatencyReport
from core.config import RuntimeConfig
from core.errors import EngineBuildError, MeasurementError, UserError
from core.files import write_atomically
from core.hardware import device_fingerprint
from core.runtimes import check_precision, installed_runtime, resolve_runtime

ROOT = Path(__file__).resolve().parents[1]
STDERR_LINES = 5


class EngineHost:
    """One runtime on this machine, behind one long-lived child that starts with the first request.

    `work_dir` holds the latency cache and, while the host is open, images on their way to the child.
    The child ends with the thread that made the first request: keep a host within one thread.
    """

    def __init__(self, runtime: RuntimeConfig, work_dir: Path) -> None:
        """UserError for an unknown runtime or a precision it lacks, MissingRuntime for one that is not installed."""
        self.config = runtime
        self.runtime = installed_runtime(resolve_runtime(runtime.name))
        check_precision(self.runtime, runtime.precision)
        self.device, self.fingerprint = device_fingerprint(runtime.threads, self.runtime.name, str(self.runtime.version))
        work_dir.mkdir(parents=True, exist_ok=True)
        self._cache = work_dir / "latency.json"
        self._folder = tempfile.TemporaryDirectory(dir=work_dir, prefix="engines-")
        self._child: _Child | None = None

    def __enter__(self) -> EngineHost:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the child and remove what was on its way to it. A closed host may not be used again."""
        self._replace_child()
        self._folder.cleanup()

    def latency(self, model: Path, key: str | None = None) -> LatencyReport:
        """Time one call of `batch` images of the ONNX file `model`, alone on this machine.

        A `key` names the model's structure: the same key on the same device, with the same options, is measured once
        per `work_dir`. EngineBuildError when the engine cannot be built or run.
        """
        config = self.config
        entry = f"{key} {self.fingerprint} batch={config.batch} precision={config.precision}"
        with FileLock(measurement_lock()):
            cached = _read_cache(self._cache) if key is not None else {}
            if entry in cached:
                return LatencyReport.model_validate(cached[entry])
            report = self._measure(model)
            if not report.stable:  # something else was busy; what wavers a second time is kept, and marked
                report = self._measure(model)
            if key is not None:
                _write_cache(self._cache, cached | {entry: report.model_dump(mode="json")})
        return report

    def predict(self, model: Path, images: np.ndarray, batch: int = 64) -> tuple[np.ndarray, EngineArtifact]:
        """Logits (N, K) of float32 images (N, C, H, W), N >= 1, from the engine at the same precision as it is timed.

        EngineBuildError when the engine cannot be built or run, MeasurementError when a logit is not finite. The time
        limit is that of the configuration for every 1000 images.
        """
        assert images.dtype == np.float32, images.dtype
        assert images.ndim == 4, images.shape
        assert len(images) > 0, images.shape
        source, target = Path(self._folder.name, "images.npy"), Path(self._folder.name, "logits.npy")
        np.save(source, images)
        limit_s = self.config.timeout_s * max(1.0, len(images) / 1000)
        answer = self._ask("predict", model, min(batch, len(images)), limit_s, images=str(source), out=str(target))
        logits = np.load(target, allow_pickle=False)
        finite = np.isfinite(logits).all(axis=1)
        if not finite.all():
            raise MeasurementError(
                f"an engine's logits must be finite, but those of {model} are not for {int((~finite).sum())} of {len(finite)} images"
            )
        return logits, EngineArtifact(runtime=self.runtime.name, model_path=str(model), **answer["artifact"])

    def _measure(self, model: Path) -> LatencyReport:
        """A latency as the child measured it."""
        config = self.config
        timing = {"warmup_s": config.warmup_s, "max_s": config.max_s}
        answer = self._ask("latency", model, config.batch, config.timeout_s, timing=timing)
        return LatencyReport(
            **{name: answer[name] for name in ("p50_ms", "p95_ms", "ci_ms", "samples", "stable")},
            batch=config.batch,
            threads=config.threads,
            runtime=self.runtime.name,
            precision=answer["artifact"]["precision"],
            fingerprint=self.fingerprint,
        )

    def _ask(self, op: str, model: Path, batch: int, limit_s: float, **more: Any) -> dict[str, Any]:
        """The child's answer about one engine within `limit_s`, or the exception it stands for."""
        options = {"batch": batch, "threads": self.config.threads, "precision": self.config.precision}
        request = {"op": op, "model": str(Path(model).resolve()), "runtime": self.runtime.name, "options": options, **more}
        if self._child is None or not self._child.alive():
            self._replace_child()
            self._child = _Child(Path(self._folder.name))
        try:
            answer = self._child.ask(request, limit_s)
        except _ChildLost as error:
            self._replace_child()
            raise EngineBuildError(f"{self.runtime.name} {error} ({op} of {model}, limit {limit_s:g} s)") from error
        except BaseException:  # Ctrl-C in between: the answer that comes later would be taken for that of the next request
            self._replace_child()
            raise
        if "ok" in answer:
            return answer["ok"]
        if answer["error"] == "user":
            raise UserError(answer["message"])
        raise EngineBuildError(f"{self.runtime.name} cannot build or run {model}: {_one_line(answer['message'])}")

    def _replace_child(self) -> None:
        """Kill the child, if any; the next request starts another."""
        if self._child is not None:
            self._child.kill()
        self._child = None


def measurement_lock() -> Path:
    """The file that whoever measures on this machine holds."""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir(), f"paretopress-measure-{user}.lock")


class _ChildLost(Exception):
    """The child did not answer: the message says how it ended and its last words."""


class _Child:
    """One running core/engine_child.py."""

    def __init__(self, folder: Path) -> None:
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        # a file, not a pipe: nobody has to drain it
        self._stderr = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (kill closes it)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "core.engine_child", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        self.pid = self._process.pid

    def alive(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send a request and wait for its answer; _ChildLost when none comes."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
        except BrokenPipeError as error:
            raise _ChildLost(self._last_words()) from error
        return json.loads(self._read_line(time.monotonic() + timeout_s))

    def kill(self) -> None:
        """End it now and close what belongs to it."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            if stream is not None:
                stream.close()

    def _read_line(self, deadline: float) -> bytes:
        """The next line of its stdout."""
        assert self._process.stdout is not None
        poll = select.poll()
        poll.register(self._process.stdout, select.POLLIN | select.POLLHUP)
        line = b""
        while not line.endswith(b"\n"):
            if not poll.poll(max(deadline - time.monotonic(), 0) * 1000):
                raise _ChildLost("did not finish in time and was stopped; raise runtime.timeout_s if the model is that slow")
            part = self._process.stdout.read(65536)
            if not part:
                raise _ChildLost(self._last_words())
            line += part
        return line

    def _last_words(self) -> str:
        """How it ended, and the last lines of its stderr."""
        code = self._process.wait()
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()[-STDERR_LINES:]
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return f"{how}; its last words: {_one_line(' | '.join(lines)) or 'none'}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _read_cache(path: Path) -> dict[str, Any]:
    """Reports by entry; a missing or damaged file is an empty cache, since measuring again is always right."""
    try:
        cached = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return cached if isinstance(cached, dict) else {}


def _write_cache(path: Path, reports: dict[str, Any]) -> None:
    """Whole or not at all."""
    write_atomically(path, json.dumps(reports, indent=1, sort_keys=True))
