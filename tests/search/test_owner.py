"""Whether the owner of a trial is dead is known of processes on this host alone."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil

from search.owner import _life, current_owner, is_dead


def test_this_process_is_alive() -> None:
    assert not is_dead(current_owner())


def test_another_hosts_process_is_never_called_dead() -> None:
    assert not is_dead({"host": "elsewhere", "pid": 2**22 + 1, "start": 0.0})


def test_a_reused_pid_is_another_process() -> None:
    owner = current_owner()
    assert is_dead(owner | {"start": owner["start"] - 60})


def test_a_process_that_has_ended_is_dead_also_before_its_parent_has_noticed() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = current_owner() | {"pid": process.pid, **(_life(process.pid) or {})}
    assert not is_dead(owner)
    process.kill()
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert is_dead(owner)
    process.communicate()
    assert is_dead(owner)
