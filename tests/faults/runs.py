"""Real runs in processes of their own, to be killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from core.hardware import device_facts
from search.summary import versions
from tests.search.studies import DOT, ROOT, command

PLUGIN = str(Path(__file__).with_name("dot_plugin.py"))
QUICK = [*DOT, "teacher.train.epochs=1", "parent.train.epochs=1", "runtime.max_s=0.02", "runtime.warmup_s=0"]
WORKER = "popen_loky"
"""In the command line of a loky worker."""


def facts() -> dict[str, Any]:
    """Where a campaign is run: its result file says so."""
    return {"device": device_facts(), "versions": versions()}


def argv(*more: str, study: str = "tiny") -> list[str]:
    """Arguments of a run with the student `dot`."""
    return command("--plugin", PLUGIN, *more, study=study, settings=QUICK)


def start(folder: Path, *more: str, module: str = "search.run") -> subprocess.Popen[bytes]:
    """Begin a run in `folder` with its own process group; what it prints goes to folder/log.txt."""
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", module, *more],
            cwd=folder,
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )


def log_of(folder: Path) -> str:
    """All that its runs have printed."""
    path = folder / "log.txt"
    return path.read_text(errors="replace") if path.exists() else ""


def wait_until(what: Callable[[], bool], limit_s: float = 300.0) -> None:
    """Fails when it does not become true in time."""
    end = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < end, f"nothing happened within {limit_s} s"
        time.sleep(0.05)


def family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The run, its workers, their measuring children."""
    try:
        root = psutil.Process(process.pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def workers_of(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those of `processes` that run trials."""
    found = []
    for each in processes:
        try:
            if any(WORKER in word for word in each.cmdline()):
                found.append(each)
        except psutil.NoSuchProcess:
            continue
    return found


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; a zombie that nobody has waited for runs no more."""
    return [each for each in processes if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
