"""Which device a number was measured on.

python -m core.hardware     prints it, with the runtimes that are installed
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from core.errors import UserError

if TYPE_CHECKING:
    from core.runtimes import Runtime

ISA_FLAGS = {
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve", "sve2"),
}
"""Instruction sets that decide which kernels a runtime picks."""
INT8_FLAGS = {"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"}
"""Those that multiply INT8 directly; without one, INT8 layers are often slower than float ones, and an x86 CPU's sums saturate."""
BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""Those that multiply bfloat16; without one it is emulated, ten times as slowly as float32 is multiplied."""
X86 = {"x86_64", "amd64", "i386", "i686"}
GPU_FIELDS = ("name", "compute_cap", "driver_version")
SMI_LIMIT_S = 20


def device_fingerprint(threads: int, runtime: str, version: str, *, on_gpu: bool = False) -> tuple[dict[str, Any], str]:
    """The facts that latencies depend on, and 12 hex digits of them. `version` counts to its minor number."""
    facts = device_facts() | {"threads": threads, "runtime": runtime, "runtime_version": ".".join(version.split(".")[:2])}
    if on_gpu:  # for those alone: a CPU's latencies stay comparable when a card is added
        facts |= gpu() or {}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return facts, digest[:12]


def device_facts() -> dict[str, Any]:
    """CPU model, the instruction sets that matter, machine type and cores of this device."""
    model, flags = _cpu(_read_cpuinfo())
    return {"cpu": model, "isa": sorted(ISA_FLAGS & flags), "machine": platform.machine(), "cores": os.cpu_count() or 1}


def check_threads(threads: int) -> None:
    """UserError unless this process may use as many cores: with fewer, a runtime takes fewer threads without a word."""
    if threads > (cores := usable_cores()):
        raise UserError(f"runtime.threads may be up to {cores} on this machine, one for each core, but is {threads}; lower it")


def usable_cores() -> int:
    """Those that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def exact_int8_bits(device: Mapping[str, Any]) -> Literal[7, 8]:
    """The most bits of a weight with which INT8 kernels on `device` (`device_facts`) compute what they should: 8, or 7.

    x86 without an INT8 flag adds pairs of u8 x s8 products in 16 signed bits (`vpmaddubsw`): 2 * 255 * 127 is beyond their 32,767 and is
    clipped, 2 * 255 * 63 is not. A CPU whose flags cannot be read counts as one without.
    """
    saturates = str(device["machine"]).lower() in X86 and not INT8_FLAGS & set(device["isa"])
    return 7 if saturates else 8


@lru_cache(maxsize=1)
def isa_here() -> frozenset[str]:
    """The instruction sets of this machine that matter."""
    return frozenset(device_facts()["isa"])


def is_x86_without_avx512() -> bool:
    """Whether runtimes take their AVX2 or SSE kernels on this machine."""
    return platform.machine().lower() in X86 and "avx512f" not in isa_here()


def multiplies_bf16() -> bool:
    """Whether this machine's CPU does."""
    return bool(BF16_FLAGS & isa_here())


@lru_cache(maxsize=1)
def int8_bits_here() -> Literal[7, 8]:
    """`exact_int8_bits` of this machine."""
    return exact_int8_bits(device_facts())


@lru_cache(maxsize=1)
def gpu() -> dict[str, str] | None:
    """Name, compute capability ("SM89") and driver of the first NVIDIA GPU that this process may use, or None.

    By nvidia-smi, which comes with the driver: asking CUDA itself would open the device in a process that only looks. CUDA, here and in
    child processes, is told to number the GPUs as nvidia-smi does, unless CUDA_DEVICE_ORDER says otherwise.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    command = shutil.which("nvidia-smi")
    if command is None or (visible is not None and visible.strip() in ("", "-1")):
        return None
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # CUDA's own order begins with the fastest
    chosen = [] if visible is None else ["-i", visible.split(",")[0].strip()]
    query = [command, *chosen, f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=SMI_LIMIT_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):  # a driver that does not answer is no GPU
        return None
    return _first_gpu(answer)


def _first_gpu(answer: str) -> dict[str, str] | None:
    """The first line of nvidia-smi's CSV; None where it lists no device."""
    fields = [field.strip() for field in answer.strip().partition("\n")[0].split(",")]
    if len(fields) != len(GPU_FIELDS):
        return None
    name, capability, driver = fields
    return {"gpu": name, "compute_capability": f"SM{capability.replace('.', '')}", "driver": driver}


def main(argv: list[str] | None = None) -> int:
    """Print this device, and for every inference runtime what it can do here, or what is missing."""
    from core.cli import Parser  # late, as what follows: the measuring child imports this module and is no command

    Parser(prog="python -m core.hardware", description=main.__doc__).parse_args(argv)
    from core.runtimes import RUNTIMES  # late: the fingerprint itself depends on nothing

    facts, card = device_facts(), gpu()
    print(f"cpu      {facts['cpu']}, {facts['cores']} cores, {facts['machine']}")
    print(f"isa      {' '.join(facts['isa']) or 'none of those that matter here'}")
    without = "no instructions for it: INT8 layers may be slower than float ones, and their weights have at most 7 bits"
    print(f"int8     {' '.join(sorted(INT8_FLAGS & {*facts['isa']})) or without}")
    print(f"gpu      {', '.join(card.values()) if card else 'none that nvidia-smi shows'}")
    for make in RUNTIMES.values():
        runtime = make()
        print(f"runtime  {runtime.name} {runtime.version or 'is not installed'}")
        for line in _abilities(runtime):
            print(f"         {line}")
    return 0


def _abilities(runtime: Runtime) -> list[str]:
    """What an installed runtime can do on this machine; else what is missing."""
    from core.runtimes import why_not_here

    if runtime.version is None:
        return [f"python -m pip install {runtime.pip_name}"]
    reason = why_not_here(runtime)
    lines = [
        f"layers in INT8 or {', '.join(runtime.precisions)}; activations {runtime.activation_grid}; "
        f"depthwise in {'INT8 or float' if runtime.depthwise_int8 else 'float'}; {_channels(runtime)}"
    ]
    if runtime.build:
        lines.append(f"builds engines without a GPU for {', '.join(runtime.compute_capabilities)}")
    if reason is None:
        digest = device_fingerprint(1, runtime.name, runtime.version, on_gpu=runtime.device == "cuda")[1]
        lines.append(f"fingerprint at 1 thread {digest}")
    return lines if reason is None else [*lines, f"does not run here: {reason}"]


def _channels(runtime: Runtime) -> str:
    return "any channels" if runtime.channel_multiple == 1 else f"channels best in multiples of {runtime.channel_multiple}"


def _read_cpuinfo() -> str:
    """Linux's description of the processors, empty elsewhere."""
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _cpu(cpuinfo: str) -> tuple[str, set[str]]:
    """Model name and flags of the first processor; x86 says `model name` and `flags`, ARM `Features` alone."""
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    arm_part = " ".join(filter(None, (fields.get("cpu implementer"), fields.get("cpu part"))))
    model = fields.get("model name") or arm_part or platform.processor() or "unknown"
    return model, set((fields.get("flags") or fields.get("features") or "").split())


if __name__ == "__main__":
    from core.cli import run_main

    raise SystemExit(run_main(main))
