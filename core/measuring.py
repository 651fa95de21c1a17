"""One measurement at a time on a machine: a lock that says who holds it."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from core.errors import MeasurementError

POLL_S = 0.05


def measurement_lock() -> Path:
    """The file that whoever measures on this machine holds."""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir(), f"paretopress-measure-{user}.lock")


@contextmanager
def measuring(wait_s: float, given_up: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Within it nobody else measures here. Raises MeasurementError, naming the owner, when another does so for longer than `wait_s`.

    So it does as soon as `given_up` says that nobody waits any more.
    """
    path = measurement_lock()
    lock = FileLock(path)
    try:
        lock.acquire(timeout=wait_s, poll_interval=POLL_S, cancel_check=given_up)
    except Timeout as error:
        raise MeasurementError(
            f"one measurement runs at a time on a machine, but {_owner(path)} has not ended within {wait_s:g} s; "
            "wait for it or end it, or raise runtime.wait_s"
        ) from error
    try:
        # beside the lock, since its own file is emptied by whoever asks for it
        _owner_file(path).write_text(json.dumps({"pid": os.getpid(), "command": Path(sys.argv[0]).stem, "since": time.time()}))
        yield
    finally:
        lock.release()


def _owner_file(path: Path) -> Path:
    return path.with_suffix(".owner")


def _owner(path: Path) -> str:
    """Who holds it, in words."""
    try:
        owner = json.loads(_owner_file(path).read_text(encoding="utf-8"))
        return f"that of process {owner['pid']} ({owner['command']}, for {time.time() - owner['since']:.0f} s)"
    except (OSError, ValueError, KeyError, TypeError):
        return "that of another process"
