"""The other end of core/agent.py: engines that are built, timed and run on another machine, one HTTP request each."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from core.candidate import EngineArtifact, LatencyReport
from core.config import RuntimeConfig
from core.errors import Disturbed, EngineBuildError, MeasurementError, UserError, one_line
from core.hardware import exact_int8_bits
from core.latency import longest_s
from core.runtimes import RUNTIMES, Runtime
from core.tables import lookup

TOKEN_VARIABLE = "PARETOPRESS_AGENT_TOKEN"
OPTIONS_HEADER, LENGTH_HEADER = "X-Runtime-Options", "X-Model-Length"
OPTIONS = ("name", "batch", "threads", "precision", "warmup_s", "max_s", "timeout_s", "wait_s")
"""Keys of `runtime` that travel."""
MB = 1_000_000
GRACE_S = 30.0
"""For the way there and back, beyond what building and measuring may take."""
CHUNK_BYTES = 16_000_000
"""Most image bytes in one request: what a small device can hold."""


class AgentConnection:
    """One runtime configuration on the machine of one agent: `runtime`, `device` and `fingerprint` are its."""

    def __init__(self, config: RuntimeConfig) -> None:
        """Ask the agent what it has. UserError when it is not there, refuses the token, or lacks the runtime."""
        assert config.agent is not None
        self._config, self._url = config, config.agent.rstrip("/")
        self._token = os.environ.get(TOKEN_VARIABLE, "")
        if not self._token:
            raise UserError(f"runtime.agent needs the token that core.agent printed, but {TOKEN_VARIABLE} is not set; export it")
        try:
            facts = self._ask("device", b"", 2 * GRACE_S)
            self.device: dict[str, Any] = facts["device"]
            self.runtime = _there(lookup(RUNTIMES, "runtime", facts["runtime"])(), facts["version"], self.device)
            self.fingerprint: str = facts["fingerprint"]
            self._max_bytes: int = facts["max_bytes"]
        except (EngineBuildError, MeasurementError, KeyError) as error:
            raise UserError(f"runtime.agent must be the address of a running core.agent, but {self._url} is not: {error}") from error

    def time_model(self, model: Path) -> tuple[LatencyReport, EngineArtifact]:
        """As EngineHost.time_model, there."""
        config = self._config
        once_s = config.timeout_s + longest_s(config.warmup_s, config.max_s)
        limit_s = 2 * once_s + config.wait_s + GRACE_S  # an unstable measurement is repeated
        answer = self._ask("latency", _read(model), limit_s)
        with self._understood():
            return LatencyReport.model_validate(answer["latency"]), self._artifact(model, answer)

    def predict(self, model: Path, images: np.ndarray, batch: int, limit_s: float) -> tuple[np.ndarray, EngineArtifact]:
        """Logits (N, K) of images float32 (N, C, H, W), sent in parts of at most CHUNK_BYTES."""
        onnx = _read(model)
        size = max(batch, CHUNK_BYTES // images[0].nbytes // batch * batch)
        logits = []
        for start in range(0, len(images), size):
            buffer = io.BytesIO()
            np.save(buffer, images[start : start + size])
            answer = self._ask(
                "predict", onnx + buffer.getvalue(), limit_s + self._config.wait_s + GRACE_S, length=len(onnx), options={"batch": batch}
            )
            with self._understood():
                logits.append(np.load(io.BytesIO(base64.b64decode(answer["logits"])), allow_pickle=False))
                artifact = self._artifact(model, answer)
        return np.concatenate(logits), artifact

    @contextmanager
    def _understood(self) -> Iterator[None]:
        """Disturbed for answers of another shape: no model can be the reason."""
        try:
            yield
        except (KeyError, TypeError, ValueError) as error:
            law = f"an agent must answer as this version of paretopress does, but {self._url} does not ({one_line(error)})"
            raise Disturbed(f"{law}; install the same version there and run the same command again") from error

    def _artifact(self, model: Path, answer: dict[str, Any]) -> EngineArtifact:
        return EngineArtifact.model_validate({**answer["engine"], "model_path": str(model)})

    def _ask(self, what: str, body: bytes, limit_s: float, length: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """The agent's answer, or the exception that it stands for; Disturbed where there is no agent."""
        if body and len(body) > self._max_bytes:
            sizes = f"{self._max_bytes / MB:g} MB, but the model and its images have {len(body) / MB:.1f}"
            raise EngineBuildError(f"the agent {self._url} takes requests up to {sizes}; start it with more --max-mb")
        asked = {key: getattr(self._config, key) for key in OPTIONS} | (options or {})
        headers = {
            "Authorization": f"Bearer {self._token}",
            "Content-Type": "application/octet-stream",
            OPTIONS_HEADER: json.dumps(asked),
            LENGTH_HEADER: str(len(body) if length is None else length),
        }
        try:
            with closing(_connected(self._url, limit_s)) as connection:
                status, text = _post(connection, f"/{what}", body, headers)
            answer = json.loads(text)
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = one_line(error) or type(error).__name__
            raise EngineBuildError(f"the agent {self._url} did not answer ({reason}); see that core.agent runs there") from error
        if not isinstance(answer, dict):
            raise EngineBuildError(f"the agent {self._url} did not answer as an agent does; see that core.agent runs there")
        if status == http.client.OK:
            return answer
        message = f"the agent {self._url} refuses: {one_line(answer.get('message', status))}"
        raise {"user": Disturbed, "measurement": MeasurementError}.get(str(answer.get("error")), EngineBuildError)(message)


def _there(entry: Runtime, version: str, device: dict[str, Any]) -> Runtime:
    """The table's entry as it is on the agent's machine."""
    exact = exact_int8_bits(device) if entry.device == "cpu" else entry.int8_bits
    return replace(entry, version=version, int8_bits=exact).on(device["isa"])


def _connected(url: str, limit_s: float) -> http.client.HTTPConnection:
    """Disturbed where nobody is there: no model can be the reason. Not urllib: it would ask a proxy for a machine in the next room."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(str(parts.hostname), parts.port, timeout=limit_s)
    try:
        connection.connect()
    except OSError as error:
        law = f"runtime.agent must be the address of a running core.agent, but {url} is not"
        raise Disturbed(f"{law}: {one_line(error) or type(error).__name__}; start it there and run the same command again") from error
    return connection


def _post(connection: http.client.HTTPConnection, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
    """Status and body of one POST."""
    with suppress(BrokenPipeError, ConnectionResetError):  # refused before all of the body was read: the answer says why
        connection.request("POST", path, body, headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


def _read(model: Path) -> bytes:
    try:
        return model.read_bytes()
    except OSError as error:
        raise EngineBuildError(f"a model must be readable, but {model} is not: {error.strerror}") from error
