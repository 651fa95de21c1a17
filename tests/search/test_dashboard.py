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
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def get(address: str) -> Any:
    """The JSON answer, waiting for the server to come up."""
    for _ in range(300):
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                return json.load(answer)
        except urllib.error.URLError:
            time.sleep(0.1)
    raise AssertionError(f"no answer from {address}")


def test_the_dashboard_shows_the_study_with_its_metrics_and_small_attributes(dashboard: str) -> None:
    (study,) = get(f"{dashboard}/api/studies")["study_summaries"]
    assert (study["study_name"], study["directions"]) == ("tiny", ["maximize", "minimize", "minimize"])
    detail = get(f"{dashboard}/api/studies/{study['study_id']}?after=0")
    assert detail["objective_names"] == ["accuracy", "size_bytes", "latency_ms"]
    complete = [trial for trial in detail["trials"] if trial["state"] == "Complete"]
    assert len(complete) == 2
    assert len(json.dumps(complete)) < 20_000 * len(complete)  # the page loads all of them at once
