"""Who runs a trial: host, process and its start time, so that a restart can tell a dead owner from a living one."""

from __future__ import annotations

import socket
from typing import Any

import psutil

OWNER_KEY = "owner"


def current_owner() -> dict[str, Any]:
    """This process, as a trial attribute."""
    process = psutil.Process()
    return {"host": socket.gethostname(), "pid": process.pid, "start": process.create_time()}


def is_dead(owner: dict[str, Any]) -> bool:
    """True when the owner was on this host and no longer runs. Of another host's process nothing is known: False."""
    if owner.get("host") != socket.gethostname():
        return False
    try:
        process = psutil.Process(int(owner["pid"]))
        # pids are used again: the start time tells two processes apart
        return abs(process.create_time() - float(owner["start"])) > 1.0 or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
