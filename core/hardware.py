"""Which device a number was measured on.

python -m core.hardware     prints it, with the runtimes that are installed
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from pathlib import Path
from typing import Any

ISA_FLAGS = {
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve", "sve2"),
}
"""Instruction sets that decide which kernels a runtime picks."""


def device_fingerprint(threads: int, runtime: str, version: str) -> tuple[dict[str, Any], str]:
    """The facts that latencies depend on, and 12 hex digits of them. `version` counts to its minor number."""
    facts = device_facts() | {"threads": threads, "runtime": runtime, "runtime_version": ".".join(version.split(".")[:2])}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return facts, digest[:12]


def device_facts() -> dict[str, Any]:
    """CPU model, the instruction sets that matter, machine type and cores of this device."""
    model, flags = _cpu(_read_cpuinfo())
    return {"cpu": model, "isa": sorted(ISA_FLAGS & flags), "machine": platform.machine(), "cores": os.cpu_count() or 1}


def main(argv: list[str] | None = None) -> int:
    """Print this device and the inference runtimes that are installed on it."""
    from core.cli import Parser  # late, as what follows: the measuring child imports this module and is no command

    Parser(prog="python -m core.hardware", description=main.__doc__).parse_args(argv)
    from core.runtimes import RUNTIMES  # late: the fingerprint itself depends on nothing

    facts = device_facts()
    print(f"cpu      {facts['cpu']}, {facts['cores']} cores, {facts['machine']}")
    print(f"isa      {' '.join(facts['isa']) or 'none of those that matter here'}")
    for make in RUNTIMES.values():
        runtime = make()
        if runtime.version is None:
            print(f"runtime  {runtime.name} is not installed: pip install {runtime.pip_name}")
        else:
            digest = device_fingerprint(1, runtime.name, runtime.version)[1]
            print(f"runtime  {runtime.name} {runtime.version}, fingerprint at 1 thread {digest}")
    return 0


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
