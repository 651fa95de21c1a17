"""Laws of the device fingerprint."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from core.hardware import _cpu, device_facts, device_fingerprint, main
from core.runtimes import RUNTIMES

X86 = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t\t: fpu avx2 avx512f\n\nprocessor\t: 1\nmodel name\t: Other\nflags\t\t: fpu\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n"


def test_the_fingerprint_is_twelve_hex_digits_and_repeatable() -> None:
    facts, digest = device_fingerprint(1, "openvino", "2026.4.1")
    assert re.fullmatch("[0-9a-f]{12}", digest)
    assert (facts, digest) == device_fingerprint(1, "openvino", "2026.4.1")


def test_the_fingerprint_ignores_the_patch_version_alone() -> None:
    digest = device_fingerprint(1, "openvino", "2026.4.1")[1]
    assert device_fingerprint(1, "openvino", "2026.4.2")[1] == digest
    others = [(2, "openvino", "2026.4.1"), (1, "onnxruntime", "2026.4.1"), (1, "openvino", "2026.5.1")]
    assert len({digest, *(device_fingerprint(*other)[1] for other in others)}) == 4


def test_the_facts_name_the_processor() -> None:
    facts = device_facts()
    assert set(facts) == {"cpu", "isa", "machine", "cores"}
    assert facts["cpu"]
    assert facts["cores"] >= 1
    assert facts["isa"] == sorted(facts["isa"])


@pytest.mark.parametrize(
    ("text", "model", "flag"), [(X86, "Some CPU @ 2 GHz", "avx512f"), (ARM, "0x41 0xd40", "asimddp")], ids=["x86", "arm"]
)
def test_both_styles_of_cpuinfo_are_read(text: str, model: str, flag: str) -> None:
    found, flags = _cpu(text)
    assert found == model
    assert flag in flags


def test_a_machine_without_cpuinfo_still_has_a_name() -> None:
    assert _cpu("")[0]


def test_the_command_lists_every_runtime(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    printed = capsys.readouterr().out
    for make in RUNTIMES.values():
        runtime = make()
        assert (f"{runtime.name} {runtime.version}" if runtime.version else f"pip install {runtime.pip_name}") in printed


def test_the_fingerprint_needs_no_torch_and_no_runtime() -> None:
    code = "import sys, core.hardware as h; h.main([]); print({'torch', 'openvino', 'onnxruntime'} & {*sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "set()"
