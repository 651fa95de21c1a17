"""The measuring child from the outside: started, asked within a time limit, killed."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from core.errors import one_line

ROOT = Path(__file__).resolve().parents[1]
STDERR_LINES = 5
LONGEST_POLL_MS = 2**31 - 1
"""What poll takes: 24 days."""


class ChildLost(Exception):
    """The child did not answer: the message says how it ended and its last words."""


class Child:
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
        """Send a request and wait for its answer; ChildLost when none comes."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
        except BrokenPipeError as error:
            raise ChildLost(self._last_words()) from error
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
            if not poll.poll(min(max(deadline - time.monotonic(), 0) * 1000, LONGEST_POLL_MS)):
                raise ChildLost("did not finish in time and was stopped; raise runtime.timeout_s (--timeout-s) if the model is that slow")
            part = self._process.stdout.read(65536)
            if not part:
                raise ChildLost(self._last_words())
            line += part
        return line

    def _last_words(self) -> str:
        """How it ended, and the last lines of its stderr."""
        code = self._process.wait()
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()[-STDERR_LINES:]
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return f"{how}; its last words: {one_line(' | '.join(lines)) or 'none'}"
