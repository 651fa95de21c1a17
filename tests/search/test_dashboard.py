"""optuna-dashboard reads a study as it is: started as a user starts it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def dashboard(again: Path) -> Iterator[str]:
    """Address of a dashboard on the finished study."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = "sqlite:///runs/tiny/study.db"
    command = [
        Path(sys.executable).with_name("optuna-dashboard"),
        url,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with (
        Path("dashboard.log").open("w") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as process,
    ):
        try:
            address = f"http://127.0.0.1:{port}"
            wait_until_it_answers(address, process)
            yield address
        finally:
            process.kill()


def wait_until_it_answers(address: str, process: subprocess.Popen[bytes], limit_s: float = 120.0) -> None:
    """Its first start on a machine imports for a while."""
    end, reason = time.monotonic() + limit_s, ""
    while time.monotonic() < end and process.poll() is None:
        try:
            get(f"{address}/api/studies")
            return
        except urllib.error.URLError as error:
            reason = str(error)
            time.sleep(0.2)
    raise AssertionError(f"no dashboard at {address}: {reason}; exit code {process.poll()}; {Path('dashboard.log').read_text()[-500:]}")


def get(address: str) -> Any:
    """The JSON answer. Without proxies: urllib's shared opener keeps those that another test had set."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(address, timeout=10) as answer:
        return json.load(answer)


def test_the_dashboard_shows_the_study_with_its_metrics_and_small_attributes(dashboard: str) -> None:
    (study,) = get(f"{dashboard}/api/studies")["study_summaries"]
    assert (study["study_name"], study["directions"]) == ("tiny", ["maximize", "minimize", "minimize"])
    detail = get(f"{dashboard}/api/studies/{study['study_id']}?after=0")
    assert detail["objective_names"] == ["accuracy", "size_bytes", "latency_ms"]
    complete = [trial for trial in detail["trials"] if trial["state"] == "Complete"]
    assert len(complete) == 2
    assert len(json.dumps(complete)) < 20_000 * len(complete)  # the page loads all of them at once
