"""What else went on while something was measured: work of others, clock, throttling; None where a machine does not say.

Read before and after a measurement, never in between. Linux only; the child imports it, so it needs the standard library alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

GPU_FIELDS = ("clocks.sm", "clocks_throttle_reasons.active")
GPU_SLOWED = 0x04 | 0x08 | 0x20 | 0x40 | 0x80
"""NVML's reasons that are a limit of power or heat; idling and set clocks are none. References: nvml.h, nvmlClocksEventReason*."""
SMI_LIMIT_S = 5


class Conditions(TypedDict):
    """During one measurement: cores kept busy by other processes (mean), clock in MHz at its end, whether heat or power held it back."""

    busy_cores: float | None
    clock_mhz: float | None
    throttled: bool | None


@dataclass(frozen=True)
class Reading:
    """One look: wall seconds, busy CPU seconds of the machine and of this process, throttle events so far."""

    wall_s: float
    machine_s: float | None
    own_s: float
    throttles: int | None


def read_machine() -> Reading:
    """Now."""
    times = os.times()
    return Reading(time.monotonic(), _busy_s(Path("/proc/stat")), times.user + times.system, _throttles(Path("/sys/devices/system/cpu")))


def conditions(before: Reading, *, on_gpu: bool = False) -> Conditions:
    """What happened since `before`."""
    after = read_machine()
    busy = None
    if before.machine_s is not None and after.machine_s is not None and after.wall_s > before.wall_s:
        others = (after.machine_s - before.machine_s) - (after.own_s - before.own_s)
        busy = round(max(others, 0.0) / (after.wall_s - before.wall_s), 2)
    if on_gpu:
        clock, throttled = _gpu_clock()
    else:
        clock = _clock_mhz(Path("/proc/cpuinfo"))
        throttled = None if before.throttles is None or after.throttles is None else after.throttles > before.throttles
    return {"busy_cores": busy, "clock_mhz": clock, "throttled": throttled}


def _busy_s(path: Path) -> float | None:
    """Seconds in which cores did anything for anybody here; time stolen by a hypervisor counts, waiting for disks does not."""
    try:
        user, nice, system, _idle, _wait, irq, soft, steal = map(int, path.read_text(encoding="utf-8").split("\n", 1)[0].split()[1:9])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def _throttles(folder: Path) -> int | None:
    """Thermal throttle events of all cores."""
    found = list(folder.glob("cpu[0-9]*/thermal_throttle/core_throttle_count"))
    try:
        return sum(int(path.read_text(encoding="utf-8")) for path in found) if found else None
    except (OSError, ValueError):
        return None


def _clock_mhz(path: Path) -> float | None:
    """Highest clock of a core: the one that measured has just been busy."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        return max((float(line.partition(":")[2]) for line in lines if line.lower().startswith("cpu mhz")), default=None)
    except (OSError, ValueError):
        return None


def _gpu_clock() -> tuple[float | None, bool | None]:
    """Clock of the GPU's multiprocessors, and whether power or heat limits it now."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None, None
    query = [command, f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=SMI_LIMIT_S, check=True).stdout
        clock, reasons = (field.strip() for field in answer.splitlines()[0].split(","))
        return float(clock), bool(int(reasons, 16) & GPU_SLOWED)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None, None
