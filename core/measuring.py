"""One measurement at a time on a machine, whoever starts it: a lock that says who holds it."""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from core.errors import MeasurementError
from core.files import writing

POLL_S = 0.05
LOCK = Path("/tmp/paretopress-measure.lock")
"""The file that whoever measures on this machine holds, and in which he says who he is. One for all users, whatever their TMPDIR; a
container whose /tmp is its own does not see those outside it."""
MAX_OWNER_BYTES = 1000


@contextmanager
def measuring(wait_s: float, given_up: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Within it nobody else measures here. Raises MeasurementError, naming the owner, when another does so for longer than `wait_s`.

    So it does as soon as `given_up` says that nobody waits any more. DiskRefused where the lock's file may not be written.
    """
    with writing(LOCK):
        descriptor = open_lock(LOCK)
    try:
        end = time.monotonic() + wait_s
        while not _taken(descriptor):
            if given_up() or time.monotonic() >= end:
                raise MeasurementError(
                    f"one measurement runs at a time on a machine, but {_owner(descriptor)} has not ended within {wait_s:g} s; "
                    "wait for it or end it, or raise runtime.wait_s"
                )
            time.sleep(POLL_S)
        try:
            _sign(descriptor)
            yield
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # not by closing alone: a process forked meanwhile would keep it
    finally:
        os.close(descriptor)


def open_lock(path: Path) -> int:
    """A descriptor of the file `path`, made for all users where it is missing; no link is followed. Raises OSError.

    An existing file is not asked to be made: Linux refuses that for one of another user in /tmp (fs.protected_regular).
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    with suppress(FileExistsError):
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
        os.fchmod(descriptor, 0o666)  # whatever the umask
        return descriptor
    return os.open(path, flags)


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sign(descriptor: int) -> None:
    """Say who holds it, for those who wait; a full disk is no reason not to measure."""
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "command": Path(sys.argv[0]).stem, "since": time.time()}).encode(), 0)


def _owner(descriptor: int) -> str:
    """Who holds it, in words; any user may have written them."""
    try:
        owner = json.loads(os.pread(descriptor, MAX_OWNER_BYTES, 0))
        text = f"that of process {owner['pid']:d} ({owner['command']}, for {time.time() - owner['since']:.0f} s)"
    except (OSError, ValueError, KeyError, TypeError):
        return "that of another process"
    return text if text.isprintable() else "that of another process"
