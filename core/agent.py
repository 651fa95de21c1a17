"""An agent that measures for searches on other machines: python -m core.agent     on the device that will run the models

It answers POST /device, /latency and /predict, and does nothing but load ONNX through a runtime in the measuring child: one model at a
time, within limits of size and time. Who asks must know the token. It listens on 127.0.0.1 unless told otherwise, and speaks plain HTTP:
over a network you do not trust, reach it through ssh -L.
"""

from __future__ import annotations

import argparse
import base64
import hmac
import io
import json
import os
import secrets
import signal
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from core.agent_client import LENGTH_HEADER, MB, OPTIONS, OPTIONS_HEADER, TOKEN_VARIABLE
from core.cli import Parser, run_main
from core.config import RuntimeConfig
from core.engines import EngineHost
from core.errors import EngineBuildError, MeasurementError, TrialError, UserError
from core.hardware import check_threads
from core.latency import longest_s
from core.upload import check_upload
from core.yaml_io import parse

IO_S = 20.0
"""Longest silence of a client that sends."""
SLOWEST_BYTES_PER_S = 100_000
"""A client that sends more slowly is cut off."""
MAX_BATCH = 4096
TIMED = 0.1
"""Most of the seconds of a request that each of `warmup_s` and `max_s` may be: the build needs its share."""


@dataclass(frozen=True)
class Limits:
    """Of one request: bytes of its body, seconds to build and to run."""

    body_bytes: int
    seconds: float


@dataclass
class Measurer:
    """The engine host of this machine. One thread uses it, since the child ends with the thread that started it."""

    limits: Limits
    work_dir: Path
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    busy: threading.Lock = field(default_factory=threading.Lock)
    host: EngineHost | None = None
    closed: bool = False

    def answer(self, what: str, config: RuntimeConfig, model: bytes, images: bytes) -> dict[str, Any]:
        """What was asked, once nobody else's model is here. Raises UserError or TrialError."""
        if not self.busy.acquire(timeout=min(config.wait_s, self.limits.seconds)):
            raise MeasurementError("an agent takes one model at a time, and another one is here; try again, or raise runtime.wait_s")
        try:
            return self.pool.submit(self._answer, what, config, model, images).result()
        finally:
            self.busy.release()

    def close(self) -> None:
        """End the child, also in the middle of a measurement."""
        self.closed = True
        self._close()
        self.pool.shutdown()

    def _answer(self, what: str, config: RuntimeConfig, model: bytes, images: bytes) -> dict[str, Any]:
        host = self._host_for(config)
        if what == "device":
            facts = {"runtime": host.runtime.name, "version": host.runtime.version, "device": host.device}
            return {**facts, "fingerprint": host.fingerprint, "max_bytes": self.limits.body_bytes}
        check_upload(model)
        path = self.work_dir / "model.onnx"
        path.write_bytes(model)
        if what == "latency":
            report, artifact = host.time_model(path)
            return {"latency": report.model_dump(mode="json"), "engine": artifact.model_dump(mode="json")}
        logits, artifact = host.predict(path, _images(images), config.batch)
        buffer = io.BytesIO()
        np.save(buffer, logits)
        return {"logits": base64.b64encode(buffer.getvalue()).decode(), "engine": artifact.model_dump(mode="json")}

    def _host_for(self, config: RuntimeConfig) -> EngineHost:
        """The open host where it has this configuration, else a new one in its place."""
        if self.host is None or self.host.config != config:
            self._close()
            self.host = EngineHost(config, self.work_dir)
        return self.host

    def _close(self) -> None:
        if self.host is not None:
            self.host.close()
        self.host = None


class Handler(BaseHTTPRequestHandler):
    """One request. The token is looked at before anything of the body is read."""

    server: AgentServer
    timeout = IO_S
    protocol_version = "HTTP/1.0"  # one request a connection: what a refused client still sends is never taken for another

    def do_POST(self) -> None:
        """Answer with JSON; {"error": "user" | "engine" | "measurement", "message"} and a status where it is refused."""
        try:
            status, answer = HTTPStatus.OK, self._answer()
        except _Refused as error:
            status, answer = error.status, {"error": error.kind, "message": str(error)}
        except UserError as error:
            status, answer = HTTPStatus.BAD_REQUEST, {"error": "user", "message": str(error)}
        except TrialError as error:
            kind = "measurement" if isinstance(error, MeasurementError) else "engine"
            status, answer = HTTPStatus.UNPROCESSABLE_ENTITY, {"error": kind, "message": str(error)}
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """A line on stderr per request, without what a client may have put into its own line."""
        print(f"{self.client_address[0]} {self.command} {args[1] if len(args) > 1 else ''}", file=sys.stderr, flush=True)

    def version_string(self) -> str:
        """Nothing for those who only look."""
        return "agent"

    def _answer(self) -> dict[str, Any]:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ").encode()
        if not hmac.compare_digest(given, self.server.token.encode()):
            raise _Refused(HTTPStatus.UNAUTHORIZED, f"the token must be the one that core.agent printed; export it as {TOKEN_VARIABLE}")
        what = self.path.strip("/")
        if what not in ("device", "latency", "predict"):
            raise _Refused(HTTPStatus.NOT_FOUND, "an agent answers /device, /latency and /predict; use a client of the same version")
        measurer = self.server.measurer
        config = _options(self.headers.get(OPTIONS_HEADER, ""), measurer.limits)
        length, model_length = (self._number(name) for name in ("Content-Length", LENGTH_HEADER))
        if length > measurer.limits.body_bytes:
            raise _Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"an agent takes at most {measurer.limits.body_bytes / MB:g} MB, but got {length / MB:.1f}; start it with more --max-mb",
                "engine",
            )
        body = self._body(length)
        return measurer.answer(what, config, body[:model_length], body[model_length:])

    def _number(self, name: str) -> int:
        text = self.headers.get(name, "")
        if not (text.isascii() and text.isdigit() and len(text) < 16):
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, f"a request must have the header {name}; use a client of the same version")
        return int(text)

    def _body(self, length: int) -> bytes:
        """`length` bytes, in reasonable time."""
        end = time.monotonic() + IO_S + length / SLOWEST_BYTES_PER_S
        parts: list[bytes] = []
        missing = length
        while missing:
            part = self.rfile.read1(min(missing, 1 << 16))
            if not part or time.monotonic() > end:
                raise _Refused(HTTPStatus.REQUEST_TIMEOUT, f"a request must arrive whole and in time, but {missing} bytes are missing")
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)


class AgentServer(ThreadingHTTPServer):
    """Threads wait for slow clients; one thread measures."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], token: str, measurer: Measurer) -> None:
        self.token, self.measurer = token, measurer
        super().__init__(address, Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no defect, nor is a child that `close` has ended; anything else keeps its traceback."""
        if not isinstance(sys.exception(), OSError) and not self.measurer.closed:
            super().handle_error(request, client_address)


class _Refused(Exception):
    def __init__(self, status: HTTPStatus, message: str, kind: str = "user") -> None:
        super().__init__(message)
        self.status, self.kind = status, kind


def _options(text: str, limits: Limits) -> RuntimeConfig:
    """The runtime section that a client asks for, within this machine's limits. UserError when it is none."""
    try:
        asked = json.loads(text)
    except ValueError:
        asked = None
    if not isinstance(asked, dict) or not asked.keys() <= {*OPTIONS}:
        raise UserError(f"{OPTIONS_HEADER} must be a JSON object of {', '.join(OPTIONS)}; use a client of the same version")
    config = parse(RuntimeConfig, asked, OPTIONS_HEADER)
    check_threads(config.threads)
    if config.batch > MAX_BATCH:
        raise UserError(f"runtime.batch may be up to {MAX_BATCH} at an agent, but is {config.batch}; lower it")
    timed = {key: min(getattr(config, key), TIMED * limits.seconds) for key in ("warmup_s", "max_s")}
    return config.model_copy(update={**timed, "timeout_s": min(config.timeout_s, limits.seconds - longest_s(**timed))})


def _images(content: bytes) -> np.ndarray:
    """float32 (N, C, H, W), N >= 1."""
    try:
        images = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, TypeError, SyntaxError, EOFError, OSError, MemoryError) as error:
        raise EngineBuildError("images must come as one .npy array, but these bytes are none; use a client of the same version") from error
    if not isinstance(images, np.ndarray) or images.dtype != np.float32 or images.ndim != 4 or not len(images):
        raise EngineBuildError("images must be float32 (N, C, H, W) with N >= 1, but are not; use a client of the same version")
    return images


def build_parser() -> argparse.ArgumentParser:
    """The flags of core.agent."""
    parser = Parser(prog="python -m core.agent", description="Build, time and run ONNX models for searches on other machines.")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="to listen on (default %(default)s: this machine alone)")
    parser.add_argument("--port", type=int, default=8077, metavar="N", help="default %(default)s; 0: any free one")
    parser.add_argument("--max-mb", type=float, default=64.0, metavar="MB", help="largest request (default %(default)s)")
    parser.add_argument("--max-s", type=float, default=300.0, metavar="S", help="longest build or measurement (default %(default)s)")
    return parser


def main(argv: list[str]) -> int:
    """Listen until Ctrl-C."""
    args = build_parser().parse_args(argv)
    if not 0 <= args.port < 65536 or not args.max_mb > 0 or not args.max_s > 0:
        got = f"{args.port}, {args.max_mb:g} and {args.max_s:g}"
        raise UserError(f"--port must be below 65536, --max-mb and --max-s above 0, but got {got}; correct them")
    token = os.environ.get(TOKEN_VARIABLE) or secrets.token_urlsafe(24)
    with tempfile.TemporaryDirectory(prefix="paretopress-agent-") as work:
        measurer = Measurer(Limits(int(args.max_mb * MB), args.max_s), Path(work))
        try:
            server = AgentServer((args.host, args.port), token, measurer)
        except OSError as error:
            raise UserError(
                f"core.agent must be able to listen on {args.host}:{args.port}, but {error.strerror}; free it or choose another"
            ) from error
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            print(f"listening on http://{args.host}:{server.server_port}", flush=True)
            if not os.environ.get(TOKEN_VARIABLE):
                print(f"export {TOKEN_VARIABLE}={token}", flush=True)
            server.serve_forever()
        finally:
            server.server_close()
            measurer.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(main))
