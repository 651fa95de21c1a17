"""Who runs a trial: host, process and its start, so that a restart can tell a dead owner from a living one."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import psutil

OWNER_KEY = "owner"
PROC = Path("/proc")
STATE_FIELD, START_FIELD = 0, 19
"""Of /proc/<pid>/stat behind the name: the process's state, and its start in ticks since the machine's."""


def current_owner() -> dict[str, Any]:
    """This process, as a trial attribute."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, **(_life(pid) or {})}


def is_dead(owner: dict[str, Any], one_machine: bool = False) -> bool:
    """True when the owner was on this host and no longer runs.

    Of another host's process nothing is known: False, but where a study cannot leave its machine (`one_machine`) it is one that
    the study has left: True.
    """
    if owner.get("host") != socket.gethostname():
        return one_machine
    life = _life(int(owner["pid"]))
    if life is None or life["boot"] != owner.get("boot", life["boot"]):
        return True
    if "boot" not in owner:  # signed by an earlier version, with seconds of the clock
        return abs(psutil.Process(int(owner["pid"])).create_time() - float(owner["start"])) > 1.0
    # pids are used again: the start tells two processes apart
    return bool(life["start"] != owner["start"])


def _life(pid: int) -> dict[str, Any] | None:
    """Which boot of the machine and when in it the process began; None when there is none, or a zombie.

    Never seconds of the clock: those of a living process change when somebody sets the clock.
    """
    if not (PROC / "self" / "stat").exists():
        try:
            process = psutil.Process(pid)
            return None if process.status() == psutil.STATUS_ZOMBIE else {"boot": "", "start": process.create_time()}
        except psutil.NoSuchProcess:
            return None
    try:
        # the name is in brackets and may hold spaces and brackets of its own
        fields = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    boot = (PROC / "sys" / "kernel" / "random" / "boot_id").read_text(encoding="ascii").strip()
    return None if fields[STATE_FIELD] in "ZX" else {"boot": boot, "start": int(fields[START_FIELD])}
